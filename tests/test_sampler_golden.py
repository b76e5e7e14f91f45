"""Samplers against the originals: guided-diffusion's steps and loops, k-diffusion's and diffusers' runs, Crowson's PLMS."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, mixture_denoiser
from sampler_cases import give_noise, keys_of

from diffusion_jax import grids, samplers, schedules
from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.guidance import clip_x0
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpmpp_2m import dpmpp_2m
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.euler_ancestral import euler_ancestral
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.lms import lms
from diffusion_jax.samplers.plms import plms
from diffusion_jax.samplers.unipc import unipc
from diffusion_jax.schedules import from_betas, linear_betas

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
DDPM = SCHEDULES["ddpm_linear"]


@pytest.fixture
def given_noise(monkeypatch):
    give_noise(monkeypatch)


def mixture(golden, schedule):
    return mixture_denoiser(
        schedule, *(jnp.asarray(golden[f"gmm_{n}"], float) for n in ("weights", "means", "variances"))
    )


def states(sampler, denoiser, x, grid, noise=None):
    """The state after each step of a grid; noise needs `given_noise`."""
    noise = keys_of(len(x)) if noise is None else jnp.asarray(noise, float)
    run = jax.jit(lambda carry, i: samplers.run(sampler, denoiser, carry, grid, {}, noise, i, i + 1))
    carry = (jnp.asarray(x, float), sampler.init(jnp.asarray(x, float)))
    found = []
    for i in range(len(grid) - 1):
        carry = run(carry, i)
        found.append(np.asarray(carry[0]))
    return np.stack(found)


def close_to_largest(ours, golden, tolerance):
    largest = np.abs(golden).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(ours / largest, golden / largest, atol=tolerance)


def single_step(make_sampler, name, clipped, noise):
    """A step of each of five examples, at its own time, for a network that returns a constant."""
    golden = np.load(GOLDEN / "ddpm_single_steps.npz")
    schedule = from_betas(linear_betas(50))
    results = []
    for i, step in enumerate(golden["t"]):
        output = jnp.asarray(golden["model_output"][i : i + 1], jnp.float64)
        denoiser = make_denoiser(lambda x_t, t, cond, o=output: o, PARAMETERIZATIONS[name], schedule, lambda t: t)
        denoiser = clip_x0(denoiser, schedule) if clipped else denoiser
        x_t = jnp.asarray(golden["x_t"][i : i + 1], jnp.float64)
        keys = jnp.asarray(np.broadcast_to(noise, golden["x_t"].shape)[i : i + 1])
        t, s = jnp.float64((step + 1) / 50), jnp.float64(step / 50)
        sampler = make_sampler(schedule)
        x_s, _ = sampler.step(lambda x, t, d=denoiser: d(x, t, {}), x_t, t, s, keys, sampler.init(x_t))
        results.append(np.asarray(x_s[0]))
    return np.stack(results), golden


@pytest.mark.parametrize("clipped", ["clip", "noclip"])
@pytest.mark.parametrize(("mean", "name"), [("EPSILON", "eps"), ("START_X", "x0")])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_means_and_variances_equal_the_originals(variance, mean, name, clipped, given_noise, x64):
    quiet, golden = single_step(lambda schedule: ancestral(schedule, variance), name, clipped == "clip", 0.0)
    close_to_largest(quiet, golden[f"pmv_{mean}_FIXED_{variance.upper()}_{clipped}_mean"], 1e-5)
    noisy, _ = single_step(lambda schedule: ancestral(schedule, variance), name, clipped == "clip", 1.0)
    expected = np.where(golden["t"] > 0, golden[f"FIXED_{variance.upper()}_variance"], 0)  # masked in the last step
    np.testing.assert_allclose(((noisy - quiet) ** 2).mean(axis=(1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("eta", "name", "clipped", "key"),
    [
        (0.0, "eps", True, "ddim_sample_eta0p0_sample"),
        (0.5, "eps", True, "ddim_sample_eta0p5_sample"),
        (1.0, "eps", True, "ddim_sample_eta1p0_sample"),
        (1.0, "eps", False, "ddim_sample_noclip_eta1_sample"),
        (0.5, "x0", True, "ddim_sample_eta0p5_START_X_sample"),
    ],
)
def test_ddim_steps_equal_the_originals(eta, name, clipped, key, given_noise, x64):
    noise = np.load(GOLDEN / "ddpm_single_steps.npz")["ddim_sample_noise"].astype(np.float64)
    x_s, golden = single_step(lambda schedule: ddim(schedule, eta), name, clipped, noise)
    close_to_largest(x_s, golden[key], 1e-5)


@pytest.mark.parametrize(
    ("make_sampler", "spacing", "key"),
    [
        (lambda schedule: ancestral(schedule, "small"), "20", "ddpm20_FIXED_SMALL"),
        (lambda schedule: ancestral(schedule, "large"), "20", "ddpm20_FIXED_LARGE"),
        (lambda schedule: ancestral(schedule, "learned_range"), "20", "ddpm20_LEARNED_RANGE"),
        (ddim, "ddim20", "ddim20_eta0p0"),
        (lambda schedule: ddim(schedule, 0.5), "ddim20", "ddim20_eta0p5"),
        (lambda schedule: ddim(schedule, 1.0), "ddim20", "ddim20_eta1p0"),
    ],
)
def test_a_respaced_grid_equals_the_originals_respaced_loop(make_sampler, spacing, key, given_noise, x64):
    golden = np.load(GOLDEN / "ddpm_ddim_loops.npz")
    exact = mixture(golden, DDPM)
    denoiser = clip_x0(lambda x, t, cond: exact(x, t, cond)._replace(raw_variance=jnp.tanh(2 * x)), DDPM)
    noise = golden[f"{key}_noise"] if f"{key}_noise" in golden else np.zeros((20, 2))
    made = states(make_sampler(DDPM), denoiser, golden["x_T"], grids.respaced(1000, spacing), noise)
    np.testing.assert_allclose(made, golden[f"{key}_samples"], atol=2e-5)


def test_ddim_reversed_equals_the_originals_encoding(x64):
    golden = np.load(GOLDEN / "ddpm_ddim_loops.npz")
    upwards = grids.respaced(1000, "ddim20")[:-1][::-1]  # x0 is taken for the state at the first of the table's times
    made = states(ddim(DDPM), clip_x0(mixture(golden, DDPM), DDPM), golden["encode_x_0"], upwards)
    np.testing.assert_allclose(made, golden["encode_ddim20_samples"][:19], atol=2e-5)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_plms_equals_crowsons(order, x64):
    golden = np.load(GOLDEN / "plms.npz")
    made = states(plms(DDPM, order), mixture(golden, DDPM), golden["x_T"], grids.respaced(1000, "20"))
    np.testing.assert_allclose(made, golden[f"order{order}"], atol=2e-5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (euler, "euler"),
        (ddim, "euler"),
        (functools.partial(heun, coordinate="edm_sigma"), "heun"),
        (lms, "lms"),
        (dpmpp_2m, "dpmpp_2m"),
        (euler_ancestral, "euler_ancestral"),
    ],
)
def test_runs_equal_k_diffusions(make, key, given_noise, x64):
    golden = np.load(GOLDEN / "k_diffusion.npz")
    sigmas = golden["sigmas"]
    schedule = functools.partial(schedules.edm, sigma_max=float(sigmas[0]))
    noise = np.zeros((10, 2))
    if key == "euler_ancestral":  # none is drawn in the step to the data
        noise = np.concatenate([golden["euler_ancestral_noise"], np.zeros((1, *golden["x_init"].shape))])
    grid = jnp.asarray(sigmas / sigmas[0])
    made = states(make(schedule), mixture(golden, schedule), golden["x_init"], grid, noise)
    np.testing.assert_allclose(made[-1], golden[f"{key}_out"], atol=1e-10)


@pytest.mark.parametrize(("make", "key"), [(dpmpp_2m, "dpmpp2m_10"), (unipc, "unipc_10"), (ddim, "ddim_10")])
def test_variance_preserving_runs_equal_diffusers(make, key, x64):
    golden = np.load(GOLDEN / "diffusers.npz")
    sigmas = jnp.asarray(golden[f"{key}_sigmas"], float)
    grid = jnp.append(schedules.time_at(DDPM, -2 * jnp.log(sigmas[sigmas > 0])), 0.0)
    made = states(make(DDPM), mixture(golden, DDPM), golden["unit_noise"], grid)
    np.testing.assert_allclose(made, golden[f"{key}_samples"], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "key"), [(euler, "euler_10"), (lms, "lms_10"), (functools.partial(heun, coordinate="edm_sigma"), "heun_8")]
)
def test_variance_exploding_runs_equal_diffusers(make, key, x64):
    golden = np.load(GOLDEN / "diffusers.npz")
    sigmas = golden[f"{key}_sigmas"].astype(float)
    schedule = functools.partial(schedules.edm, sigma_max=sigmas[0])
    begin = golden["unit_noise"] * np.sqrt(sigmas[0] ** 2 + 1)
    made = states(make(schedule), mixture(golden, schedule), begin, jnp.asarray(sigmas / sigmas[0]))
    # The original starts from its own float32 product of noise and sigma, about 150 large.
    np.testing.assert_allclose(made[-1], golden[f"{key}_samples"], atol=1e-4)


def test_flow_matchings_euler_equals_diffusers(x64):
    golden = np.load(GOLDEN / "diffusers.npz")
    grid, schedule = jnp.asarray(golden["flow_euler_10_sigmas"], float), schedules.linear_path
    made = states(euler(schedule), mixture(golden, schedule), golden["unit_noise"], grid)
    np.testing.assert_allclose(made, golden["flow_euler_10_samples"], atol=1e-5)
