"""The recipes of published models build the published networks: their modules, their names and shapes, their sizes."""

import dataclasses
import importlib
import math
import types

import jax
import numpy as np
import pytest

from diffusion_jax import build
from diffusion_jax.interop.openai import kinds

# GLIDE's vocabulary, without its tokens: a network's shapes need no more.
GPT2 = types.SimpleNamespace(
    vocab_size=50257,
    encode=lambda texts, length: (np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)),
)
# Parameters of what was published or described (guided-diffusion, improved-diffusion and glide-text2im; Ho et al. 2020).
SIZES = {
    "adm_64_cond": 295_904_454,
    "adm_128_cond": 421_529_606,
    "adm_256_cond": 553_838_086,
    "adm_256_uncond": 552_814_086,
    "adm_512_cond": 558_997_638,
    "adm_lsun": 552_814_086,
    "adm_lsun_cat": 552_814_086,
    "adm_lsun_horse": 552_814_086,
    "adm_upsampler_64_256": 311_795_910,
    "adm_upsampler_128_512": 308_835_270,
    "adm_classifier_64": 65_438_568,
    "adm_classifier_128": 42_568_040,
    "adm_classifier_256": 54_096_360,
    "adm_classifier_512": 54_448_360,
    "iddpm_cifar10_uncond": 52_546_438,
    "iddpm_cifar10_uncond_vlb": 52_546_438,
    "iddpm_imagenet64_uncond": 121_063_942,
    "iddpm_imagenet64_uncond_vlb": 121_063_942,
    "iddpm_imagenet64_cond": 273_049_350,
    "iddpm_lsun": 113_676_678,
    "iddpm_upsampler_64_256": 279_792_390,
    "glide_base": 385_030_726,
    "glide_base_inpaint": 385_037_638,
    "glide_upsample": 398_361_286,
    "glide_upsample_inpaint": 398_368_198,
    "ddpm_cifar10": 35_746_307,
    "annotated_fashion_mnist": 2_020_257,
    "glide_clip": 86_443_776 + 71_679_488 + 1,  # the scale of similarities, which its files leave out
}
ABOUT = {"glide_paper_base": 3.554e9, "glide_paper_upsample": 1.54e9}  # never published; to a hundredth
LEFT_TO_TRAINING = {"attention", "dtype", "remat", "parent", "name", "text"}


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def size_of(name):
    network = build.model(config_of(name), GPT2).network
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))


def fields(module):
    return {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in LEFT_TO_TRAINING
    }


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_has_as_many_parameters_as_the_published_model(name):
    assert size_of(name) == SIZES[name]


@pytest.mark.parametrize("name", ABOUT)
def test_a_recipe_comes_near_the_size_that_a_paper_tells(name):
    assert size_of(name) == pytest.approx(ABOUT[name], rel=0.01)


@pytest.mark.parametrize("name", kinds.PUBLISHED)
def test_a_recipe_builds_the_network_of_the_published_file(name):
    config, published = config_of(name), kinds.blueprint(name, None).module
    ours = build.models.module(config, GPT2)
    assert fields(ours) == fields(published)
    if getattr(published, "text", None) is not None:
        assert fields(ours.text) == fields(published.text)
