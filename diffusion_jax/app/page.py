"""The page itself, in Gradio: what is asked, what is shown, and the call that scripts may make. All else is in other modules."""

import dataclasses
import pathlib
import random
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import numpy as np

from diffusion_jax.app import results, view
from diffusion_jax.app.requests import MAX_SEED, Request
from diffusion_jax.app.site import COLUMNS, Site, follow, kept, painted, row_of
from diffusion_jax.app.tickets import Answer
from diffusion_jax.errors import UserError

RECENT = 20  # rows of the table
FAILED = "Something went wrong on the server; its terminal says what. Ask again, or ask for something else."


class Page:
    """The parts of the page, and what happens when they are used.

    Args:
      site: what it serves.
    """

    def __init__(self, site: Site):
        self._site, self._service = site, site.service
        self._default, self._limits = site.service.default, site.service.limits
        with gr.Blocks(title="diffusion_jax", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._head()
            with gr.Row():
                with gr.Column(scale=4, min_width=340):
                    with gr.Tabs() as self._tabs:
                        self._draw_tab()
                        self._repaint_tab()
                    self._settings()
                with gr.Column(scale=6, min_width=340):
                    self._answer()
            self._recent()
            self._wire()

    def _head(self) -> None:
        gr.HTML(view.head(self._site.checkpoint, self._service), elem_id="dj-head")
        self._ready = gr.HTML(view.readiness(self._service.ready), elem_id="dj-state")
        self._timer = gr.Timer(0.5)
        self._timer.tick(
            self._look, outputs=[self._ready, self._timer], show_progress="hidden", api_visibility="private"
        )

    def _look(self) -> tuple[str, Any]:
        ready = self._service.ready
        return view.readiness(ready), gr.Timer(active=not ready)

    def _condition(self, name: str, button: str) -> tuple[Any, Any]:
        """What the model is told, and the button that asks."""
        condition = self._service.condition
        if condition == "text":
            told = gr.Textbox(
                label="Prompt", lines=2, elem_id=f"dj-{name}-prompt", placeholder=next(iter(self._site.examples), "")
            )
        else:
            most = self._service.num_classes - 1
            told = gr.Number(0, label=f"Class, 0 to {most}", precision=0, visible=condition == "label")
        return told, gr.Button(button, variant="primary", elem_id=f"dj-{name}-button")

    def _draw_tab(self) -> None:
        with gr.Tab("Draw", id="draw"):
            self._told, self._draw = self._condition("draw", "Draw")
            if self._site.examples and self._service.condition == "text":
                gr.Examples([[text] for text in self._site.examples], self._told, label="For example", preload=False)

    def _repaint_tab(self) -> None:
        with gr.Tab("Repaint", id="repaint"):
            gr.HTML(view.HOW_TO_REPAINT)
            self._editor = gr.ImageEditor(
                show_label=False,
                sources=("upload", "clipboard"),
                brush=gr.Brush(default_size=36, colors=["#ff4d6d"], color_mode="fixed"),
                transforms=(),
                layers=False,
                format="png",
                canvas_size=(view.EYE_PIXELS, view.EYE_PIXELS),
                elem_id="dj-editor",
            )
            self._told_again, self._repaint = self._condition("repaint", "Repaint")
            self._strength = gr.Slider(
                0.05, 1, 1, step=0.05, label="Strength", info="1 starts from pure noise; less keeps what was there"
            )

    def _settings(self) -> None:
        limits, default = self._limits, self._default
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                self._number = gr.Slider(1, limits.number, default.number, step=1, label="Pictures", min_width=120)
                self._steps = gr.Slider(1, limits.steps, default.num_steps, step=1, label="Steps", min_width=120)
            self._guidance = gr.Slider(
                0,
                limits.guidance_scale,
                default.guidance_scale,
                step=0.1,
                label="Guidance",
                info="1 is off; more follows the prompt closer",
                visible=self._service.condition != "none",
            )
            self._sampler = gr.Dropdown(list(self._service.samplers), value=default.sampler, label="Sampler")
            with gr.Row():
                self._seed = gr.Number(0, label="Seed", precision=0, min_width=120)
                self._fresh = gr.Checkbox(True, label="A new seed each time", min_width=120)
            self._enlarge = gr.Checkbox(
                self._service.enlarges,
                label=f"Enlarge to {self._service.image_shape[0]} pixels",
                visible=self._service.enlarges,
            )

    def _answer(self) -> None:
        self._line = gr.HTML(view.EMPTY, elem_id="dj-line")
        self._gallery = gr.Gallery(
            show_label=False,
            columns=2,
            object_fit="contain",
            height="auto",
            visible=False,
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            elem_id="dj-gallery",
        )
        with gr.Row():
            self._take = gr.Button("Repaint the chosen picture", visible=False, elem_id="dj-take")
            self._stop = gr.Button("Stop", visible=False, elem_id="dj-stop")

    def _recent(self) -> None:
        self._history = gr.State([])
        self._chosen = gr.State(0)
        with gr.Column(visible=False) as self._results:
            gr.HTML('<h2 class="dj-title">Recent results</h2>')
            self._table = gr.Dataframe(
                [],
                headers=list(COLUMNS),
                interactive=False,
                wrap=True,
                show_label=False,
                max_height=320,
                buttons=[],
                elem_id="dj-table",
            )
            self._command = gr.Code(
                "",
                language="shell",
                label="The command that makes it again (choose a row)",
                interactive=False,
                lines=1,
                wrap_lines=True,
                show_line_numbers=False,
                elem_id="dj-command",
            )

    def _wire(self) -> None:
        settings = [self._number, self._guidance, self._steps, self._sampler, self._seed, self._fresh, self._enlarge]
        outputs = [
            self._line,
            self._gallery,
            self._take,
            self._stop,
            self._seed,
            self._history,
            self._table,
            self._command,
            self._results,
            self._chosen,
        ]
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        draw_triggers, repaint_triggers = [self._draw.click], [self._repaint.click]
        if self._service.condition == "text":
            draw_triggers.append(self._told.submit)
            repaint_triggers.append(self._told_again.submit)
        drawn = gr.on(draw_triggers, self._on_draw, [self._told, *settings, self._history], outputs, **quiet)
        given = [self._editor, self._strength, self._told_again, *settings, self._history]
        repainted = gr.on(repaint_triggers, self._on_repaint, given, outputs, **quiet)
        self._stop.click(self._on_stop, self._history, outputs[:4], cancels=[drawn, repainted], **quiet)
        self._gallery.select(self._on_choose, None, self._chosen, **quiet)
        self._take.click(
            self._on_take, [self._history, self._chosen], [self._editor, self._told_again, self._tabs], **quiet
        )
        self._table.select(self._on_row, self._history, self._command, **quiet)
        gr.api(self._make, api_name="draw", concurrency_limit=None)

    async def _on_draw(self, told: Any, *rest: Any) -> AsyncIterator[tuple[Any, ...]]:
        *settings, history = rest
        async for shown in self._run(self._request(told, *settings), history):
            yield shown

    async def _on_repaint(self, editor: Any, strength: float, told: Any, *rest: Any) -> AsyncIterator[tuple[Any, ...]]:
        *settings, history = rest
        request = self._request(told, *settings)
        try:
            picture, mask = painted(editor, self._site.sides)
        except UserError as error:
            yield self._said(view.sentence(str(error)), history)
            return
        async for shown in self._run(request, history, (picture, mask, strength)):
            yield shown

    def _request(
        self, told: Any, number: Any, guidance: Any, steps: Any, sampler: Any, seed: Any, fresh: bool, enlarge: bool
    ) -> Request:
        seed = random.randint(0, MAX_SEED) if fresh else seed
        text = self._service.condition == "text"
        named = {"prompt": told or ""} if text else {"label": told or 0}
        return Request(
            number=number,
            guidance_scale=guidance,
            num_steps=steps,
            sampler=sampler,
            seed=seed,
            enlarge=enlarge,
            **named,
        )

    async def _run(
        self, request: Request, history: list[dict[str, Any]], given: tuple[np.ndarray, Any, float] | None = None
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks, shows how it goes, and at last the answer, the seed and the table."""
        folder = self._site.results.begin()
        answered = False
        try:
            if given:
                picture, mask = results.save_input(folder, *given[:2])
                request = dataclasses.replace(request, picture=picture, mask=mask, strength=given[2])
            async for line, answer in follow(self._site, request):
                if answer is None:
                    yield self._said(line, history, under_way=True)
                    continue
                answered = True
                yield self._answered(line, answer, folder, history)
        except UserError as error:
            yield self._said(view.sentence(str(error)), history)
        except Exception as error:
            print(f"error: a request failed: {error!r}")
            yield self._said(view.sentence(FAILED), history)
        finally:
            if not answered:
                results.drop(folder)

    def _said(self, line: str, history: list[dict[str, Any]], under_way: bool = False) -> tuple[Any, ...]:
        """A line in the place of the answer; the last pictures make room for those that form, and the rest stays."""
        shown = bool(history) and not under_way
        return (
            line,
            gr.Gallery(visible=shown),
            gr.Button(visible=shown),
            gr.Button(visible=under_way),
            *[gr.skip()] * 6,
        )

    def _answered(
        self, line: str, answer: Answer, folder: pathlib.Path, history: list[dict[str, Any]]
    ) -> tuple[Any, ...]:
        record = kept(self._site, folder, answer)
        history = [record, *history][:RECENT]
        shown = [view.for_the_eye(picture) for picture in answer.pictures]
        gallery = gr.Gallery(
            shown, visible=True, columns=min(len(shown), 2 if len(shown) < 5 else 4), selected_index=None
        )
        return (
            line,
            gallery,
            gr.Button(visible=True),
            gr.Button(visible=False),
            answer.request.seed,
            history,
            [row_of(one, self._service.condition) for one in history],
            record["command"],
            gr.Column(visible=True),
            0,
        )

    def _on_stop(self, history: list[dict[str, Any]]) -> tuple[Any, ...]:
        return self._said(view.sentence("Stopped."), history)[:4]

    def _on_choose(self, event: gr.SelectData) -> int:
        return int(event.index)

    def _on_take(self, history: list[dict[str, Any]], chosen: int) -> tuple[Any, ...]:
        """Puts a picture of the last result into the editor."""
        if not history:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            picture = view.for_the_eye(results.read(history[0]["files"][chosen]))
        except OSError as error:
            raise gr.Error("The server does not keep that picture any more. Draw it again.") from error
        told = history[0]["request"]["prompt" if self._service.condition == "text" else "label"]
        return {"background": picture, "layers": [], "composite": picture}, told, gr.Tabs(selected="repaint")

    def _on_row(self, history: list[dict[str, Any]], event: gr.SelectData) -> str:
        row = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return history[row]["command"] if row < len(history) else ""

    async def _make(
        self,
        told: str,
        number: int,
        guidance_scale: float,
        num_steps: int,
        sampler: str,
        seed: int,
        enlarge: bool,
    ) -> dict[str, Any]:
        """Draws pictures: PNG data URIs, the command that repeats them, and the rows that their batches had."""
        folder = self._site.results.begin()
        answered = False
        try:
            request = self._request(told, number, guidance_scale, num_steps, sampler, seed, False, enlarge)
            async for _, answer in follow(self._site, request):
                if answer:
                    answered = True
                    record = kept(self._site, folder, answer)
                    return record | {"pictures": [view.data_uri(picture) for picture in answer.pictures]}
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            if not answered:
                results.drop(folder)
        raise AssertionError("follow ends with an answer")


def serve(site: Site, host: str, port: int, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Opens the page; returns it and its address, at once or when the server was stopped.

    Raises:
      UserError: the port is taken.
    """
    blocks = Page(site).blocks
    blocks.queue(default_concurrency_limit=None)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            quiet=True,
            theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"]),
            css=view.CSS,
            footer_links=[],
            run_history=False,
            max_file_size="20mb",
        )
    except OSError as error:
        raise UserError(f"cannot listen at --host={host} --port={port}: {error}") from error
    print(f"The page is open at {address}", flush=True)
    if wait:
        blocks.block_thread()
    return blocks, address
