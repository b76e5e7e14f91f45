"""Runs that one process, or several together, make one after the other in a single start, which costs more than they do.

python tests/several.py --jobs=JSON --coordinator=HOST:PORT --num_processes=2 --process_id=0
"""

import json
import pathlib
import sys
import time
from unittest import mock

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs.swiss_roll import get_config
from diffusion_jax import cli

RECIPE = "configs/swiss_roll.py:debug"
SMALL = {  # a network that compiles in seconds and is large enough to be sharded
    "model.width": 128,
    "diffusion.objective": "denoising",
    "diffusion.variance": "small",
    "diffusion.time": "uniform",
    "train.num_steps": 10,
    "train.log_every_steps": 1,
    "train.sample_every_steps": 1_000_000,
    "train.checkpoint_every_steps": 5,
    "ema.posthoc_stds": (0.05,),
    "ema.snapshot_every_steps": 5,
}


def as_flags(fields):
    """SMALL with other fields, as train.py takes it."""
    fields = SMALL | fields
    texts = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in fields.items()}
    return [f"--config={RECIPE}", *(f"--config.{name}={text}" for name, text in texts.items())]


class Spoilt:
    """Batches, of which those numbered in `spoilt` have a NaN for each row of `where`: the process that reads it alone sees it."""

    def __init__(self, batches, first, spoilt, where):
        self.batches, self.number, self.spoilt, self.where = batches, first, spoilt, where

    @property
    def skipped(self):
        return self.batches.skipped

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.batches)
        if self.number in self.spoilt:
            batch["image"] = np.where(self.where[:, None], np.float32(np.nan), batch["image"])
        self.number += 1
        return batch


def train(workdir, fields, spoilt=()):
    """SMALL with other fields in workdir; the last example of the batches numbered in `spoilt` is not finite."""
    from diffusion_jax.training import run

    config, whole = get_config("debug"), run.train_batches
    config.update_from_flattened_dict(SMALL | fields)

    def batches(source, encode, size, seed, first, rows, **options):
        return Spoilt(whole(source, encode, size, seed, first, rows, **options), first, spoilt, rows == size - 1)

    with mock.patch.object(run, "train_batches", batches):
        run.train(config, pathlib.Path(workdir), time.monotonic())


def sample(workdir, out):
    """Sixteen samples by a checkpoint, into a folder that is not there yet."""
    from diffusion_jax import sampling

    fields = {"prompts": (), "labels": (), "num_samples": 16, "overrides": {}, "seed": 0, "batch_size": 16}
    sampling.run(sampling.Request(checkpoint=str(workdir), out=str(out), **fields))


def evaluate(checkpoint, samples, real, out):
    """OUT/figures.json: given pictures, and ten samples of a checkpoint, beside real pictures by a network of one layer."""
    import jax
    import jax.numpy as jnp

    from diffusion_jax import processes, sampling, scores
    from diffusion_jax.metrics import comparison, features

    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)

    def apply(params, images):
        return {"pool": jax.nn.relu(images.astype(jnp.float32).mean((1, 2)) / 255 @ params)}

    extractor = features.Extractor("one layer", "", weights, apply, {})
    rest = {"features": "inception", "features_file": "weights", "resize": "tensorflow", "split": "validation"}
    rest |= {"seeds": (0,), "batch_size": 16, "save_statistics": None, "protocol": comparison.Protocol()}
    given = scores.Request(samples, real, num_samples=None, **rest)
    made = scores.Request(None, real, num_samples=10, **rest)
    out = pathlib.Path(out)
    with mock.patch.object(features, "inception_extractor", lambda path, resize: extractor):
        records = [
            scores.compare(given, None, [], out / "given.part"),
            scores.compare(made, sampling.load(checkpoint, {}), [1.0], out / "made.part"),
        ]
    if processes.first():
        (out / "figures.json").write_text(json.dumps([list(record["figures"].values()) for record in records]))


def main(argv):
    """Does the jobs, a list of [name of a function here, arguments], each after a line that says its folder."""
    cli.start()
    for name, arguments in json.loads(JOBS.value):
        print(f"== {arguments.get('out') or arguments['workdir']}", flush=True)
        {"train": train, "sample": sample, "evaluate": evaluate}[name](**arguments)


if __name__ == "__main__":
    JOBS = flags.DEFINE_string("jobs", None, "JSON; see main.")
    cli.run(main)
