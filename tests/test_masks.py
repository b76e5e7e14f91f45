"""Random masks: each kind's shape, and that a mask is a function of its own key."""

import jax
import numpy as np
import pytest

from diffusion_jax import masks

KEYS = jax.random.split(jax.random.key(0), 400)


def erased_by(kind, height=24, width=32):
    return np.asarray(jax.vmap(lambda key: kind(key, height, width))(KEYS))


def test_a_mask_is_one_where_the_picture_is_given_and_depends_on_its_own_key_alone():
    made = np.asarray(masks.random_masks(KEYS, 24, 32))
    assert made.shape == (400, 24, 32, 1) and set(np.unique(made)) == {0.0, 1.0}
    np.testing.assert_array_equal(jax.jit(masks.random_masks, static_argnums=(1, 2))(KEYS[7:9], 24, 32), made[7:9])
    assert len(np.unique(made.reshape(400, -1), axis=0)) > 250


def test_every_kind_has_its_share():
    made = np.asarray(masks.random_masks(KEYS, 24, 32))[..., 0]
    found = dict.fromkeys(masks.KINDS, 0)
    shape_keys = jax.vmap(lambda key: jax.random.split(key)[1])(KEYS)
    shapes = {kind: np.asarray(jax.vmap(lambda key, kind=kind: kind(key, 24, 32))(shape_keys)) for kind in masks.KINDS}
    for i, mask in enumerate(made):
        (kind,) = [kind for kind in masks.KINDS if (shapes[kind][i] == (mask == 0)).all()][:1]
        found[kind] += 1
    for kind, share in masks.KINDS.items():
        assert abs(found[kind] / 400 - share) < 0.08
    assert sum(masks.KINDS.values()) == pytest.approx(1)


def test_a_box_is_a_full_rectangle_of_any_size_and_place():
    boxes, sizes = erased_by(masks.box), []
    for erased in boxes:
        rows, columns = np.nonzero(erased)
        assert erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        sizes.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    assert (low <= (4, 5)).all() and (high >= (22, 30)).all()
    often = boxes.mean(0)
    assert 0 < often.min() < often.max() < 0.7, "every pixel is erased now and then"
    assert abs(often[:12].mean() - often[12:].mean()) < 0.05


def test_a_half_is_all_beyond_a_line_on_each_of_the_four_sides():
    halves = erased_by(masks.half)
    edges = np.stack(
        [halves[:, 0].all(1), halves[:, -1].all(1), halves[:, :, 0].all(1), halves[:, :, -1].all(1)], axis=1
    )
    assert (edges.sum(1) == 1).all() and (edges.mean(0) > 0.15).all()
    shares = halves.mean((1, 2))
    assert 0.2 < shares.min() < 0.3 and 0.7 < shares.max() < 0.8
    assert all(len(np.unique(erased, axis=0)) == 1 or len(np.unique(erased, axis=1).T) == 1 for erased in halves)


def test_a_stroke_is_one_connected_piece_that_no_rectangle_is():
    strokes = erased_by(masks.stroke, 32, 32)
    shares = strokes.mean((1, 2))
    assert shares.min() > 0.05 and 0.15 < shares.mean() < 0.35 and shares.max() < 0.6
    boxes = 0
    for erased in strokes[:60]:
        assert pieces(erased) == 1
        rows, columns = np.nonzero(erased)
        boxes += erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    assert boxes == 0


def pieces(erased):
    """How many connected parts, across corners too, by flooding."""
    left, count = {tuple(place) for place in np.argwhere(erased)}, 0
    while left:
        count, waiting = count + 1, [left.pop()]
        while waiting:
            y, x = waiting.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
    return count


def test_the_distance_to_a_stroke_is_that_of_its_segment():
    starts, ends = np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([[1.0, 5.0], [2.0, 2.0]])
    y, x = np.array([[0.0], [1.0]]), np.array([[0.0, 3.0, 7.0]])
    got = np.asarray(masks._distance_squared(y, x, starts, ends))
    np.testing.assert_allclose(got[0], [[2, 1, 5], [1, 0, 4]], atol=1e-6)
    np.testing.assert_allclose(got[1], [[8, 5, 29], [5, 2, 26]], atol=1e-6)
