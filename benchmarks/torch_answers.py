"""What the PyTorch processes of the benchmarks share: requests, one a line, on standard input; one line of answer to each.

Their first argument is JSON: what they are to build, and "processor": seconds are then those that the process computed, not
those that passed. All answer "product SIDE DTYPE": the seconds of one square matrix product.
"""

import json
import sys
import time

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SETTINGS = json.loads(sys.argv[1])
# As JAX multiplies float32 on a GPU by default: in TensorFloat-32. On a CPU it changes nothing.
torch.set_float32_matmul_precision("high" if DEVICE == "cuda" else "highest")


def wait():
    """Until the device has done all that it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(fn):
    """(seconds, bytes) of a call, after one that is not counted; bytes beyond what lay on the device before, or None."""
    clock = time.process_time if SETTINGS["processor"] else time.perf_counter
    fn()
    wait()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = clock()
    fn()
    wait()
    seconds = clock() - start
    return seconds, torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else None


def serve(answer):
    """Answers each request until there are no more; answer(words) -> a number, or what JSON can hold."""
    for line in sys.stdin:
        words = line.split()
        if words[0] == "product":
            matrix = torch.randn(int(words[1]), int(words[1]), device=DEVICE, dtype=getattr(torch, words[2]))
            found = timed(lambda matrix=matrix: matrix @ matrix)[0]
        else:
            found = answer(words)
        print(json.dumps(found), flush=True)
