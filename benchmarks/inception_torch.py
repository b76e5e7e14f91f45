"""PyTorch's part of inception.py: the original FID Inception as TorchScript. Needs torch and numpy.

Its argument is JSON with "network" (its file), "folder" (pictures.npz, and where features.npy goes), "batch", and "processor" (see
torch_answers.py). Requests:

    features SPLIT FIRST LAST   seconds of the features of these pictures, which it writes and remembers
    fid                         the distance between the two splits' features
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch_answers import DEVICE, SETTINGS, serve, wait

NETWORK = torch.jit.load(SETTINGS["network"], map_location=DEVICE).eval()
PICTURES = dict(np.load(f"{SETTINGS['folder']}/pictures.npz"))
CLOCK = time.process_time if SETTINGS["processor"] else time.perf_counter
SEEN = {}


@torch.no_grad()
def features(pictures):
    """[N, 2048] of uint8 [N, H, W, 3]."""
    x = torch.from_numpy(pictures).to(DEVICE).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    return NETWORK(2 * x - 1).flatten(1).cpu()


def fid():
    """|m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), the last by the eigenvalues of A B."""
    (mean_a, a), (mean_b, b) = (
        (rows.mean(0), torch.cov(rows.T)) for rows in (torch.cat(parts).double() for parts in SEEN.values())
    )
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root)


def answer(words):
    if words[0] == "fid":
        return fid()
    split, first, last = words[1], int(words[2]), int(words[3])
    if not SEEN:
        features(PICTURES[split][: SETTINGS["batch"]])
    start = CLOCK()
    parts = [
        features(PICTURES[split][i : min(i + SETTINGS["batch"], last)]) for i in range(first, last, SETTINGS["batch"])
    ]
    wait()
    seconds = CLOCK() - start
    SEEN.setdefault(split, []).extend(parts)
    np.save(f"{SETTINGS['folder']}/features.npy", torch.cat(parts).numpy())
    return seconds


serve(answer)
