"""Repainting round after round: where windows lie around a picture, and what masks and borders say."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.sampling import rounds


@pytest.mark.parametrize(
    ("border", "places"),
    [
        ((0, 0, 4, 0), [(0, 4)]),  # to the right, half a window
        ((3, 0, 0, 0), [(0, 0)]),
        ((0, 0, 9, 0), [(0, 4), (0, 8), (0, 9)]),
        ((0, 6, 0, 0), [(2, 0), (0, 0)]),
        ((4, 0, 0, 4), [(0, 0), (4, 4), (4, 0)]),  # sideways first, then below, from the picture outwards
    ],
)
def test_windows_go_outwards_half_over_what_is_drawn(border, places):
    assert rounds.windows((8, 8), border) == places


@pytest.mark.parametrize("border", [(16, 0, 16, 0), (5, 7, 1, 30), (1, 1, 1, 1), (0, 0, 0, 3), (40, 40, 0, 0)])
def test_windows_draw_the_whole_border_and_each_sees_something_known(border):
    _, known = rounds.canvas(np.zeros((8, 16, 3), np.uint8), border, 1)
    for top, left in rounds.windows((8, 16), border):
        window = known[top : top + 8, left : left + 16]
        assert window.shape == (8, 16)
        assert window.mean() >= 0.25 and not window.all()
        window[:] = True
    assert known.all()


def test_the_canvas_holds_the_picture_within_grey():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    whole, known = rounds.canvas(picture, (1, 2, 3, 4), 2)
    assert whole.shape == (2, 14, 12, 3)
    np.testing.assert_array_equal(whole[1, 2:10, 1:9], picture)
    np.testing.assert_array_equal(whole[0][~known], 127)
    assert known.sum() == 64 and known[2:10, 1:9].all()


@pytest.mark.parametrize("values", [(1, 2, 3), (0, 0, 0, 0), (-1, 0, 0, 2), (1.5, 0, 0, 0)])
def test_margins_that_are_no_border_are_told(values):
    with pytest.raises(UserError, match="wants LEFT,TOP,RIGHT,BOTTOM in whole pixels"):
        rounds.margins(values)
    assert rounds.margins((1.0, 0.0, 2.0, 0.0)) == (1, 0, 2, 0)
