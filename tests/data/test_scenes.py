"""Scenes: pure draws, disjoint splits, captions that round-trip, exact rendering."""

import itertools
import random
from unittest import mock

import numpy as np
import pytest

from diffusion_jax.data import scenes


def captions(split: str, max_objects: int, count: int) -> set[str]:
    return {scenes.caption(scenes.describe(scenes.draw_scene(0, i, split, max_objects))) for i in range(count)}


def test_a_scene_depends_on_seed_and_index_alone():
    order = list(range(50))
    forwards = {i: scenes.draw_scene(3, i) for i in order}
    random.Random(0).shuffle(order)
    assert {i: scenes.draw_scene(3, i) for i in order} == forwards
    np.random.seed(1)  # the global stream plays no part
    assert scenes.draw_scene(3, 49) == forwards[49]


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "validation"}, {"max_objects": 1}, {"index": 1_000}])
def test_seeds_splits_and_indices_have_streams_of_their_own(other, monkeypatch):
    monkeypatch.setattr(scenes, "split_of", lambda _: mock.ANY)  # or refusals alone would part the streams

    def positions(**change):
        given = {"seed": 3, "index": 0, "split": "train", "max_objects": 2} | change
        start = given.pop("index")
        drawn = [scenes.draw_scene(index=start + i, **given) for i in range(200)]
        return [(scene.objects[0].x, scene.objects[0].y) for scene in drawn]

    assert not set(positions()) & set(positions(**other))


def test_colours_are_far_from_each_other_and_from_the_backgrounds():
    names = itertools.combinations({**scenes.COLOURS, **scenes.BACKGROUNDS}.values(), 2)
    assert min(np.linalg.norm(np.subtract(first, second)) for first, second in names) >= 110.0


def test_held_out_pairs_are_one_per_colour_and_one_per_shape():
    colours, shapes = zip(*scenes.HELD_OUT_PAIRS, strict=True)
    assert sorted(colours) == sorted(scenes.COLOURS)
    assert sorted(shapes) == sorted(scenes.SHAPES)


def pairs(scene: scenes.Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.objects}


@pytest.mark.parametrize("max_objects", [1, 2])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_pairs_are_never_drawn_outside_test(split, max_objects):
    seen = set().union(*(pairs(scenes.draw_scene(0, i, split, max_objects)) for i in range(2_000)))
    assert not seen & scenes.HELD_OUT_PAIRS
    if split == "train":
        assert len(seen) == 56  # all the others are


@pytest.mark.parametrize("max_objects", [1, 2])
def test_every_test_scene_has_a_held_out_pair(max_objects):
    assert all(pairs(scenes.draw_scene(0, i, "test", max_objects)) & scenes.HELD_OUT_PAIRS for i in range(500))


@pytest.mark.parametrize("max_objects", [1, 2])
def test_captions_of_validation_and_test_are_never_drawn_in_train(max_objects):
    train = captions("train", max_objects, 5_000)
    assert not train & captions("validation", max_objects, 1_000)
    assert not train & captions("test", max_objects, 1_000)


def test_one_or_two_objects_are_equally_frequent():
    counts = [len(scenes.draw_scene(0, i).objects) for i in range(2_000)]
    # Two objects are refused a little more often (two chances of a held-out pair): 1 / (1 + 7/8) = 0.533 have one.
    assert counts.count(1) / len(counts) == pytest.approx(0.533, abs=0.035)
    assert all(len(scenes.draw_scene(0, i, max_objects=1).objects) == 1 for i in range(200))


def test_objects_are_inside_apart_and_as_their_relation_says():
    signs = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
    for scene in (scenes.draw_scene(1, i) for i in range(2_000)):
        for thing in scene.objects:
            low, high = scenes.RADII[len(scene.objects)][thing.size]
            assert low <= thing.radius <= high
            reach = thing.radius + scenes.MARGIN - 1e-9
            assert reach <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= 1 - reach
        if scene.relation is not None:
            first, second = scene.objects
            axis, sign = signs[scene.relation]
            apart = np.array([second.x - first.x, second.y - first.y])
            assert sign * apart[axis] >= first.radius + second.radius + scenes.GAP - 1e-9
            assert abs(apart[1 - axis]) <= abs(apart[axis]) / 2 + 1e-9
            assert first.colour != second.colour


def all_descriptions():
    things = [scenes.ObjectWords(*words) for words in itertools.product(scenes.SIZES, scenes.COLOURS, scenes.SHAPES)]
    for background in scenes.BACKGROUNDS:
        for first in things:
            yield scenes.Description((first,), None, background)
            for second, relation in itertools.product(things, scenes.RELATIONS):
                if first.colour != second.colour:
                    yield scenes.Description((first, second), relation, background)


def test_every_caption_parses_back_to_its_description():
    count = 0
    for description in all_descriptions():
        assert scenes.parse_caption(scenes.caption(description)) == description
        count += 1
    assert count == 384 + 172_032


def test_captions_read_as_in_the_documentation():
    things = (scenes.ObjectWords("small", "blue", "diamond"), scenes.ObjectWords("large", "orange", "triangle"))
    text = "a small blue diamond above a large orange triangle on a white background"
    assert scenes.caption(scenes.Description(things, "above", "white")) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle on a black background",
        "a large red circle on a black background ",
        "a large red blob on a black background",
        "a large red circle above on a black background",
        "a large red circle above a small red star on a black background",
    ],
)
def test_what_is_no_caption_is_refused(text):
    with pytest.raises(ValueError, match=r"caption|different colours"):
        scenes.parse_caption(text)


def test_spread_keeps_a_lone_object_near_the_middle():
    middle = [scenes.draw_scene(0, i, max_objects=1, spread=0.0).objects[0] for i in range(50)]
    assert {(thing.x, thing.y) for thing in middle} == {(0.5, 0.5)}
    near, far = (
        np.std([scenes.draw_scene(0, i, max_objects=1, spread=spread).objects[0].x for i in range(500)])
        for spread in (0.3, 1.0)
    )
    assert near == pytest.approx(0.3 * far, rel=1e-6)


@pytest.mark.parametrize("change", [{"spread": 1.5}, {"split": "dev"}, {"max_objects": 3}, {"seed": -1}, {"index": -1}])
def test_arguments_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        scenes.draw_scene(**({"seed": 0, "index": 0} | change))


def test_coverage_of_a_square_is_right_by_hand():
    # Half a side is 0.9 * 0.25 * 10 = 2.25 pixels about 5: from 2.75 to 7.25.
    box, cover = scenes.coverage("square", 0.5, 0.5, 0.25, 10)
    side = np.array([0.25, 1, 1, 1, 1, 0.25])
    assert box == (slice(2, 8), slice(2, 8))
    np.testing.assert_allclose(cover, np.outer(side, side), atol=1e-9)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_coverage_is_that_of_many_samples(shape):
    x, y, radius, size, samples = 0.47, 0.52, 0.21, 24, 32
    grid = (np.arange(size * samples) + 0.5) / (size * samples)
    edges = scenes.shape_edges(shape) * radius + np.array([x, y, x, y])
    inside = np.zeros((len(grid), len(grid)), bool)
    for x0, y0, x1, y1 in edges:  # the even-odd rule: a ray to the right crosses the outline
        crosses = (y0 > grid) != (y1 > grid)
        at = x0 + (grid - y0) * (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
        inside ^= crosses[:, None] & (grid[None, :] < at[:, None])
    sampled = inside.reshape(size, samples, size, samples).mean(axis=(1, 3))
    exact = np.zeros((size, size))
    box, cover = scenes.coverage(shape, x, y, radius, size)
    exact[box] = cover
    np.testing.assert_allclose(exact, sampled, atol=0.04)
    assert exact.sum() == pytest.approx(scenes.shape_area(shape) * (radius * size) ** 2)
    centres = (np.arange(size) + 0.5) / size
    assert exact.sum(axis=0) @ centres / exact.sum() == pytest.approx(x, abs=2e-3)
    assert exact.sum(axis=1) @ centres / exact.sum() == pytest.approx(y, abs=2e-3)


@pytest.mark.parametrize("centre", [(0.02, 0.5), (0.99, 0.98), (-1.0, 0.5)])
def test_what_is_outside_the_image_is_cut_off(centre):
    box, cover = scenes.coverage("circle", *centre, 0.2, 32)
    whole = np.zeros((96, 96))
    inner, reference = scenes.coverage("circle", (centre[0] + 1) / 3, (centre[1] + 1) / 3, 0.2 / 3, 96)
    whole[inner] = reference
    image = np.zeros((32, 32))
    image[box] = cover
    np.testing.assert_allclose(image, whole[32:64, 32:64], atol=1e-9)


def test_a_render_rounds_to_the_nearest_grey_level():
    square = scenes.Object("red", "square", "large", 0.5, 0.5, 0.25)  # red is (215, 20, 40)
    image = scenes.render(scenes.Scene((square,), None, "black"), 10)
    assert image[2, 4].tolist() == [54, 5, 10]  # a quarter covered: 53.75, 5, 10
    assert image[2, 2].tolist() == [13, 1, 3]  # a sixteenth: 13.44, 1.25, 2.5
    assert image[0, 0].tolist() == [0, 0, 0]


def test_a_render_of_twice_the_size_averages_to_the_smaller_one():
    for i in range(200):
        scene = scenes.draw_scene(0, i)
        large = scenes.render(scene, 64).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        small = scenes.render(scene, 32)
        assert small.dtype == np.uint8
        assert small.shape == (32, 32, 3)
        assert np.abs(large - small).max() <= 1.0
