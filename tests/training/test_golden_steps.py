"""Six steps of the original's own training: AdamW with decay on every parameter, an annealed rate, an average.

What float32 settles is compared to 1e-5: the first step's losses and gradients, and the whole of the parameters after every
step. AdamW divides each gradient by its own size, so that one that is rounding noise moves its parameter by a whole learning
rate: from the second step on the original on one thread differs from itself on several by up to 1e-3 in the losses
(`noise_floor_absmax`). There ours may differ ten times as far, as everywhere; it differs by 1 to 2.5 times, in float64 too.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import losses, schedules
from diffusion_jax.interop import openai
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.training.step import TrainState, make_train_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RECORD, TOLD = np.load(GOLDEN / "adamw_ema_steps.npz"), json.loads((GOLDEN / "adamw_ema_steps.json").read_text())
FLOOR, NUM_TABLE_STEPS, LR = TOLD["noise_floor_absmax"], TOLD["steps"], TOLD["lr"]
RATES = LR * (1 - np.arange(TOLD["n_steps"]) / 12)  # the record's lr_of_step_i
# The step's EMA begins with a small decay; the original's is constant from the first step. Ours is too, late in a run.
LATE = 1000
PICKED = [name.removeprefix("param_after__") for name in RECORD if name.startswith("param_after__")]


def adamw(rates, weight_decay):
    return optax.adamw(lambda count: rates[count], 0.9, 0.999, 1e-8, weight_decay=weight_decay)


@pytest.fixture(scope="module")
def model():
    case = GOLDEN / "networks" / TOLD["model"]
    made = json.loads((case / "config.json").read_text())
    return openai.load(made["made_with"], case / "weights.safetensors", made["kwargs"] | {"num_classes": 10})


@pytest.fixture(scope="module")
def given_noise():
    """Keys are the noise itself, so that the record's can be given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "normal_per_example", lambda keys, shape, dtype: keys)
        yield


def terms(model, params, batch):
    """The record's loss and its parts: RESCALED_MSE of eps with a learned range, on the cosine table."""
    schedule = schedules.from_betas(schedules.cosine_betas(NUM_TABLE_STEPS))

    def apply(x_t, t, cond):
        return model.network.apply(params, x_t, schedules.discrete_step(t, NUM_TABLE_STEPS), cond)

    example = (batch["image"], batch["t"], batch["noise"], {"label": batch["label"]})
    settings = {"kind": "rescaled_mse", "variance": "learned_range"}
    return losses.ddpm_loss(apply, PARAMETERIZATIONS["eps"], schedule, NUM_TABLE_STEPS, *example, **settings)


def batch_of(step):
    image, noise = (jnp.asarray(np.moveaxis(RECORD[name][step], 1, -1)) for name in ("x_start", "noise"))
    t = jnp.asarray((RECORD["t"][step] + 1) / NUM_TABLE_STEPS, jnp.float32)
    return {"image": image, "noise": noise, "t": t, "label": jnp.asarray(RECORD["y"][step], jnp.int32)}


@pytest.fixture(scope="module")
def run(model, given_noise):
    """A function of settings -> the last state, and of every step its terms, metrics and the parameters' norm after it."""

    def loss_per_example(params, batch, keys, history):
        return terms(model, params, batch).loss, None

    @jax.jit
    def step(state, batch, rates, weight_decay):
        before = terms(model, state.params, batch)
        train_step = make_train_step(loss_per_example, adamw(rates, weight_decay), TOLD["ema_rate"], seed=0)
        state, metrics = train_step(state, batch, None)
        return state, (before, metrics, optax.tree.norm(state.params))

    def run(rates=RATES, weight_decay=TOLD["weight_decay"], first_step=LATE):
        opt_state, reports = adamw(rates, weight_decay).init(model.params), []
        state = TrainState(jnp.int32(first_step), model.params, opt_state, model.params)
        for i in range(TOLD["n_steps"]):
            state, report = step(state, batch_of(i), jnp.asarray(rates), weight_decay)
            reports.append(report)
        return state, *jax.tree.map(lambda *leaves: np.stack(leaves), *reports)

    return run


@pytest.fixture(scope="module")
def trained(run):
    return run()


def test_losses_of_the_first_step_are_the_originals(trained):
    for name in ("loss", "mse", "vb"):
        np.testing.assert_allclose(getattr(trained[1], name)[0], RECORD[name][0], atol=1e-5, rtol=1e-5)


def test_gradients_of_the_first_step_are_the_originals(model, given_noise, trained):
    grads = jax.jit(jax.grad(lambda params: terms(model, params, batch_of(0)).loss.mean()))(model.params)
    named, expected = model._replace(params=grads).state_dict(), RECORD["grad_l2norms_of_first_step"]
    norms = np.array([np.linalg.norm(named[name]) for name in TOLD["param_names"]])
    np.testing.assert_allclose(norms, expected, atol=1e-5 * expected.max(), rtol=0)
    np.testing.assert_allclose(trained[2]["grad_norm"][0], RECORD["grad_global_norm"][0], rtol=1e-5)


def test_the_parameters_as_a_whole_are_the_originals_after_every_step(trained):
    np.testing.assert_allclose(trained[3], RECORD["param_global_norm"], rtol=1e-5)


def test_losses_of_all_steps_are_the_originals_within_its_rounding(trained):
    _, each, metrics, _ = trained
    floor = np.maximum(1e-6, TOLD["noise_floor_absmax"]["loss_per_step"])[:, None]
    assert (np.abs(each.loss - RECORD["loss"]) <= 10 * floor).all()
    assert (np.abs(each.mse - RECORD["mse"]) <= 10 * floor).all()
    np.testing.assert_allclose(each.vb, RECORD["vb"], atol=10 * FLOOR["vb"], rtol=0)
    np.testing.assert_allclose(metrics["loss"], each.loss.mean(1), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], RECORD["grad_global_norm"], atol=10 * FLOOR["grad_global_norm"])


@pytest.mark.parametrize("kind", ["param", "ema"])
def test_every_parameter_and_its_average_end_where_the_originals_do(model, trained, kind):
    state = trained[0]
    named = model._replace(params=state.params if kind == "param" else state.ema_params).state_dict()
    norms = np.array([np.linalg.norm(named[name]) for name in TOLD["param_names"]])
    np.testing.assert_allclose(norms, RECORD[f"{kind}_l2norms_after"], atol=10 * FLOOR[f"{kind}_l2norms_after"], rtol=0)
    for name in PICKED:
        key = f"{kind}_after__{name}"
        np.testing.assert_allclose(named[name], RECORD[key], atol=10 * FLOOR[key], rtol=0, err_msg=name)
        assert strayed(model, named, kind, name) < 0.02, name


def strayed(model, named, kind, name):
    """How far off an array is, as a share of the way that the original's went."""
    recorded = RECORD[f"{kind}_after__{name}"]
    return np.linalg.norm(named[name] - recorded) / np.linalg.norm(recorded - model.state_dict()[name])


@pytest.mark.parametrize(
    "kind, wrong, off",
    [
        ("param", {"rates": np.full_like(RATES, LR)}, 0.1),
        ("param", {"rates": RATES[[0, 0, 1, 2, 3, 4]]}, 0.04),  # a step behind
        ("ema", {"first_step": 0}, 0.1),  # the young average's smaller decay
    ],
)
def test_a_wrong_reading_strays_further_than_these_tests_allow(model, run, kind, wrong, off):
    state, *_ = run(**wrong)
    named = model._replace(params=state.params if kind == "param" else state.ema_params).state_dict()
    assert np.median([strayed(model, named, kind, name) for name in PICKED]) > off


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_another_weight_decay_shows_in_the_parameters_as_a_whole(run, weight_decay):
    norms = run(weight_decay=weight_decay)[-1]
    assert (np.abs(norms / RECORD["param_global_norm"] - 1) > 2e-5).all()


def test_a_late_step_is_adamw_and_a_constant_average_to_the_last_digits(x64):
    """Of a quadratic, against the formulas written out, where no gradient is noise."""
    rng = np.random.default_rng(0)
    curvature, w, first, second = rng.uniform(1, 3, 5), rng.normal(size=5), np.zeros(5), np.zeros(5)

    def loss_per_example(params, batch, keys, history):
        return 0.5 * (curvature * params * params).sum() * batch["scale"], None

    optimizer, start = adamw(jnp.asarray(RATES, float), TOLD["weight_decay"]), jnp.asarray(w)
    step = jax.jit(functools.partial(make_train_step(loss_per_example, optimizer, 0.9, seed=0), axis_name=None))
    state, average = TrainState(jnp.int32(LATE), start, optimizer.init(start), start), w
    for i in range(6):
        scale = rng.uniform(0.5, 2, 3)
        state, _ = step(state, {"scale": jnp.asarray(scale)})
        lr, gradient = RATES[i], curvature * w * scale.mean()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        scaled = first / (1 - 0.9 ** (i + 1)) / (np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8)
        w = w * (1 - lr * TOLD["weight_decay"]) - lr * scaled
        average = 0.9 * average + 0.1 * w
    # optax counts in float32 what the moments are divided by
    np.testing.assert_allclose(state.params, w, rtol=1e-7)
    np.testing.assert_allclose(state.ema_params, average, rtol=1e-7)
