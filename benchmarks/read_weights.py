"""Time and memory of reading a file of weights, against reading its bytes.

    python benchmarks/read_weights.py
    python benchmarks/read_weights.py --shapes=tests/golden/networks/adm_64_cond.tsv --repeats=5

Writes files of random float32 arrays with the names and shapes of GLIDE's base model (385 million parameters, 1.5 GB),
as safetensors and as torch.save lays them out, into a temporary folder. Each reading is a process of its own that keeps
all that it read, so that its peak of resident memory is what that reading needs; "bytes" is np.fromfile of the whole
file. The files are in the page cache: the figures are of the work, not of the disk.
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
    "shapes", str(ROOT / "tests/golden/networks/glide_base.tsv"), "Lines of a name, a tab and a shape as 2x3."
)
REPEATS = flags.DEFINE_integer("repeats", 3, "Readings of each kind; the fastest counts.", lower_bound=1)
READING = """
import sys, time
import numpy as np
from diffusion_jax.interop import files

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

path, kind = sys.argv[1:]
before, start = status("VmRSS"), time.perf_counter()
kept = np.fromfile(path, np.uint8) if kind == "bytes" else dict(files.read(path))
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


def reading(path: pathlib.Path, kind: str) -> tuple[float, int]:
    """Seconds, and bytes of resident memory at the peak beyond those before."""
    command = [sys.executable, "-c", READING, str(path), kind]
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
    print(f"{'file':14}{'GB':>6}{'bytes s':>10}{'arrays s':>10}{'ratio':>8}{'extra memory / size':>22}")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("w.pt", write_torch_zip), ("w.safetensors", files.write_safetensors)):
            path = pathlib.Path(folder, name)
            write(arrays, path)
            size = path.stat().st_size
            # In turn, so that what else the machine does falls on both.
            pairs = [(reading(path, "bytes"), reading(path, "arrays")) for _ in range(REPEATS.value)]
            plain, ours = (min(run[i][0] for run in pairs) for i in (0, 1))
            extra = max(run[1][1] for run in pairs) / size
            print(f"{path.name:14}{size / 1e9:6.2f}{plain:10.2f}{ours:10.2f}{ours / plain:8.2f}{extra:22.3f}")
            path.unlink()


if __name__ == "__main__":
    cli.run(main)
