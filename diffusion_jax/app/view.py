"""What a visitor reads and sees while a request is under way, as HTML; the page puts it in its place."""

import base64
import html
import io

import numpy as np
from jaxtyping import UInt8

from diffusion_jax import images
from diffusion_jax.app.service import Service
from diffusion_jax.app.tickets import UPSAMPLER, Answer, Progress

EYE_PIXELS = 384  # small pictures are enlarged to about so many for the eye


def for_the_eye(picture: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in colour, each pixel of a small one a square: nothing is smoothed, so that `original_size` gets it back."""
    factor = max(1, EYE_PIXELS // max(picture.shape[:2]))
    colour = np.broadcast_to(picture, (*picture.shape[:2], 3)) if picture.shape[-1] == 1 else picture[..., :3]
    return colour.repeat(factor, 0).repeat(factor, 1)


EMPTY = '<div class="dj-empty">Your pictures appear here.</div>'
HOW_TO_REPAINT = (
    '<p class="dj-line dj-hint">Choose a picture that was drawn, or drop a file. Paint over what is to be drawn anew; with nothing '
    "painted the whole picture is.</p>"
)


def head(checkpoint: str, service: Service) -> str:
    """The page's title, and what it draws with."""
    loaded, (height, width, _) = service.loaded, service.image_shape
    enlarged = f", enlarged to {height} x {width}" if service.enlarges else ""
    side = service.model.image_shape[0]
    what = f"{html.escape(checkpoint)}, step {loaded.step:,}: pictures of {side} x {side} pixels{enlarged}"
    return f"<h1>Draw with a diffusion model</h1><p>{what}</p>"


def sentence(text: str) -> str:
    """A sentence that answers a bad request."""
    return f'<p class="dj-line dj-bad" role="alert">{html.escape(text)}</p>'


def readiness(ready: bool) -> str:
    """Whether the first request will be answered at once."""
    if ready:
        return '<p class="dj-ready">Ready.</p>'
    return (
        '<p class="dj-ready dj-busy" role="status">The model is being compiled. Ask already: your pictures are made as soon as '
        "it is done.</p>"
    )


def under_way(progress: Progress | None, ahead: int, number: int) -> str:
    """The line, the bar and the pictures of a request that is not answered yet.

    Args:
      progress: of its job; None while it waits.
      ahead: requests that wait before it.
      number: of its pictures.
    """
    if progress is None:
        waits = f"{ahead} {'request' if ahead == 1 else 'requests'} before yours" if ahead else "Yours is the next"
        return _block(f"{waits} in the line.", 0, [None] * number)
    doing = "Enlarging" if progress.stage == UPSAMPLER else "Drawing"
    company = f", together with {progress.others} for others" if progress.others else ""
    if progress.compiling and progress.shown is None:
        line = f"{doing} in a way that is new to this server: it is compiled first{company}."
    else:
        line = f"{doing}: step {progress.step} of {progress.num_steps}{company}."
    shown = [None] * number if progress.shown is None else list(progress.shown)
    return _block(line, progress.step / progress.num_steps, shown)


def done(answer: Answer) -> str:
    """The line of an answered request."""
    request, made = answer.request, answer.made[-1]
    others = made.rows - len(made.pictures)
    company = f", in one batch with {others} for others" if others else ""
    count = f"{len(made.pictures)} {'picture' if len(made.pictures) == 1 else 'pictures'}"
    line = f"{count} in {answer.seconds:.1f} seconds{company}; seed {request.seed}."
    notes = "".join(f'<p class="dj-line">{html.escape(note)}</p>' for note in answer.notes)
    return f'<p class="dj-line" role="status">{line}</p>{notes}'


def _block(line: str, share: float, shown: list[np.ndarray | None]) -> str:
    tiles = "".join(_tile(picture) for picture in shown)
    return (
        f'<p class="dj-line" role="status">{line}</p><progress class="dj-bar" max="1" value="{share:.3f}"></progress>'
        f'<div class="dj-forming">{tiles}</div>'
    )


def data_uri(picture: UInt8[np.ndarray, "H W C"]) -> str:
    """A picture as a PNG within an address."""
    file = io.BytesIO()
    images.to_pil(picture).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tile(picture: np.ndarray | None) -> str:
    if picture is None:
        return '<div class="dj-tile"></div>'
    return f'<img class="dj-tile" alt="a picture as it forms" src="{data_uri(picture)}">'


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#dj-head h1 { font-size: 1.5rem; font-weight: 650; margin: 0.4rem 0 0; letter-spacing: -0.01em; }
#dj-head p { margin: 0.15rem 0 0; color: var(--body-text-color-subdued); }
.dj-ready { margin: 0; font-size: 0.9rem; color: var(--body-text-color-subdued); }
.dj-ready::before { content: ""; display: inline-block; width: 0.55em; height: 0.55em; border-radius: 50%;
  margin-right: 0.5em; background: #2f9e63; }
.dj-busy::before { background: #d9822b; animation: dj-pulse 1.2s ease-in-out infinite; }
@keyframes dj-pulse { 50% { opacity: 0.25; } }
.dj-line { margin: 0 0 0.4rem; }
.dj-bad { color: #b42318; }
.dark .dj-bad { color: #ff9b8f; }
.dj-bar { width: 100%; height: 0.4rem; accent-color: var(--color-accent); margin-bottom: 0.6rem; }
.dj-forming { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; }
.dj-tile { width: 100%; aspect-ratio: 1; border-radius: 6px; image-rendering: pixelated;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.dj-empty { display: grid; place-items: center; min-height: 16rem; border: 1px dashed var(--border-color-primary);
  border-radius: 8px; color: var(--body-text-color-subdued); }
.dj-hint { color: var(--body-text-color-subdued); font-size: 0.9rem; }
.dj-title { font-size: 1.1rem; font-weight: 600; margin: 0.8rem 0 0; }
#dj-head, #dj-state, #dj-line { padding: 0; }
#dj-gallery img, #dj-editor canvas { image-rendering: pixelated; }
#dj-gallery .grid-wrap { max-height: none; height: auto; overflow: visible; }
#dj-table * { font-family: var(--font); }
"""
