import itertools

import numpy as np
import pytest

from diffusion_jax.data.pipeline import captions_of, train_batches

SOURCE = [{"image": np.full((2, 2, 3), i, np.uint8), "caption": f"number {i}".encode()} for i in range(10)]


def encode(example, rng=None):
    return {"image": example["image"], "value": np.int32(example["image"][0, 0, 0])}


def values(batches, count):
    return [batch["value"].tolist() for batch in itertools.islice(batches, count)]


def test_batches_from_a_later_step_are_those_of_the_straight_run():
    straight = values(train_batches(SOURCE, encode, 4, seed=3), 9)
    assert values(train_batches(SOURCE, encode, 4, seed=3, first_step=5), 4) == straight[5:]


def test_an_epoch_visits_every_example_once_and_the_next_in_another_order():
    flat = sum(values(train_batches(SOURCE, encode, 5, seed=0), 4), [])
    first, second = flat[:10], flat[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_seed_decides_the_order():
    assert values(train_batches(SOURCE, encode, 5, seed=0), 2) != values(train_batches(SOURCE, encode, 5, seed=1), 2)


def test_images_arrive_as_they_are_stored():
    batch = next(train_batches(SOURCE, encode, 3, seed=0))
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (3, 2, 2, 3)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["value"])


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="10 examples"):
        train_batches(SOURCE, encode, 11, seed=0)


def test_captions_are_text():
    assert captions_of(SOURCE, 2) == ["number 0", "number 1"]
