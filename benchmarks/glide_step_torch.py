"""PyTorch's part of glide_step.py: a U-Net of GLIDE's base shapes, eager, timed on request. Needs torch and nothing else.

Its argument is JSON with "processor" (see torch_answers.py). Requests:

    parameters                      their number
    BATCH contiguous|channels_last  seconds of one evaluation, after one that is not counted
    flops BATCH                     operations of its products and convolutions, by torch's own counter
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_answers import DEVICE, LAYOUTS, serve, timed
from torch_unet import UNet, heads

IMAGE, OUT_CHANNELS, TOKENS, VOCAB, WIDTH, LAYERS, HEADS = 64, 6, 128, 50257, 512, 16, 8


class TextBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self):
        super().__init__()
        self.norm_attn, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp_in, self.mlp_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = heads(self.qkv(self.norm_attn(x)), HEADS).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


class Text(nn.Module):
    """(tokens, mask) -> [B, N, WIDTH]."""

    def __init__(self):
        super().__init__()
        self.token_embed = nn.Embedding(VOCAB, WIDTH)
        self.position_embed = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.padding_embed = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(TextBlock() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))

    def forward(self, tokens, mask):
        x = self.token_embed(tokens) + self.position_embed
        return self.blocks(torch.where(mask[..., None], x, self.padding_embed))


def inputs(batch):
    tokens = torch.arange(batch * TOKENS, device=DEVICE).reshape(batch, TOKENS)
    x = torch.randn(batch, 3, IMAGE, IMAGE, device=DEVICE)
    return x, torch.full((batch,), 500.0, device=DEVICE), tokens, tokens % TOKENS < 20


def answer(network, words):
    """Of a request's words."""
    if words == ["parameters"]:
        return sum(p.numel() for p in network.parameters())
    if words[0] == "flops":
        with FlopCounterMode(display=False) as counter:
            network(*inputs(int(words[1])))
        return counter.get_total_flops()
    network.to(memory_format=LAYOUTS[words[1]])
    x, *rest = inputs(int(words[0]))
    x = x.to(memory_format=LAYOUTS[words[1]])
    return timed(lambda: network(x, *rest))[0]


if __name__ == "__main__":
    with torch.inference_mode():
        network = UNet(192, (1, 2, 3, 4), 3, (2, 4, 8), 64, OUT_CHANNELS, Text(), WIDTH).to(DEVICE).eval()
        serve(lambda words: answer(network, words))
