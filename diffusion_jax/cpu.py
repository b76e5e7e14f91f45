"""What makes XLA's programs fast on a CPU. docs/log.md has the measurements; nothing of it touches an accelerator."""

import ctypes
import glob
import importlib.metadata
import os
import platform
import sys

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# XLA refuses flags that it does not know, so that only releases are told that were tried.
RELEASES = ("0.10", "0.11", "0.12")
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")  # of NVIDIA, AMD, and TPUs


def is_alone() -> bool:
    """Whether JAX will compute on the CPU, asked before it begins to: JAX_PLATFORMS says so, or there is no accelerator."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms.startswith("cpu") if platforms else not any(map(glob.glob, ACCELERATORS))


def choose_convolutions() -> None:
    """Has XLA compute convolutions by Eigen, on all cores; call before JAX computes anything.

    YNNPACK, its own choice, gives one with 64 output channels to a single thread. A user's own choice stays.
    """
    release = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    flags = os.environ.get("XLA_FLAGS", "")
    if release in RELEASES and platform.machine() == "x86_64" and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-individual_convolution".strip()


def keep_memory() -> None:
    """Has glibc keep what a step frees: given back, a step's temporaries are faulted in again, page by page, at the next.

    Call before JAX computes anything: a thread that has allocated keeps its own arena, and an arena gives back what is empty.
    Where the user has said anything to malloc (MALLOC_ARENA_MAX and its kin), nothing is changed.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
