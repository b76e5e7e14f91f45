"""The model behind the page: batches of several visitors, what does not compile anew, and that sample.py repeats it."""

import dataclasses
import itertools
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import saved

from diffusion_jax import build, sampling
from diffusion_jax.app import requests, results
from diffusion_jax.app.requests import Limits, Request
from diffusion_jax.app.service import Service
from diffusion_jax.app.tickets import BASE
from diffusion_jax.errors import UserError

LIMITS = Limits(number=4, steps=6, guidance_scale=10.0)
RED = Request(prompt="a large red circle", number=1, guidance_scale=2.0, num_steps=4, sampler="ddim", seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    return {
        "base": saved(folder / "base"),
        "upsampler": saved(folder / "upsampler", **{"data.image_size": 32, "model.low_res": 16}),
        "large": saved(folder / "large", **{"data.image_size": 32}),
        "label": saved(folder / "label", **{"model.condition": "label"}),
    }


@pytest.fixture(scope="module")
def service(made):
    service = Service(sampling.load(made["base"], {}), sampling.load(made["upsampler"], {}), LIMITS, (2, 8))
    yield service
    service.close()


@pytest.fixture
def given(tmp_path):
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (16, 16, 3), np.uint8), np.zeros((16, 16), bool)
    mask[4:12, 2:9] = True
    return picture, mask, results.save_input(tmp_path, picture, mask)


def answer(service, request):
    return service.submit(request).answer.result(120)


def together(service, asked):
    """Answers of requests that are in the line at once, whatever came between them and the thread."""
    keyed = [(request, *service._prepared(BASE, request, None)) for request in asked]
    assert len({key for _, key, _ in keyed}) == 1, "they would not be of one batch"
    return [made.pictures for made in service._run(keyed[0][1], [rows for *_, rows in keyed], lambda progress: None)]


OTHERS = [
    Request(prompt="a small blue star", number=3, guidance_scale=7.5, num_steps=4, sampler="ddim", seed=11),
    Request(prompt="", number=2, guidance_scale=0.0, num_steps=4, sampler="ddim", seed=3),
    Request(prompt="a ring", number=1, guidance_scale=1.0, num_steps=4, sampler="ddim", seed=2**32 - 1),
]


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_picture_does_not_depend_on_who_shares_its_batch(service, sampler):
    mine, *others = (dataclasses.replace(request, sampler=sampler) for request in (RED, *OTHERS))
    alone = together(service, [mine, mine, mine])[0]  # a batch of eight rows too
    for company in ([mine, *others], [*others, mine], [*others[::-1], mine]):
        shared = together(service, company)
        np.testing.assert_array_equal(shared[company.index(mine)], alone)
    small = together(service, [mine])[0]  # the smaller program: rounding may differ
    assert np.abs(small.astype(int) - alone).max() <= 1
    for one, other in itertools.combinations(together(service, others), 2):
        assert (one[0] != other[0]).any()


def test_requests_at_once_are_one_batch_and_each_gets_its_own(service):
    tickets = [service.submit(request) for request in (RED, *OTHERS)]
    answers = [ticket.answer.result(120) for ticket in tickets]
    assert [len(answer.pictures) for answer in answers] == [1, 3, 2, 1]
    assert max(answer.made[0].rows for answer in answers) > 3
    assert {answer.made[0].batch_size for answer in answers} <= {2, 8}


def test_other_steps_prompts_seeds_scales_and_sizes_compile_nothing_new(service, monkeypatch):
    asked = [(1, 2), (2, 6), (3, 1), (4, 5)]
    for number, steps in asked:
        answer(service, dataclasses.replace(RED, number=number))
        build.grid(service._at(BASE, "ddim", steps))  # its few numbers have a tiny program of their own
    compiled = []
    monkeypatch.setattr("jax._src.compiler.backend_compile_and_load", lambda *args, **kwargs: compiled.append(args))
    for i, (number, steps) in enumerate(asked):
        fields = {"prompt": "x " * i, "number": number, "num_steps": steps, "seed": i, "guidance_scale": float(i)}
        answer(service, dataclasses.replace(RED, **fields))
    assert not compiled


def command_of(service, made, request, out, enlarge=None):
    line = requests.command(request, made["base"], enlarge, "text", service.step_flags(request.num_steps))
    words = [sys.executable, *shlex.split(line)[1:], f"--out={out}"]
    subprocess.run(words, check=True, capture_output=True)
    return np.load(out / "samples.npz")["arr_0"].astype(int)


@pytest.mark.slow
def test_sample_py_makes_the_same_pictures_by_the_command_that_is_shown(service, made, given, tmp_path):
    picture, _, (path, mask) = given
    request = dataclasses.replace(RED, number=2, num_steps=5, picture=path, mask=mask, strength=0.6, enlarge=True)
    got = answer(service, request)
    assert got.pictures.shape == (2, 32, 32, 3)
    assert np.abs(command_of(service, made, request, tmp_path / "again", made["upsampler"]) - got.pictures).max() <= 2


def test_what_is_not_painted_stays_to_the_last_bit(service, given):
    picture, mask, (path, mask_path) = given
    got = answer(service, dataclasses.replace(RED, number=2, picture=path, mask=mask_path)).pictures
    for one in got:
        np.testing.assert_array_equal(one[~mask], picture[~mask])
        assert (one[mask] != picture[mask]).any()


def test_a_whole_picture_is_redrawn_as_far_as_its_strength(service, given):
    picture, _, (path, _) = given
    weak, strong = (
        answer(service, dataclasses.replace(RED, picture=path, strength=strength)).pictures[0].astype(int)
        for strength in (0.25, 1.0)
    )
    assert (strong == answer(service, RED).pictures[0]).mean() > 0.99  # from pure noise, nothing of the picture is left
    assert np.abs(weak - picture).mean() < np.abs(strong - picture).mean()


def test_both_stages_are_told_and_the_small_pictures_are_kept(service):
    ticket = service.submit(dataclasses.replace(RED, enlarge=True))
    got = ticket.answer.result(120)
    assert [made.pictures.shape for made in got.made] == [(1, 16, 16, 3), (1, 32, 32, 3)]
    progress = ticket.job.progress
    assert (progress.stage, progress.step, progress.num_steps) == ("upsampler", 4, 4)
    assert progress.shown.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(progress.shown, got.pictures)  # ddim's last x0 is the picture


def test_an_error_in_a_stage_reaches_its_visitor_and_no_other(service, monkeypatch):
    monkeypatch.setattr(service, "_models", {BASE: service.model, "upsampler": None})
    broken = service.submit(dataclasses.replace(RED, enlarge=True))
    with pytest.raises(AttributeError):
        broken.answer.result(120)
    assert len(answer(service, RED).pictures) == 1


def test_a_visitor_who_leaves_gives_the_place_up(service):
    tickets = [service.submit(dataclasses.replace(RED, seed=i, num_steps=6)) for i in range(3)]
    gone = service.submit(dataclasses.replace(RED, num_steps=3, enlarge=True))
    gone.cancel()
    assert gone.answer.cancelled()
    assert [len(ticket.answer.result(120).pictures) for ticket in tickets] == [1, 1, 1]


def test_warming_compiles_every_size_and_then_says_so(made):
    service = Service(sampling.load(made["base"], {}), None, LIMITS, (1, 2))
    service.warm()
    for job in service._warming:
        job.future.result(120)
    assert service.ready
    with jax.log_compiles(False), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr("jax._src.compiler.backend_compile_and_load", lambda *args, **kwargs: compiled.append(args))
        ticket = service.submit(dataclasses.replace(service.default, number=2))
        ticket.answer.result(120)
    assert not compiled and not ticket.job.progress.compiling
    service.close()


def test_what_the_model_cannot_do_is_a_sentence(service, made):
    for fields, sentence in (
        ({"number": 5}, "number of pictures must be a number from 1 to 4"),
        ({"sampler": "plms"}, "no sampler 'plms'"),  # it cannot begin at pure noise
        ({"picture": "/no/such.png"}, "No such file"),
    ):
        with pytest.raises(UserError, match=sentence):
            service.submit(dataclasses.replace(RED, **fields))
    assert answer(service, dataclasses.replace(RED, prompt="red " * 40)).notes[0].startswith("The prompt has ")
    assert "empty" in answer(service, dataclasses.replace(RED, prompt="")).notes[0]
    with pytest.raises(UserError, match="is an upsampler"):
        Service(sampling.load(made["upsampler"], {}))
    with pytest.raises(UserError, match="enlarges pictures of 16 pixels, and --checkpoint makes 32"):
        Service(sampling.load(made["large"], {}), sampling.load(made["upsampler"], {}))


def test_classes_are_asked_by_number(made):
    service = Service(sampling.load(made["label"], {}), None, LIMITS, (2,))
    first, second = (
        answer(service, dataclasses.replace(service.default, number=1, label=label)).pictures for label in (0, 5)
    )
    assert (first != second).any()
    with pytest.raises(UserError, match="from 0 to 7; got 8"):
        service.submit(dataclasses.replace(service.default, label=8))
    service.close()


def test_pictures_are_shown_as_they_form(service, given, monkeypatch):
    seen = []
    original = service._batcher._run
    monkeypatch.setattr(
        service._batcher,
        "_run",
        lambda key, payloads, report: original(key, payloads, lambda told: (seen.append(told[0]), report(told))),
    )
    final = answer(service, dataclasses.replace(RED, num_steps=6)).pictures
    assert [told.step for told in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert seen[0].shown is None
    distances = [np.abs(told.shown.astype(int) - final).mean() for told in seen[1:]]
    assert distances[-1] == 0 and min(distances[:-1]) > 0
