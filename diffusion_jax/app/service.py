"""The model behind the page: requests -> rows of batches -> pictures. Only the batcher's thread computes with it."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import build, sampling, vectors
from diffusion_jax.app import requests
from diffusion_jax.app.batching import Batcher, Job
from diffusion_jax.app.requests import Limits, Request
from diffusion_jax.app.tickets import BASE, UPSAMPLER, Made, Progress, Ticket
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs, Watch
from diffusion_jax.sampling import Loaded, pictures, stages

SHOWN = 8  # times that a picture is shown while it forms
DEFAULT_LIMITS = Limits()


class Key(NamedTuple):
    """What the jobs of one batch have in common: all that is not a row's own.

    num_steps: of the grid, of which `begin`, ..., `end` - 1 are taken.
    edit: one of generate.EDITS.
    """

    stage: str
    sampler: str
    num_steps: int
    edit: str
    begin: int
    end: int


class Rows(NamedTuple):
    """One request's rows of a batch, each array [n, ...]; see `generate`."""

    cond: Cond
    indices: np.ndarray
    seed: np.ndarray
    guidance_scale: np.ndarray
    picture: np.ndarray | None
    mask: np.ndarray | None


class Service:
    """Serves requests with a base model and perhaps an upsampler.

    Args:
      loaded, larger: their checkpoints.
      limits: of a request.
      batch_sizes: that programs are compiled for; a batch is filled up to the next of them.
      max_queue: pictures that may wait.

    Raises:
      UserError: the checkpoints make no pictures of what a page can ask.
    """

    def __init__(
        self,
        loaded: Loaded,
        larger: Loaded | None = None,
        limits: Limits = DEFAULT_LIMITS,
        batch_sizes: Sequence[int] = (4, 16),
        max_queue: int = 256,
    ):
        _check(loaded, larger)
        self.loaded = loaded
        self._models = {BASE: loaded.model} | ({UPSAMPLER: larger.model} if larger else {})
        self._place = build.placement(loaded.model.config)
        self._params = {BASE: self._place.replicate(loaded.params)}
        if larger:
            self._params[UPSAMPLER] = self._place.replicate(larger.params)
        devices = self._place.num_devices
        self.batch_sizes = tuple(sorted({-(-size // devices) * devices for size in batch_sizes}))
        self.limits = limits._replace(number=min(limits.number, self.batch_sizes[-1]))
        self.samplers = _usable_samplers(loaded.model)
        self.default = _default(loaded.model, self.limits, self.samplers)
        self._programs: dict[Any, Callable[..., np.ndarray]] = {}
        self._compiled: set[Any] = set()
        self._warming: list[Job] = []
        self._batcher = Batcher(self._run, self.batch_sizes[-1], max_queue)

    @property
    def model(self) -> build.Model:
        """The base model."""
        return self._models[BASE]

    @property
    def condition(self) -> str:
        """What the base model is told: text, label or none."""
        return self.model.config.model.condition

    @property
    def num_classes(self) -> int:
        """Of a base model that is told classes."""
        return self.model.config.data.num_classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of the last stage's pictures."""
        return self._models[UPSAMPLER if self.enlarges else BASE].image_shape

    @property
    def enlarges(self) -> bool:
        """Whether there is an upsampler."""
        return UPSAMPLER in self._models

    @property
    def ready(self) -> bool:
        """Whether what `warm` asked for is compiled, or failed: then the first visitor is told why."""
        return all(job.future.done() for job in self._warming)

    def warm(self) -> None:
        """Compiles what visitors will ask for, in the line's thread: a step of the default sampler at each batch size."""
        for stage in self._models:
            for size in self.batch_sizes:
                request = dataclasses.replace(self.default, number=size)
                small = None
                if stage == UPSAMPLER:
                    small = np.zeros((size, *self.model.image_shape), np.uint8)
                key, rows = self._prepared(stage, request, small)
                self._warming.append(self._batcher.submit(key._replace(end=1), size, rows, admitted=True))

    def submit(self, request: Request) -> Ticket:
        """Takes a request.

        Raises:
          UserError: it is out of bounds, or does not fit the model, or the line is full.
        """
        request = requests.checked(request, self.limits, self.samplers)
        ticket = Ticket(request, _notes(self.model, request))
        self._begin(ticket, BASE, ())
        return ticket

    def ahead(self, ticket: Ticket) -> int:
        """How many others wait before a ticket."""
        return self._batcher.ahead(ticket.job) if ticket.job else 0

    def close(self) -> None:
        """Ends the running batch and answers all that wait with an error."""
        self._batcher.close()

    def step_flags(self, num_steps: int) -> dict[str, Any]:
        """What tells a number of steps to sample.py: num_steps, or the spacing of a table's grid."""
        sample = self.model.config.sample
        if sample.grid != "respaced":
            return {"num_steps": num_steps}
        own = len(build.grid(self.model)) - 1
        return {"spacing": sample.spacing if num_steps == own else str(num_steps)}

    def _begin(self, ticket: Ticket, stage: str, made: tuple[Made, ...]) -> None:
        """Puts a ticket's next stage into the line."""

        def ended(future: Future) -> None:
            if future.cancelled():
                ticket.answer.cancel()
                return
            try:  # nobody sees what is raised in a future's callback: the ticket has to be told
                done = (*made, future.result())
                if ticket.answer.cancelled():
                    return
                if stage == BASE and ticket.request.enlarge and self.enlarges:
                    self._begin(ticket, UPSAMPLER, done)
                else:
                    ticket.finish(done)
            except Exception as error:
                ticket.fail(error)

        key, rows = self._prepared(stage, ticket.request, made[-1].pictures if made else None)
        job = self._batcher.submit(key, len(rows.indices), rows, admitted=bool(made))
        ticket.job = job
        job.future.add_done_callback(ended)

    def _at(self, stage: str, sampler: str, num_steps: int) -> build.Model:
        """A stage's model, its config changed to a sampler and steps; the upsampler keeps its own."""
        if stage == UPSAMPLER:
            return self._models[stage]
        return _changed(self.model, {"sampler": sampler} | self.step_flags(num_steps))

    def _prepared(self, stage: str, request: Request, small: np.ndarray | None) -> tuple[Key, Rows]:
        """A stage's job of a request, as sample.py would sample it."""
        model, count = self._at(stage, request.sampler, request.num_steps), request.number
        edit = pictures.Edit()
        if request.picture and (stage == BASE or request.mask):
            strength = request.strength if stage == BASE else None
            edit = pictures.Edit((request.picture,), request.mask, strength)
        given = _read(edit, model.image_shape)
        every = np.zeros(count, int)
        asked = {
            "text": stages.Conditions((request.prompt,), every, prompts=(request.prompt,)),
            "label": stages.Conditions((f"class {request.label}",), every, labels=np.array([request.label], np.int32)),
            "none": stages.Conditions(("unconditional",), every),
        }[self.condition]
        base = None if small is None else stages.Base(small)
        cond = stages.with_pictures(stages.cond_of(model, asked), count, model, given, base)
        plan = pictures.plan(edit, given, build.grid(model), pictures.Draw(count, _unasked, _unasked))
        scale = request.guidance_scale if stage == BASE else model.config.sample.guidance_scale
        steps, begin = len(plan.grid) - 1, plan.inputs.begin
        key = Key(stage, model.config.sample.sampler, steps, plan.edit, begin, steps)
        rows = Rows(
            cond,
            np.arange(count),
            np.full(count, request.seed, np.uint32),
            np.full(count, scale, np.float32),
            plan.inputs.picture if begin or plan.edit != "none" else None,
            plan.inputs.mask,
        )
        return key, rows

    def _run(self, key: Key, payloads: list[Rows], report: Callable[[list[Progress]], None]) -> list[Made]:
        """A batch, filled up to the next size, so that no new size is compiled."""
        counts = [len(rows.indices) for rows in payloads]
        total, ends = sum(counts), np.cumsum(counts)[:-1]
        size = next(size for size in self.batch_sizes if size >= total)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *payloads)
        model = self._at(key.stage, key.sampler, key.num_steps)
        program = (key.stage, key.sampler, key.edit, key.num_steps if model.config.sample.churn else None)
        if program not in self._programs:
            self._programs[program] = build.generate(model, self._place, key.edit)
        kind = (program, size, key.begin > 0)

        def show(_: int, step: int, shown: np.ndarray | None) -> None:
            parts = [None] * len(counts) if shown is None else np.split(shown, ends)
            compiling = shown is None and kind not in self._compiled
            report(
                [
                    Progress(key.stage, step, key.num_steps, part, total - count, compiling)
                    for part, count in zip(parts, counts, strict=True)
                ]
            )

        show(0, key.begin, None)
        knobs = build.knobs(model)._replace(guidance_scale=rows.guidance_scale)
        inputs = Inputs(picture=rows.picture, mask=rows.mask, begin=key.begin, end=key.end)
        made = self._programs[program](
            self._params[key.stage],
            rows.cond,
            rows.indices,
            rows.seed,
            knobs,
            self._filled(build.grid(model)),
            size,
            inputs=inputs,
            watch=Watch(show, SHOWN),
        )
        self._compiled.add(kind)
        return [Made(part, total, size) for part in np.split(made, ends)]

    def _filled(self, grid: np.ndarray) -> np.ndarray:
        """A grid of one length whatever its steps, its last time again and again: one program for all of them."""
        grid = np.asarray(grid)
        return np.pad(grid, (0, max(0, self.limits.steps + 1 - len(grid))), mode="edge")


def _check(loaded: Loaded, larger: Loaded | None) -> None:
    config = loaded.model.config
    if vectors.is_vector(loaded.model) or config.model.kind in ("classifier", "clip"):
        raise UserError(f"--checkpoint={loaded.workdir} makes no pictures. Give a model of images.")
    if config.model.low_res:
        raise UserError(
            f"--checkpoint={loaded.workdir} is an upsampler: give a base checkpoint, and this as --upsampler."
        )
    if config.sample.guidance == "autoguidance":
        raise UserError(
            "the page has no second model for autoguidance. Give a checkpoint with another sample.guidance."
        )
    if larger:
        sampling.check_upsampler(loaded.model, larger.model, str(larger.workdir))


def _changed(model: build.Model, overrides: dict[str, Any]) -> build.Model:
    config = copy.deepcopy(model.config)
    config.sample.update(overrides)
    return model._replace(config=config)


def _usable_samplers(model: build.Model) -> tuple[str, ...]:
    """Those that can begin where the model's grid begins, the config's own first."""
    names = []
    for name in sorted(build.SAMPLERS, key=lambda name: (name != model.config.sample.sampler, name)):
        changed = _changed(model, {"sampler": name})
        try:
            build.grid(changed), build.sampler(changed)
        except UserError:
            continue
        names.append(name)
    if not names:
        build.grid(model)  # says what is wrong
    return tuple(names)


def _default(model: build.Model, limits: Limits, samplers: tuple[str, ...]) -> Request:
    """A request with the checkpoint's own way of sampling, within the limits."""
    return Request(
        number=min(4, limits.number),
        guidance_scale=min(float(model.config.sample.guidance_scale), limits.guidance_scale),
        num_steps=min(len(build.grid(model)) - 1, limits.steps),
        sampler=samplers[0],
    )


def _notes(model: build.Model, request: Request) -> tuple[str, ...]:
    """What a prompt will not do as its writer may think.

    Raises:
      UserError: the class is none of the model's.
    """
    config = model.config
    if config.model.condition == "label" and request.label >= config.data.num_classes:
        raise UserError(f"The class must be from 0 to {config.data.num_classes - 1}; got {request.label}.")
    if config.model.condition != "text":
        return ()
    assert model.tokenizer is not None, "a text model has its tokenizer"
    length, count = config.text.context_length, model.tokenizer.num_tokens(request.prompt)
    if not request.prompt:
        return ("The prompt was empty: these are pictures of no condition.",)
    if count > length:
        return (f"The prompt has {count} tokens and this model reads {length}: the rest was not read.",)
    return ()


def _read(edit: pictures.Edit, image_shape: tuple[int, ...]) -> pictures.Given:
    try:
        return pictures.read(edit, image_shape)
    except UserError as error:
        if edit.mask is None:
            raise
        raise UserError(
            "What is painted is too little, or all, of the picture at the model's size. Paint a part of it, or nothing to redraw "
            "the whole."
        ) from error


def _unasked(*_: Any) -> np.ndarray:
    raise AssertionError("the page neither inverts nor interpolates")
