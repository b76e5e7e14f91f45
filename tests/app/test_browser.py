"""The page in a real browser, as a visitor uses it: a prompt, a picture, its enlargement, a brush, a part drawn anew."""

import io
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from tiny import saved

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Other models to look at the page with (both or neither: of captions, and one that enlarges), and a folder for pictures of it.
MODELS = tuple(os.environ[name] for name in ("APP_CHECKPOINT", "APP_UPSAMPLER") if name in os.environ)
SCREENSHOTS = os.environ.get("APP_SCREENSHOTS")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")]

from diffusion_jax import sampling  # noqa: E402
from diffusion_jax.app import page, site  # noqa: E402
from diffusion_jax.app.results import Results  # noqa: E402
from diffusion_jax.app.service import Service  # noqa: E402

SECONDS = 1000  # of playwright's milliseconds
BRUSH = (255, 77, 109)


class Unhurried(Service):
    """As slow as a model worth its page: the tiny one's forming pictures are gone before the page looks for them."""

    def _run(self, key, payloads, report):
        def slowly(progress):
            report(progress)
            if progress[0].shown is not None:
                time.sleep(1)

        return super()._run(key, payloads, slowly)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    enlarging = {"data.image_size": 32, "model.low_res": 16, "model.condition": "none"}
    base, upsampler = MODELS or (saved(folder / "base"), saved(folder / "upsampler", **enlarging))
    service = Unhurried(sampling.load(base, {}), sampling.load(upsampler, {}), batch_sizes=(4,))
    opened = site.Site(service, Results(str(folder / "out")), base, upsampler)
    service.warm()
    blocks, address = page.serve(opened, "127.0.0.1", 0, wait=False)
    yield opened, address
    blocks.close()
    service.close()


@pytest.fixture(scope="module")
def tab(served):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(300 * SECONDS)
        opened.goto(served[1])
        yield opened
        browser.close()


def screenshot(tab, name):
    if SCREENSHOTS:
        tab.screenshot(path=pathlib.Path(SCREENSHOTS) / f"app_{name}.png", full_page=True)


def newest(served):
    folder = sorted(served[0].results.root.iterdir())[-1]
    made = [np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]
    return folder, made


def draw(tab, prompt):
    tab.fill("#dj-draw-prompt textarea", prompt)
    tab.click("#dj-draw-button")
    tab.wait_for_selector(".dj-forming .dj-tile")
    tab.wait_for_timeout(0.3 * SECONDS)
    screenshot(tab, "forming")
    tab.wait_for_selector("#dj-gallery img")


def paint(tab):
    """A stroke over the middle of the editor's picture; again until it is seen, for the editor lays itself out at leisure."""
    canvas = tab.wait_for_selector("#dj-editor canvas")
    for _ in range(30):
        box = canvas.bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
        tab.mouse.down()
        for share in (0.4, 0.5, 0.6):
            tab.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * 0.5, steps=5)
        tab.mouse.up()
        tab.wait_for_timeout(1 * SECONDS)
        seen = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), int)
        if (np.abs(seen - BRUSH).max(-1) < 8).mean() > 0.01:
            return
    raise AssertionError("the editor took no stroke")


def test_a_visitor_draws_a_picture_and_repaints_a_part_of_it(served, tab):
    errors, prompts = [], served[0].examples
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.wait_for_selector("#dj-draw-prompt textarea")
    screenshot(tab, "opened")
    draw(tab, prompts[0])
    screenshot(tab, "drawn")
    small, large = served[0].sides
    _, enlarged = newest(served)
    assert [picture.shape for picture in enlarged] == [(large, large, 3)] * 4
    command = tab.inner_text("#dj-command")
    assert "sample.py" in command and "--upsampler" in command and prompts[0] in tab.inner_text("#dj-table")

    tab.get_by_text("Settings").click()
    tab.get_by_label(f"Enlarge to {large} pixels").uncheck()
    draw(tab, prompts[0])
    _, drawn = newest(served)
    assert [picture.shape for picture in drawn] == [(small, small, 3)] * 4

    tab.click("#dj-gallery button.thumbnail-item >> nth=1")
    tab.click("#dj-take")
    paint(tab)
    screenshot(tab, "painted")
    tab.fill("#dj-repaint-prompt textarea", prompts[1])
    tab.click("#dj-repaint-button")
    tab.wait_for_selector("#dj-gallery img", state="detached")
    tab.wait_for_selector("#dj-gallery img")
    screenshot(tab, "repainted")
    folder, repainted = newest(served)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "picture.png")), drawn[1])  # to the last bit
    painted = np.asarray(Image.open(folder / "mask.png")) > 127
    assert 0.01 < painted.mean() < 0.5
    for picture in repainted:
        np.testing.assert_array_equal(picture[~painted], drawn[1][~painted])
        assert (picture[painted] != drawn[1][painted]).any()
    assert not errors


def test_a_bad_request_is_a_sentence_on_the_page(tab):
    tab.click("#dj-stop", force=True, timeout=1 * SECONDS) if tab.is_visible("#dj-stop") else None
    tab.get_by_role("tab", name="Draw").click()
    tab.fill("#dj-draw-prompt textarea", "x" * 501)
    tab.click("#dj-draw-button")
    tab.wait_for_selector(".dj-bad")
    assert "The prompt has 501 characters; at most 500 are read." in tab.inner_text(".dj-bad")
    screenshot(tab, "refused")
