"""Every recipe loads, builds and takes steps in its debug size."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from configs import default
from diffusion_jax import build
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.training.step import init_state, make_train_step

RECIPES = sorted(p.stem for p in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "default")
TOKENIZER = CaptionTokenizer.train(["a large red circle on a white background"], 300)


def fields(config, prefix=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, type(value)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("variant", ["", "debug"])
def test_a_recipe_declares_no_field_of_its_own_and_builds(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    assert dict(fields(config)) == dict(fields(default.get_config()))
    model = build.model(config, TOKENIZER)
    jax.eval_shape(model.network.init, jax.random.key(0))
    build.loss_per_example(model), build.optimizer(config), build.grid(model)


def take_steps(config, num_steps=4):
    model, optimizer = build.model(config, TOKENIZER), build.optimizer(config)
    size = config.train.batch_size
    rng = np.random.default_rng(0)
    cond = {name: np.stack([value] * size) for name, value in model.null_cond.items()}
    batch = {"image": rng.integers(0, 256, (size, *model.image_shape), dtype=np.uint8), **cond}
    step = build.placement(config).train(
        make_train_step(build.loss_per_example(model), optimizer, config.ema.decay, config.seed)
    )
    state = init_state(model.network.init, optimizer, config.seed)
    before = jax.tree.map(np.array, state.params)
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    changed = [
        np.abs(a - np.asarray(b)).max() > 0 for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)
    ]
    return metrics, np.mean(changed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_steps_in_its_debug_size(name):
    metrics, changed = take_steps(importlib.import_module(f"configs.{name}").get_config("debug"))
    assert np.isfinite(metrics["loss"])
    assert metrics["grad_norm"] > 0
    assert changed > 0.9, (
        "zero-initialised layers hold back the gradients of those before them for a step or two, not for good"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion.schedule": "cosine", "diffusion.parameterization": "v", "diffusion.loss_space": "v"},
        {"diffusion.schedule": "ddpm_linear", "diffusion.parameterization": "eps", "diffusion.loss_space": "eps"},
        {"diffusion.schedule": "ddpm_cosine", "diffusion.parameterization": "eps", "diffusion.loss_space": "x0"},
        {"model.condition": "label", "diffusion.time": "uniform"},
        {"model.condition": "none", "model.dtype": "bfloat16", "model.remat": True, "model.dropout": 0.1},
        {"optimizer.decay": "constant", "parallel.placement": "single"},
    ],
)
def test_every_choice_of_a_config_traces_to_a_train_step(changes):
    from configs.scenes import get_config

    config = get_config("debug")
    config.update_from_flattened_dict(changes)
    model, optimizer, size = build.model(config, TOKENIZER), build.optimizer(config), config.train.batch_size
    state = jax.eval_shape(lambda: init_state(model.network.init, optimizer, config.seed))
    batch = {name: np.stack([value] * size) for name, value in model.null_cond.items()}
    batch["image"] = np.zeros((size, *model.image_shape), np.uint8)
    step = make_train_step(build.loss_per_example(model), optimizer, config.ema.decay, config.seed)
    after, metrics = jax.eval_shape(lambda state, batch: step(state, batch, None), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("diffusion.schedule", "cosinus", "Did you mean cosine"),
        ("diffusion.parameterization", "noise", "Known: eps, score, v, velocity, x0"),
        ("diffusion.time", "lognormal", "Did you mean logit_normal"),
        ("optimizer.decay", "linear", "config.optimizer.decay"),
        ("model.condition", "texts", "Did you mean text"),
        ("model.dtype", "bf16", "bfloat16"),
        ("model.patch_size", 3, "multiples of"),
        ("sample.grid", "karras", "config.sample.grid"),
        ("sample.num_steps", 0, "num_steps"),
        ("diffusion.parameterization", "eps", "sample.start=0.98"),
        ("parallel.placement", "shard", "config.parallel.placement"),
        ("data.name", "cifar", "config.data.name"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_known(field, value, message):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        model = build.model(config, TOKENIZER)
        build.loss_per_example(model), build.optimizer(config), build.grid(model), build.placement(config)
        build.source(config)


def test_learning_rate_warms_up_and_decays_apart_from_the_number_of_steps():
    config = default.get_config()
    config.optimizer.update(learning_rate=0.5, warmup_steps=10, decay="cosine", decay_steps=110)
    config.train.num_steps = 7
    schedule = build.lr_schedule(config)
    rates = [schedule(step) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0.05, 0.25, 0.5, 0.5, 0.25, 0], atol=1e-6)
    config.optimizer.update(warmup_steps=0, decay="constant")
    np.testing.assert_allclose(build.lr_schedule(config)(0), 0.5)
