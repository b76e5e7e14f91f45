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

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("default", "families"))
# One of each family and kind; in their debug size the others differ by numbers alone.
TRAINED = (
    "scenes",
    "heartbeat",
    "swiss_roll",
    "ddpm_cifar10",
    "iddpm_cifar10_uncond",
    "adm_upsampler_64_256",
    "adm_classifier_64",
    "annotated_fashion_mnist",
    "glide_base",
    "glide_upsample_inpaint",
)
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
    build.optimizer(config), build.grid(model), build.loss_per_example(model)


def take_steps(config, num_steps=4):
    model, optimizer = build.model(config, TOKENIZER), build.optimizer(config)
    size = config.train.batch_size
    rng = np.random.default_rng(0)
    cond = {name: np.stack([value] * size) for name, value in model.blank_cond.items()}
    if len(model.image_shape) == 3:
        data = rng.integers(0, 256, (size, *model.image_shape), dtype=np.uint8)
    else:
        data = build.source(config, "validation").values[:size]
    batch = {"image": data, **cond}
    if config.model.kind == "classifier":
        batch["label"] = rng.integers(0, config.data.num_classes, size).astype(np.int32)
    step = build.placement(config).train(
        make_train_step(build.loss_per_example(model), optimizer, config.ema.decay, config.seed)
    )
    state = init_state(model.network.init, optimizer, config.seed, build.loss_history(model))
    before = jax.tree.map(np.array, state.params)
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    changed = [
        np.abs(a - np.asarray(b)).max() > 0 for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)
    ]
    return metrics, np.mean(changed)


def diffusion(parameterization, loss_space, **fields):
    fields |= {"parameterization": parameterization, "loss_space": loss_space}
    return {f"diffusion.{name}": value for name, value in fields.items()}


@pytest.mark.parametrize("name", TRAINED)
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
        {"diffusion.schedule": "edm", **diffusion("edm", "edm", time="log_normal_sigma")},
        {"diffusion.schedule": "edm", **diffusion("edm", "eps", weight="edm", schedule_shift=2.0)},
        {
            "diffusion.schedule": "sigmoid",
            **diffusion("v", "eps", weight="min_snr", distance="huber", schedule_shift=2.0),
        },
        {"diffusion.schedule": "linear", **diffusion("score", "eps", weight="sigmoid", distance="l1")},
        {"diffusion.schedule": "ddpm_linear", **diffusion("v", "eps", weight="p2", zero_terminal_snr=True)},
        {"diffusion.schedule": "ddpm_jsd", **diffusion("edm", "previous", time="loss_second_moment")},
        *(
            {
                "diffusion.schedule": "ddpm_cosine",
                **diffusion(name, name, objective=objective, variance=variance, time=time),
            }
            for name, objective, variance, time in (
                ("eps", "mse", "learned_range", "loss_second_moment"),
                ("previous", "rescaled_mse", "learned", "discrete_uniform"),
                ("x0", "kl", "small", "discrete_uniform"),
                ("v", "rescaled_kl", "large", "loss_second_moment"),
            )
        ),
        {"model.condition": "label", "diffusion.time": "uniform"},
        {"model.condition": "none", "model.dtype": "bfloat16", "model.remat": "dots", "model.dropout": 0.1},
        {"optimizer.decay": "constant", "parallel.placement": "single"},
    ],
)
def test_every_choice_of_a_config_traces_to_a_train_step(changes):
    from configs.scenes import get_config

    config = get_config("debug")
    config.update_from_flattened_dict(changes)
    model, optimizer, size = build.model(config, TOKENIZER), build.optimizer(config), config.train.batch_size
    state = jax.eval_shape(lambda: init_state(model.network.init, optimizer, config.seed, build.loss_history(model)))
    batch = {name: np.stack([value] * size) for name, value in model.blank_cond.items()}
    batch["image"] = np.zeros((size, *model.image_shape), np.uint8)
    step = make_train_step(build.loss_per_example(model), optimizer, config.ema.decay, config.seed)
    after, metrics = jax.eval_shape(lambda state, batch: step(state, batch, None), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("diffusion.schedule", "cosinus", "Did you mean cosine"),
        ("diffusion.parameterization", "noise", "Known: edm, eps, previous, score, v, velocity, x0"),
        ("diffusion.time", "lognormal", "Did you mean log.*_normal"),
        ("diffusion.weight", "minsnr", "Did you mean min_snr"),
        ("diffusion.distance", "l3", "Known: huber, l1, l2"),
        ("diffusion.objective", "elbo", "Known: denoising, kl, mse, rescaled_kl, rescaled_mse"),
        ("diffusion.variance", "learnt", "Did you mean learned"),
        ("diffusion.schedule_shift", -1.0, "shift must be positive"),
        ("diffusion.sigma_data", 0.0, "sigma_data and sigma_max must be positive"),
        ("diffusion.zero_terminal_snr", True, "needs a table of betas.*schedule=ddpm_linear"),
        ("diffusion.variance", "learned_range", "needs a table of betas"),
        ("diffusion.objective", "kl", "needs a table of betas"),
        ("diffusion.time", "loss_second_moment", "needs a table of betas"),
        ("diffusion.loss_space", "previous", "needs a table of betas"),
        ("diffusion.weight", "p2", "made for the error of eps.*loss_space=eps"),
        ("optimizer.decay", "exponential", "config.optimizer.decay"),
        ("model.condition", "texts", "Did you mean text"),
        ("model.dtype", "bf16", "bfloat16"),
        ("model.patch_size", 3, "multiples of"),
        ("sample.sampler", "plms", "divides by alpha, which is 0"),
        ("sample.grid", "karas", "unknown config.sample.grid.*Did you mean karras"),
        ("sample.num_steps", 0, "num_steps"),
        ("diffusion.parameterization", "eps", "sample.start=0.98"),
        ("parallel.placement", "shard", "config.parallel.placement"),
        ("data.name", "cifar", "config.data.name"),
        ("data.name", "swiss_roll", "model.kind=unet does not fit.*Set model.kind=mlp"),
        ("data.name", "heartbeat", "Set diffusion.kind=discrete"),
        ("diffusion.kind", "categorical", "Known: discrete, gaussian"),
        ("model.kind", "mpl", "Did you mean mlp"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_known(field, value, message):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        model = build.model(config, TOKENIZER)
        build.loss_per_example(model), build.optimizer(config), build.grid(model), build.placement(config)
        build.source(config)


def test_a_classifier_on_patches_is_refused():
    config = default.get_config()
    config.model.update(kind="classifier", condition="none", patch_size=4)
    with pytest.raises(UserError, match="a classifier reads pixels. Set model.patch_size=1"):
        build.model(config, None)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variance": "learned"}, "denoising teaches no variance.*objective=mse"),
        ({"objective": "mse", "loss_space": "eps"}, "falls between them.*time=discrete_uniform"),
        ({"objective": "mse", "time": "discrete_uniform", "loss_space": "x0"}, "Set loss_space=eps, weight=none"),
        ({"weight": "edm", "zero_terminal_snr": True}, "pure noise, where config.diffusion.weight=edm is infinite"),
        ({"parameterization": "velocity", "schedule": "ddpm_jsd"}, "pure noise, where the velocity is 0"),
        (
            {"loss_space": "v", "zero_terminal_snr": True},
            "pure noise, where .*=eps says nothing about x0.*parameterization=v",
        ),
        ({"num_table_steps": 1, "zero_terminal_snr": True}, "at least two betas"),
        ({"zero_terminal_snr": True}, "without zero_terminal_snr"),
    ],
)
def test_choices_that_cannot_work_together_are_told_with_what_would(changes, message):
    config = default.get_config()
    config.diffusion.update({"schedule": "ddpm_cosine", "parameterization": "eps", "loss_space": "eps"} | changes)
    with pytest.raises(UserError, match=message) as error:
        model = build.model(config, TOKENIZER)
        build.loss_per_example(model), build.grid(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("heartbeat", {"diffusion.time": "uniform"}, "trained by its bound.*objective=rescaled_kl"),
        ("heartbeat", {"diffusion.objective": "mse"}, "trained by its bound"),
        ("heartbeat", {"diffusion.transition": "masked"}, "Known: absorbing, uniform"),
        ("heartbeat", {"diffusion.schedule": "cosine"}, "needs a table of betas"),
        ("swiss_roll", {"model.condition": "label"}, "an mlp takes none"),
        ("swiss_roll", {"diffusion.kind": "discrete"}, "Set diffusion.kind=gaussian"),
        ("swiss_roll", {"model.depth": 0}, "depth of at least 1"),
    ],
)
def test_a_wrong_value_for_vectors_is_told_with_what_would_do(name, changes, message):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        build.loss_per_example(build.model(config, None))


def test_masked_categories_take_steps_too():
    config = importlib.import_module("configs.heartbeat").get_config("debug")
    config.diffusion.transition = "absorbing"
    metrics, _ = take_steps(config)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", build.SCHEDULES)
def test_a_shift_of_the_schedule_multiplies_edms_sigma_and_keeps_its_kind(name, x64):
    t = np.linspace(0.1, 0.9, 9)
    config = default.get_config()
    config.diffusion.schedule = name
    plain = build.model(config, TOKENIZER).process.schedule(t)
    config.diffusion.schedule_shift = 3.0
    shifted = build.model(config, TOKENIZER).process.schedule(t)
    np.testing.assert_allclose(shifted.sigma / shifted.alpha, 3 * plain.sigma / plain.alpha, rtol=1e-9)
    kinds = [lambda a, s: a, lambda a, s: a + s, np.hypot]  # EDM's, the linear path, variance preserving
    kept = [np.ptp(kind(*level)) < 1e-9 for kind in kinds for level in (plain, shifted)]
    assert any(kept) and kept[0::2] == kept[1::2]


@pytest.mark.parametrize("schedule, parameterization", [("edm", "edm"), ("edm", "x0"), ("cosine", "edm")])
def test_an_edm_network_sees_unit_variance_in_training_and_in_sampling(schedule, parameterization, monkeypatch):
    config = importlib.import_module("configs.scenes").get_config("debug")
    config.diffusion.update(
        {"schedule": schedule, **dict.fromkeys(("parameterization", "loss_space"), parameterization)}
    )
    config.diffusion.time = "log_normal_sigma"
    seen, shape = [], (8, 32, 32, 3)

    def network(params, x, time, cond, dropout_keys=None):
        seen.append((x, time))
        return x

    model = build.model(config, TOKENIZER)
    model = model._replace(network=model.network._replace(apply=network))
    cond = {name: np.stack([value] * 8) for name, value in model.blank_cond.items()}
    checkers = np.where(np.indices(shape).sum(axis=0) % 2, 191, 64).astype(np.uint8)  # +-0.5, of EDM's sigma_data
    keys = jax.vmap(jax.random.key)(np.arange(8))
    build.loss_per_example(model)({}, {"image": checkers, **cond}, keys, ())
    build.denoiser(model, {})(np.full(shape, 0.7, np.float32), seen[0][1] * 0 + 0.3, cond)
    np.testing.assert_allclose(np.std(seen[0][0]), 1, atol=0.05)
    level = model.process.schedule(np.float32(0.3))
    np.testing.assert_allclose(seen[1][0], 0.7 / np.hypot(0.5 * level.alpha, level.sigma), rtol=1e-5)
    time = np.log(level.sigma) / 4 if schedule == "edm" else 300
    np.testing.assert_allclose(seen[1][1], np.full(8, time), rtol=1e-5)


def test_learning_rate_warms_up_and_decays_apart_from_the_number_of_steps():
    config = default.get_config()
    config.optimizer.update(learning_rate=0.5, warmup_steps=10, decay="cosine", decay_steps=110)
    config.train.num_steps = 7
    schedule = build.lr_schedule(config)
    rates = [schedule(step) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0.05, 0.25, 0.5, 0.5, 0.25, 0], atol=1e-6)
    config.optimizer.update(warmup_steps=0, decay="constant")
    np.testing.assert_allclose(build.lr_schedule(config)(0), 0.5)
