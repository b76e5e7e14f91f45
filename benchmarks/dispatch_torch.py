"""PyTorch's part of dispatch.py: processor time of a fused AdamW step over many small tensors.

Request: "LEAVES WIDTH STEPS ROUNDS"; the answer is {"host_s", "all_s"}.
"""

import torch
from costs import costs
from torch_answers import DEVICE, serve, wait


def answer(words):
    """Of a request's words."""
    leaves, width, steps, rounds = map(int, words)
    tensors = [torch.ones(width, device=DEVICE, requires_grad=True) for _ in range(leaves)]
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    return costs(torch.optim.AdamW(tensors, 1e-4, fused=True).step, steps, rounds, wait)


if __name__ == "__main__":
    serve(answer)
