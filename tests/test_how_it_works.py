"""What docs/how_it_works.md claims: its example is exact, its figures are what its script finds, and all that it names is there."""

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import guidance, predictions

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how_it_works.md").read_text()
PICTURES = set(re.findall(r"\(images/(how_it_works_\w+\.png)\)", PAGE))


def load_problem():
    spec = importlib.util.spec_from_file_location("how_it_works_problem", ROOT / "docs" / "how_it_works_problem.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problem = load_problem()


def table(heading):
    """The rows of the page's table whose first heading begins so, as {name: cells}."""
    text = re.search(rf"^\| {re.escape(heading)}.*\n\|[-|:]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {name: cells for name, *cells in rows}


def points(t, count=64, dtype=jnp.float32):
    return problem.noised(problem.draw(problem.keys_of(count))[0], t).astype(dtype)


@pytest.mark.parametrize("label", range(problem.NUM_ARMS + 1))
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_arrows_are_the_gradient_of_the_density(t, label, x64):
    x_t, cond = points(t, dtype=jnp.float64), problem.labels(64, label)
    density = problem.log_density(problem.SCHEDULE)
    gradient = jax.grad(lambda x: density(x, t, cond).sum())(x_t)
    score = predictions.to_score(problem.DENOISER(x_t, t, cond), x_t, t, problem.SCHEDULE)
    np.testing.assert_allclose(score, gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_classifier_and_classifier_free_guidance_are_one_field(t, w, x64):
    x_t, cond, ways = points(t, dtype=jnp.float64), problem.labels(64), problem.ways(w)
    one, other = (ways[name](x_t, t, cond) for name in ("classifier", "classifier-free"))
    np.testing.assert_allclose(one.eps, other.eps, atol=1e-10)
    np.testing.assert_allclose(one.x0, other.x0, atol=1e-9)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_clip_names_captions_as_well_as_any_yet_its_product_is_another(t, x64):
    x_t, classify = points(t, dtype=jnp.float64), problem.noisy_classifier(problem.SCHEDULE)
    features = problem.encode_image(problem.SCHEDULE)(x_t, t)
    np.testing.assert_allclose(jnp.sum(features**2, 1), 1, atol=1e-12)
    products, truth = [], []
    for label, text in enumerate(problem.text_features()):
        clip = guidance.clip_similarity(problem.encode_image(problem.SCHEDULE), text, problem.CLIP_SCALE)
        products.append(clip(x_t, t, {}))
        truth.append(classify(x_t, t, problem.labels(64, label)))
    products, truth = jnp.stack(products, 1), jnp.stack(truth, 1)
    np.testing.assert_allclose(jax.nn.softmax(products, 1), jnp.exp(truth), atol=1e-10)
    np.testing.assert_allclose(products, truth - truth.mean(1, keepdims=True), atol=1e-10)


@pytest.mark.parametrize("column, t", [(0, 0.75), (2, 0.25)])
def test_the_ways_agree_as_the_page_says(column, t):
    found, said = problem.nearness_at(t, 2000), table("way |")
    names = {name: name for name in ("classifier-free", "classifier of clean points")} | {
        "CLIP of noisy points": "CLIP"
    }
    for row, name in names.items():
        assert found[name]["cosine"] == pytest.approx(float(said[row][column]), abs=0.03)
        assert found[name]["length"] == pytest.approx(float(said[row][column + 1]), rel=0.25)
    assert found["classifier-free"]["difference"] < 2e-6


@pytest.mark.parametrize("w", [0, 1, 2, 4, 8])
def test_guidance_trades_spread_for_fidelity_as_the_page_says(w):
    right, spread, distance = map(float, table("guidance scale w")[str(w)])
    found = problem.measured(problem.sample(problem.classifier_free(w), 1000, 50))
    assert found["right"] == pytest.approx(right, abs=0.05)
    assert found["spread"] == pytest.approx(spread, abs=0.06)
    assert found["distance"] == pytest.approx(distance, abs=0.012)


@pytest.mark.parametrize(
    "row, name",
    [
        ("classifier of noisy points", "classifier"),
        ("CLIP of noisy points", "CLIP"),
        ("classifier of clean points", "classifier of clean points"),
    ],
)
def test_samples_of_each_way_are_as_right_as_the_page_says(row, name):
    *_, right, spread = map(float, table("way |")[row])
    guided = guidance.clip_x0(problem.ways(2.0)[name], problem.SCHEDULE, -2.4, 2.4)
    found = problem.measured(problem.sample(guided, 1000, 50))
    assert found["right"] == pytest.approx(right, abs=0.05)
    assert found["spread"] == pytest.approx(spread, abs=0.08)


@pytest.mark.slow
def test_the_script_draws_every_picture_of_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    script = [sys.executable, "docs/how_it_works_pictures.py", "--num_samples=32", "--num_steps=3", f"--out={tmp_path}"]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == PICTURES
    kept = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").glob("how_it_works_*.png")}
    assert set(kept) == PICTURES
    assert max(kept.values()) < 200_000


def test_all_that_the_page_names_is_there():
    package = ROOT / "diffusion_jax"
    paths = set(re.findall(r"`((?:\w+/)*\w+(?:\.py|\.md|/))`", PAGE))
    functions = set(re.findall(r"`([a-z_]+)\.([a-z_]+)`", PAGE)) - {
        tuple(path.split(".")) for path in paths if "." in path
    }
    assert len(paths) > 10 and len(functions) > 5
    assert not [path for path in paths if not (ROOT / path).exists() and not (package / path).exists()]
    modules = {module: importlib.import_module(f"diffusion_jax.{module}") for module, _ in functions}
    assert not [f"{module}.{name}" for module, name in functions if not hasattr(modules[module], name)]
    remedies = re.findall(r"`(\w+)`", PAGE.split("What softens this is in")[1].split("\n\n")[0])
    assert remedies and all(hasattr(guidance, name) for name in remedies)
