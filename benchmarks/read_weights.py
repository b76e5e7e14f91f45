"""Time and memory of loading a file of weights, against reading its bytes.

    python benchmarks/read_weights.py
    python benchmarks/read_weights.py --shapes=tests/golden/networks/adm_64_cond.tsv --repeats=5

Writes files of random float32 arrays with the names and shapes of GLIDE's base model (385 million parameters, 1.5 GB),
as safetensors and as torch.save lays them out, into a temporary folder. Each reading is a process of its own that keeps
all that it read, so that its peak of resident memory is what that reading needs: "bytes" is np.fromfile of the whole
file, "arrays" reads every array, "model" is `interop.openai.load`, the network's shapes and the change of layouts
included. Before each the file is dropped from the page cache, so that the disk's time is in all of them.
"""

import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli
from diffusion_jax.interop import files

ROOT = pathlib.Path(__file__).parents[1]
SHAPES = flags.DEFINE_string(
    "shapes",
    str(ROOT / "tests/golden/networks/glide_base.tsv"),
    "NAME.tsv of a published kind: lines of a name, a tab and a shape.",
)
REPEATS = flags.DEFINE_integer("repeats", 3, "Readings of each kind; the fastest counts.", lower_bound=1)
WHATS = ("bytes", "arrays", "model")
READING = """
import os, pathlib, sys, time
import jax
import numpy as np
from diffusion_jax.interop import files, openai

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

path, what, kind = sys.argv[1:]
jax.block_until_ready(jax.numpy.zeros(3))
with open(path) as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
before, start = status("VmRSS"), time.perf_counter()
if what == "bytes":
    kept = np.fromfile(path, np.uint8)
elif what == "arrays":
    kept = dict(files.read(path))
else:
    kept = jax.block_until_ready(openai.load(kind, path).params)
print(time.perf_counter() - start, status("VmHWM") - before)
"""


def write_torch_zip(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """A file as torch.save writes it: a pickle of names and places, and the numbers, uncompressed."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def counts(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    pickled = b"\x80\x02}("
    for i, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(i)) + text("cpu")
        storage += b"J" + struct.pack("<i", array.size) + b"tQ"
        pickled += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0"
        pickled += counts(array.shape) + counts(strides) + b"\x89}tR"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("weights/data.pkl", pickled + b"u.")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"weights/data/{i}", array.tobytes())


def reading(path: pathlib.Path, what: str) -> tuple[float, int]:
    """Seconds, and bytes of resident memory at the peak beyond those before."""
    command = [sys.executable, "-c", READING, str(path), what, pathlib.Path(SHAPES.value).stem]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, extra = done.stdout.split()
    return float(seconds), int(extra)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    rng, arrays = np.random.default_rng(0), {}
    for line in pathlib.Path(SHAPES.value).read_text().splitlines():
        name, shape = line.split("\t")
        arrays[name] = rng.random([int(n) for n in shape.split("x") if n], np.float32)
    print(f"{len(arrays)} arrays, {sum(array.size for array in arrays.values()):,} parameters")
    print(f"{'file':14}{'what':>8}{'seconds':>10}{'of bytes':>10}{'extra memory / size':>22}")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("w.pt", write_torch_zip), ("w.safetensors", files.write_safetensors)):
            path = pathlib.Path(folder, name)
            write(arrays, path)
            # In turn, so that what else the machine does falls on all.
            rounds = [{what: reading(path, what) for what in WHATS} for _ in range(REPEATS.value)]
            fastest = {what: min(r[what][0] for r in rounds) for what in WHATS}
            for what in WHATS:
                extra = max(r[what][1] for r in rounds) / path.stat().st_size
                ratio = fastest[what] / fastest["bytes"]
                print(f"{name:14}{what:>8}{fastest[what]:10.2f}{ratio:10.2f}{extra:22.3f}")
            path.unlink()


if __name__ == "__main__":
    cli.run(main)
