"""One request's way without the page: what is said meanwhile, who leaves, and what the editor holds."""

import asyncio

import numpy as np
import pytest

from diffusion_jax.app import site, view
from diffusion_jax.app.batching import Job
from diffusion_jax.app.requests import Request
from diffusion_jax.app.tickets import BASE, Made, Progress, Ticket
from diffusion_jax.errors import UserError


class Line:
    """A service whose one ticket is moved by hand."""

    def __init__(self, number=2):
        self.ticket = Ticket(Request(number=number, seed=7), ("A note.",))
        self.ticket.job = Job("key", number, None)

    def submit(self, request):
        return self.ticket

    def ahead(self, ticket):
        return 3


def visit(line, steps):
    """What a visitor reads, as `steps` (functions of the line) happen one after the other; the last one leaves."""

    async def run():
        read, following = [], site.follow(site.Site(line, None, "runs/x", None), line.ticket.request)
        for step in [None, *steps]:
            if step:
                step(line)
            read.append(await anext(following))
        await following.aclose()
        return read

    return asyncio.run(run())


def told(step, shown=None, compiling=False):
    def happen(line):
        line.ticket.job.progress = Progress(BASE, step, 20, shown, 5, compiling)

    return happen


def test_a_visitor_reads_how_far_the_request_is_and_sees_the_pictures():
    pictures = np.zeros((2, 8, 8, 3), np.uint8)

    def answered(line):
        line.ticket.finish((Made(pictures, 7, 16),))

    lines = visit(Line(), [told(0, compiling=True), told(10, pictures), answered])
    texts = [text for text, _ in lines]
    assert "3 requests before yours in the line." in texts[0]
    assert "it is compiled first, together with 5 for others." in texts[1]
    assert "step 10 of 20" in texts[2] and texts[2].count(view.data_uri(pictures[0])) == 2
    assert "in one batch with 5 for others; seed 7." in texts[3] and "A note." in texts[3]
    assert [answer is not None for _, answer in lines] == [False, False, False, True]


def test_who_leaves_gives_the_place_up():
    line = Line()
    visit(line, [])
    assert line.ticket.answer.cancelled() and line.ticket.job.future.cancelled()


def test_a_failure_reaches_the_visitor():
    line = Line()
    with pytest.raises(ValueError, match="broken"):
        visit(line, [lambda line: line.ticket.fail(ValueError("broken"))])


def test_what_visitors_write_is_no_html():
    assert "<script>" not in view.sentence("<script>alert(1)</script>")


def test_a_small_picture_is_enlarged_without_smoothing_and_a_large_one_is_not():
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(view.for_the_eye(small)[::24, ::24], small)
    assert view.for_the_eye(small).shape == (384, 384, 3)
    assert view.for_the_eye(np.zeros((500, 500, 1), np.uint8)).shape == (500, 500, 3)


@pytest.mark.parametrize(
    ("fields", "edit"),
    [
        ({}, ""),
        ({"picture": "p.png", "mask": "m.png"}, "repainted"),
        ({"picture": "p.png", "strength": 0.6, "enlarge": True}, "redrawn, strength 0.6, enlarged"),
    ],
)
def test_the_table_tells_the_edit(fields, edit):
    asked = vars(Request(prompt="a star", seed=7, **fields))
    row = site.row_of({"time": "12:00:00", "request": asked, "seconds": 1.234}, "text")
    assert dict(zip(site.COLUMNS, row, strict=True)) == {
        "time": "12:00:00",
        "prompt": "a star",
        "pictures": 4,
        "guidance": 1.0,
        "sampler": "ddim",
        "steps": 20,
        "seed": 7,
        "edit": edit,
        "seconds": 1.2,
    }


def test_the_editors_picture_comes_at_its_own_size_with_what_is_painted():
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    large = np.dstack([small.repeat(24, 0).repeat(24, 1), np.full((384, 384), 255, np.uint8)])
    layer = np.zeros((384, 384, 4), np.uint8)
    layer[30:50, 100:101, 3] = 255  # rows 1 and 2 of the small picture, column 4
    picture, mask = site.painted({"background": large, "layers": [layer]}, (16, 32))
    np.testing.assert_array_equal(picture, small)
    assert mask.shape == (16, 16) and set(zip(*np.nonzero(mask), strict=True)) == {(1, 4), (2, 4)}
    assert site.painted({"background": large, "layers": []}, (16,))[1] is None
    clear = np.zeros((20, 20, 4), np.uint8)
    np.testing.assert_array_equal(site.painted({"background": clear}, (16,))[0], 255)
    for nothing in (None, {"background": None}):
        with pytest.raises(UserError, match="There is no picture to repaint"):
            site.painted(nothing, (16,))
