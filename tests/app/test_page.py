"""The page over HTTP, by Gradio's own client: it opens, draws, refuses with a sentence, and two visitors share a batch."""

import base64
import io
import pathlib
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tiny import saved

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from diffusion_jax import sampling  # noqa: E402
from diffusion_jax.app import page, site  # noqa: E402
from diffusion_jax.app.requests import Limits  # noqa: E402
from diffusion_jax.app.results import Results  # noqa: E402
from diffusion_jax.app.service import Service  # noqa: E402


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    checkpoint = saved(folder / "base")
    service = Service(sampling.load(checkpoint, {}), None, Limits(number=4, steps=6), (2, 8))
    opened = site.Site(service, Results(str(folder / "out")), checkpoint, None)
    blocks, address = page.serve(opened, "127.0.0.1", 0, wait=False)
    yield opened, address
    blocks.close()
    service.close()


@pytest.fixture(scope="module")
def client(served):
    return gradio_client.Client(served[1], verbose=False)


def test_it_opens_before_anything_is_compiled(served):
    text = urllib.request.urlopen(served[1]).read().decode()
    assert "diffusion_jax" in text
    assert "fonts.googleapis.com" not in text  # nothing is fetched from elsewhere


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_pictures_are_drawn_and_kept_with_their_command(served, client):
    answer = client.predict("a red star", 2, 2.0, 3, "ddim", 5, False, api_name="/draw")
    pictures = [decoded(uri) for uri in answer["pictures"]]
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 2
    for file, picture in zip(answer["files"], pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), picture)
    assert "--prompt='a red star' --num_samples=2 --seed=5 --sampler=ddim --num_steps=3" in answer["command"]
    assert answer["batch_rows"] == [2] and answer["batch_sizes"] == [2]
    assert pathlib.Path(answer["files"][0]).parent.parent == served[0].results.root


def test_a_bad_request_is_answered_with_a_sentence_and_leaves_no_folder(served, client):
    before = sorted(served[0].results.root.iterdir())
    with pytest.raises(Exception, match="The number of pictures must be a number from 1 to 4; got 99."):
        client.predict("a red star", 99, 2.0, 3, "ddim", 5, False, api_name="/draw")
    assert sorted(served[0].results.root.iterdir()) == before


def test_requests_at_once_share_a_batch_and_are_as_if_alone(client):
    jobs = [client.submit("a star", 2, 2.0, 5, "ddim", seed, False, api_name="/draw") for seed in range(4)]
    answers = [job.result(300) for job in jobs]
    assert max(answer["batch_rows"][0] for answer in answers) > 2
    for seed, answer in enumerate(answers):
        alone = client.predict("a star", 2, 2.0, 5, "ddim", seed, False, api_name="/draw")
        for uri, other in zip(answer["pictures"], alone["pictures"], strict=True):
            assert np.abs(decoded(uri).astype(int) - decoded(other)).max() <= 1
