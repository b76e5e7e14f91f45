"""Diffusion of categories, by enumeration: every distribution of a tiny chain is written out as a matrix."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import discrete, schedules
from diffusion_jax.keys import keys_per_example

pytestmark = pytest.mark.usefixtures("strict_ranks")

T, K = 4, 3
PROCESSES = {
    "uniform": discrete.transition("uniform", K, np.array([0.1, 0.3, 0.2, 0.6])),
    "uniform_to_the_end": discrete.transition("uniform", K, schedules.jsd_betas(T)),
    "absorbing": discrete.transition("absorbing", K, schedules.jsd_betas(T)),
    "binomial": discrete.transition("uniform", 2, schedules.jsd_betas(T)),
}


def keys_of(count, seed=0):
    return keys_per_example(jax.random.key(seed), jnp.arange(count))


def matrix(process, step):
    """The step's transition matrix [from, to], from its definition."""
    size = len(process.base)
    beta = 1 - process.alpha_bar[step] / process.alpha_bar[step - 1]
    if process.kind == "uniform":
        return (1 - beta) * np.eye(size) + beta / size
    rows = (1 - beta) * np.eye(size)
    rows[:, -1] += beta
    return rows


def chain(process, step):
    """q(x_t | x_0) as a product of matrices."""
    return functools.reduce(np.matmul, (matrix(process, i) for i in range(1, step + 1)), np.eye(len(process.base)))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("step", range(T + 1))
def test_the_marginal_is_the_product_of_the_steps(name, step, x64):
    process = PROCESSES[name]
    x0 = jnp.arange(process.num_classes)[None]
    ours = discrete.marginal(process, x0, jnp.array([step]))[0]
    np.testing.assert_allclose(ours, chain(process, step)[: process.num_classes], atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("step", range(1, T + 1))
def test_the_posterior_is_bayes_on_the_enumerated_chain(name, step, x64):
    process = PROCESSES[name]
    before, last = chain(process, step - 1), matrix(process, step)
    for x0, x_t in itertools.product(range(process.num_classes), range(len(process.base))):
        joint = before[x0] * last[:, x_t]
        if joint.sum() > 0:
            ours = discrete.posterior(process, jnp.array([[x0]]), jnp.array([[x_t]]), jnp.array([step]))[0, 0]
            np.testing.assert_allclose(ours, joint / joint.sum(), atol=1e-12)


def test_the_posterior_of_two_classes_is_the_2015_papers(x64):
    process, step = discrete.transition("uniform", 2, np.array([0.2, 0.4, 0.5])), 2
    beta, kept = 0.4, process.alpha_bar[1]
    for x0, x_t in itertools.product((0, 1), (0, 1)):
        c = x_t * (1 - beta) + beta / 2  # rate of x_{t-1} = 1 as seen from x_t
        d = x0 * kept + (1 - kept) / 2  # rate of x_{t-1} = 1 as seen from x_0
        expected = c * d / (c * d + (1 - c) * (1 - d))
        ours = discrete.posterior(process, jnp.array([[x0]]), jnp.array([[x_t]]), jnp.array([step]))[0, 0, 1]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def exact_logits(process, data):
    """log p(x_0 | x_t) of independent dimensions with the distribution `data` [K]."""

    def logits(x_t, step):
        x0 = jnp.broadcast_to(jnp.arange(process.num_classes)[None, :], (x_t.shape[0], process.num_classes))
        likelihood = discrete.marginal(process, x0, step)  # [B, K, S]
        seen = jnp.take_along_axis(likelihood, jnp.broadcast_to(x_t[:, None, :], (*x0.shape, x_t.shape[1])), axis=2)
        return jnp.log(jnp.swapaxes(seen, 1, 2) * jnp.asarray(data)[None, None])  # [B, D, K]

    return logits


DATA = {2: np.array([0.7, 0.3]), 3: np.array([0.6, 0.3, 0.1])}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("step", range(1, T + 1))
def test_exact_logits_give_the_true_reverse_step(name, step, x64):
    process = PROCESSES[name]
    data = np.append(DATA[process.num_classes], np.zeros(len(process.base) - process.num_classes))
    joint = (data @ chain(process, step - 1))[:, None] * matrix(process, step)  # [x_{t-1}, x_t]
    logits = exact_logits(process, DATA[process.num_classes])
    for x_t in range(len(process.base)):
        if joint[:, x_t].sum() > 0:
            state = jnp.array([[x_t]])
            ours = discrete.model_step(process, logits(state, jnp.array([step])), state, jnp.array([step]))[0, 0]
            np.testing.assert_allclose(ours, joint[:, x_t] / joint[:, x_t].sum(), atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_expected_bound_of_the_exact_model_is_at_least_the_entropy_and_the_chains_own(name, x64):
    """In expectation the terms are mutual informations: the sum equals H(x_0) + the gap KL(q(x_T) || base), by the chain rule."""
    process = PROCESSES[name]
    data, logits = DATA[process.num_classes], exact_logits(process, DATA[process.num_classes])
    total = 0.0
    for step in range(1, T + 1):
        through = chain(process, step)
        for x0, x_t in itertools.product(range(process.num_classes), range(len(process.base))):
            probability = data[x0] * through[x0, x_t]
            if probability > 0:
                state, steps = jnp.array([[x_t]]), jnp.array([step])
                term = discrete.step_nats(process, logits(state, steps), jnp.array([[x0]]), state, steps)[0]
                total += probability * float(term)
    for x0 in range(process.num_classes):
        total += data[x0] * float(discrete.prior_nats(process, jnp.array([[x0]]))[0])
    last = np.append(data, np.zeros(len(process.base) - len(data))) @ chain(process, T)
    gap = (last[last > 0] * np.log(last[last > 0] / process.base[last > 0])).sum()
    np.testing.assert_allclose(total, -(data * np.log(data)).sum() + gap, rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_averages_to_its_expectation(name):
    process, count = PROCESSES[name], 4000
    data = DATA[process.num_classes]
    x0 = jax.random.categorical(jax.random.key(5), jnp.log(data), shape=(count, 2))
    bound = np.asarray(discrete.variational_bound(process, exact_logits(process, data), x0, keys_of(count)))
    last = np.append(data, np.zeros(len(process.base) - len(data))) @ chain(process, T)
    gap = (last[last > 0] * np.log(last[last > 0] / process.base[last > 0])).sum()
    expected = 2 * (-(data * np.log(data)).sum() + gap)
    assert abs(bound.mean() - expected) < 5 * bound.std() / np.sqrt(count)


@pytest.mark.parametrize("name", ["uniform_to_the_end", "absorbing", "binomial"])
def test_samples_of_the_exact_model_have_the_datas_distribution(name):
    process, count = PROCESSES[name], 4000
    data = DATA[process.num_classes]
    made = np.asarray(discrete.sample(process, exact_logits(process, data), 2, keys_of(count)))
    assert made.max() < process.num_classes  # no mask is left
    for k, p in enumerate(data):
        assert abs((made == k).mean() - p) < 5 * np.sqrt(p * (1 - p) / made.size)


def test_an_absorbing_process_masks_and_never_changes():
    process, x0 = PROCESSES["absorbing"], jnp.arange(300).reshape(100, 3) % K
    for step in range(T + 1):
        x_t = np.asarray(discrete.q_sample(process, x0, jnp.full(100, step), keys_of(100)))
        assert np.isin(x_t, [K]).mean() == pytest.approx(step / T, abs=0.15)
        np.testing.assert_array_equal(x_t[x_t != K], np.asarray(x0)[x_t != K])
    step = discrete.model_step(process, jnp.zeros((1, 2, K)), jnp.array([[1, K]]), jnp.array([2]))
    np.testing.assert_allclose(step[0, 0], [0, 1, 0, 0])  # what is unmasked stays, whatever the network says
    np.testing.assert_allclose(step[0, 1], [1 / 6, 1 / 6, 1 / 6, 1 / 2], rtol=1e-6)


@pytest.mark.parametrize("name", ["uniform_to_the_end", "binomial"])
@pytest.mark.parametrize("step", range(1, T + 1))
def test_the_reverse_steps_entropy_lies_within_its_bounds(name, step, x64):
    process = PROCESSES[name]
    low, high = discrete.reverse_entropy_bounds(process, step)
    for data in (
        DATA[process.num_classes],
        np.eye(process.num_classes)[0],
        np.full(process.num_classes, 1 / process.num_classes),
    ):
        joint = (data @ chain(process, step - 1))[:, None] * matrix(process, step)
        seen = joint.sum(0)
        entropy = -(joint[joint > 0] * np.log(joint[joint > 0])).sum() + (seen[seen > 0] * np.log(seen[seen > 0])).sum()
        assert low - 1e-12 <= entropy <= high + 1e-12


def test_a_draw_ignores_its_batch_mates_and_gradients_are_finite():
    process, x0, steps = PROCESSES["uniform"], jnp.arange(10).reshape(5, 2) % K, jnp.array([1, 2, 3, 4, 2])
    keys = keys_of(5)
    together = discrete.q_sample(process, x0, steps, keys)
    np.testing.assert_array_equal(together[2:3], discrete.q_sample(process, x0[2:3], steps[2:3], keys[2:3]))
    for process in PROCESSES.values():
        x0 = jnp.zeros((5, 2), int)
        x_t = discrete.q_sample(process, x0, steps, keys)

        def loss(logits, process=process, x0=x0, x_t=x_t):
            return discrete.step_nats(process, logits, x0, x_t, steps).sum()

        gradient = jax.grad(loss)(jnp.zeros((5, 2, process.num_classes)))
        assert np.isfinite(gradient).all()


def test_impossible_processes_are_refused():
    for arguments, message in (
        (("gaussian", 3, [0.1]), "kind must be one of"),
        (("uniform", 1, [0.1]), "too few"),
        (("uniform", 3, [0.0]), r"inside \(0, 1\]"),
        (("uniform", 3, []), "betas must be a vector"),
    ):
        with pytest.raises(ValueError, match=message):
            discrete.transition(arguments[0], arguments[1], np.array(arguments[2]))
    with pytest.raises(ValueError, match="uniform process"):
        discrete.reverse_entropy_bounds(PROCESSES["absorbing"], 1)
    assert np.isinf(
        discrete.prior_nats(discrete.transition("absorbing", 2, np.array([0.5])), jnp.zeros((1, 1), int))[0]
    )
