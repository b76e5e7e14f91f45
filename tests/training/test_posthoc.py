"""Averages made after training, against those that were computed along the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import ema, posthoc

LENGTH, EVERY = 4000, 250
KEPT = (0.05, 0.10)


def averages(trajectory, std):
    """The recursion's own average after each step, in double precision."""
    average, seen = np.zeros_like(trajectory[0]), []
    gamma = ema.power_gamma(std)
    for i, value in enumerate(trajectory):
        average = average + (1 - (1 - 1 / (i + 1)) ** (gamma + 1)) * (value - average)
        seen.append(average)
    return np.array(seen)


TRAJECTORIES = {
    "a line": np.arange(1.0, LENGTH + 1)[:, None] * np.ones(3) / LENGTH,
    "a random walk": np.cumsum(np.random.default_rng(0).normal(size=(LENGTH, 3)), axis=0) / LENGTH**0.5,
}


def write(workdir, trajectory, every=EVERY, first_step=0):
    snapshots = posthoc.Snapshots(workdir, KEPT, first_step)
    seen = [averages(trajectory, std) for std in KEPT]
    for step in range(first_step + every, len(trajectory) + 1, every):
        snapshots.write(step, [{"w": {"k": jnp.asarray(each[step - 1])}} for each in seen])


TEMPLATE = {"w": {"k": jax.ShapeDtypeStruct((3,), jnp.float32)}}


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
@pytest.mark.parametrize("std", [0.05, 0.07, 0.13, 0.2])
def test_an_average_made_afterwards_is_the_one_that_training_would_have_kept(tmp_path, trajectory, std):
    values = TRAJECTORIES[trajectory]
    write(tmp_path, values)
    made = posthoc.reconstruct(tmp_path, LENGTH, std, TEMPLATE)
    want = averages(values, std)[-1]
    nearest = min(np.abs(averages(values, kept)[-1] - want).max() for kept in KEPT if kept != std)
    assert np.abs(made["w"]["k"] - want).max() < nearest / 20, "far nearer than the kept ones are"
    np.testing.assert_allclose(made["w"]["k"], want, atol=5e-3)


def test_an_average_can_be_made_of_an_earlier_step(tmp_path, capsys):
    values = TRAJECTORIES["a random walk"]
    write(tmp_path, values)
    made = posthoc.reconstruct(tmp_path, 2100, 0.13, TEMPLATE)
    assert "at step 2000, of 16 averages in 8 snapshots" in capsys.readouterr().out
    np.testing.assert_allclose(made["w"]["k"], averages(values[:2000], 0.13)[-1], atol=5e-3)


@pytest.mark.parametrize("std", [0.02, 0.13, 0.28])
def test_parameters_that_stand_still_are_given_back_however_few_the_snapshots(tmp_path, std):
    write(tmp_path, np.full((300, 3), 7.0), every=100)
    made = posthoc.reconstruct(tmp_path, 300, std, TEMPLATE)
    np.testing.assert_allclose(made["w"]["k"], 7.0, rtol=1e-6)


def test_overlaps_are_the_integrals_of_the_products():
    s = (np.arange(200_000) + 0.5) / 200_000

    def weights(t, gamma):
        return np.where(s <= t, (gamma + 1) * s**gamma / t ** (gamma + 1), 0)

    for a, b in [((0.3, 17.0), (1.0, 7.0)), ((1.0, 17.0), (0.3, 7.0)), ((0.5, 2.0), (0.5, 5.0))]:
        integral = np.mean(weights(*a) * weights(*b))
        np.testing.assert_allclose(posthoc.overlaps(*a, *b), integral, rtol=1e-4)


def test_a_mix_of_a_kept_average_is_itself():
    mix = posthoc.mixture([1000, 1000, 2000, 2000], [0.05, 0.1, 0.05, 0.1], 2000, 0.1)
    np.testing.assert_allclose(mix, [0, 0, 0, 1], atol=1e-6)


def test_a_resumed_run_drops_the_snapshots_that_it_will_write_again(tmp_path):
    values = TRAJECTORIES["a line"][:1000]
    write(tmp_path, values)
    assert posthoc.steps_of(tmp_path) == [250, 500, 750, 1000]
    posthoc.Snapshots(tmp_path, KEPT, first_step=600)
    assert posthoc.steps_of(tmp_path) == [250, 500]


def test_what_cannot_be_made_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no snapshot up to step 100: .*posthoc_stds"):
        posthoc.reconstruct(tmp_path, 100, 0.1, TEMPLATE)
    write(tmp_path, TRAJECTORIES["a line"][:500])
    with pytest.raises(UserError, match="--ema_std=0.4: .*below 0.289"):
        posthoc.reconstruct(tmp_path, 500, 0.4, TEMPLATE)
    with pytest.raises(UserError, match="another network: w/k does not fit"):
        posthoc.reconstruct(tmp_path, 500, 0.1, {"w": {"k": jax.ShapeDtypeStruct((4,), jnp.float32)}})
