"""k-diffusion's Euler ancestral sampler."""

from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.schedules import Schedule


def euler_ancestral(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """An Euler step in edm_sigma to a level below s, then fresh noise back up to s. With e = edm_sigma,

        e_up = eta sqrt(e_s^2 (e_t^2 - e_s^2) / e_t^2),   e_down = sqrt(e_s^2 - e_up^2),
        x_s / alpha_s = x_t / alpha_t + (e_down - e_t) eps + e_up z.

    With x_t / alpha_t = x0 + e_t eps this is x0 + e_down eps + e_up z: DDIM with the same eta, for any schedule. It has a
    name of its own because people ask for it by that name. Order: 1 at eta = 0; 1 in distribution at eta = 1.

    Args:
      schedule: the forward process.
      eta: share of noise in [0, 1]; 0 is `ddim`.

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Karras et al. 2022 as read by k-diffusion's sample_euler_ancestral; Song et al. 2021 (DDIM), eq. 16.
    """
    return ddim(schedule, eta)
