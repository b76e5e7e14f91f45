"""What the tests of samplers share: the table of samplers, the Gaussian problem, and noise that a test can give."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from analytic import gaussian_denoiser

from diffusion_jax import samplers
from diffusion_jax.keys import keys_per_example
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpmpp_2m import dpmpp_2m
from diffusion_jax.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion_jax.samplers.dpmpp_3m_sde import dpmpp_3m_sde
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.euler_ancestral import euler_ancestral
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.lms import lms
from diffusion_jax.samplers.midpoint import midpoint
from diffusion_jax.samplers.plms import plms
from diffusion_jax.samplers.unipc import unipc

# Noisy methods of one step, whose moments on Gaussian data can be followed exactly; then those that remember.
ONE_STEP_NOISY = {
    "ancestral_small": lambda schedule: ancestral(schedule, "small"),
    "ancestral_large": lambda schedule: ancestral(schedule, "large"),
    "ddim_eta_half": lambda schedule: ddim(schedule, 0.5),
    "ddim_eta_one": lambda schedule: ddim(schedule, 1.0),
    "euler_ancestral": euler_ancestral,
    "heun_churn": lambda schedule: heun(schedule, churn=4.0, num_steps=60),
}
MULTISTEP_NOISY = {
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": lambda schedule: dpmpp_2m_sde(schedule, solver="heun"),
    "dpmpp_3m_sde": dpmpp_3m_sde,
}
NOISY = ONE_STEP_NOISY | MULTISTEP_NOISY
# Deterministic methods with the order that each claims for even steps of log SNR, from the noise to the last time above 0.
ORDERS = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "heun": (heun, 2),
    "heun_edm_sigma": (functools.partial(heun, coordinate="edm_sigma"), 2),
    "midpoint": (midpoint, 2),
    "plms_1": (lambda schedule: plms(schedule, 1), 1),
    "plms_2": (lambda schedule: plms(schedule, 2), 2),
    "plms": (plms, 2),
    "lms_2": (lambda schedule: lms(schedule, 2), 2),
    "lms": (lms, 3),
    "dpmpp_2m": (dpmpp_2m, 2),
    "dpmpp_2m_sde_eta_0": (lambda schedule: dpmpp_2m_sde(schedule, 0.0), 2),
    "dpmpp_2m_sde_heun_eta_0": (lambda schedule: dpmpp_2m_sde(schedule, 0.0, "heun"), 2),
    "dpmpp_3m_sde_eta_0": (lambda schedule: dpmpp_3m_sde(schedule, 0.0), 2),
    "unipc_1": (lambda schedule: unipc(schedule, 1), 2),
    "unipc": (unipc, 3),
    "unipc_3": (lambda schedule: unipc(schedule, 3), 4),
    "unipc_bh1": (lambda schedule: unipc(schedule, 2, "bh1"), 3),
}
# The one table of samplers: what joins it here is held to every test that takes it.
SAMPLERS = NOISY | {name: make for name, (make, _) in ORDERS.items()}

MEAN, VARIANCE = np.array([[0.5, -0.3, 0.0]]), np.array([[0.25, 0.05, 1.5]])


def start(dtype=None):
    return jnp.array([[0.7, -1.2, 0.4], [-0.5, 0.3, 2.0]], dtype)


def keys_of(count):
    return keys_per_example(jax.random.key(0), jnp.arange(count))


def gaussian(schedule):
    return gaussian_denoiser(schedule, jnp.asarray(MEAN), jnp.asarray(VARIANCE))


def give_noise(monkeypatch):
    """Keys are the noise itself, so that a test can give it: [B, ...] to a step, [N, B, ...] to a run."""
    for name in ("ancestral", "ddim", "heun", "dpmpp_2m_sde", "dpmpp_3m_sde"):
        module = importlib.import_module(f"diffusion_jax.samplers.{name}")
        monkeypatch.setattr(module, "normal_per_example", lambda keys, shape, dtype: keys)
    monkeypatch.setattr(samplers, "fold_in", lambda keys, i: keys[i])
