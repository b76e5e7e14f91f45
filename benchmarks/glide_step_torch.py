"""PyTorch's part of glide_step.py: a U-Net of GLIDE's base shapes, eager, timed on request. Needs torch and nothing else.

Reads requests from its standard input, one a line, and answers each with one line:

    parameters                      their number
    product                         seconds of one 2048-wide float32 matrix product
    BATCH contiguous|channels_last  seconds of one evaluation, after one that is not counted
    flops BATCH                     operations of its products and convolutions, by torch's own counter

With the argument "processor" seconds are those that the process computed, not those that passed.
"""

import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WIDTH, MULTS, BLOCKS, ATTENTION_FACTORS, HEAD = 192, (1, 2, 3, 4), 3, (2, 4, 8), 64
EMB, TOKENS, VOCAB, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 4 * WIDTH, 128, 50257, 512, 16, 8
IMAGE, OUT_CHANNELS, GROUPS, MATRIX = 64, 6, 32, 2048


class ResBlock(nn.Module):
    """norm, silu, (resampling,) convolution; norm, scale and shift by the embedding, silu, convolution; a skip around."""

    def __init__(self, inputs, outputs, resample=None):
        super().__init__()
        self.resample = resample
        self.norm_in, self.conv_in = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.emb = nn.Linear(EMB, 2 * outputs)
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x, emb, text):
        h = self.conv_in(self.resampled(F.silu(self.norm_in(x))))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(self.resampled(x)) + h


class Attention(nn.Module):
    """Pixels attend to the caption's tokens and to pixels."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(GROUPS, channels), nn.Linear(channels, 3 * channels)
        self.text_kv, self.out = nn.Linear(TEXT_WIDTH, 2 * channels), nn.Linear(channels, channels)

    def forward(self, x, emb, text):
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = heads(self.qkv(h), channels // HEAD).chunk(3, dim=-1)
        text_k, text_v = heads(self.text_kv(text), channels // HEAD).chunk(2, dim=-1)
        h = F.scaled_dot_product_attention(q, torch.cat([text_k, k], 2), torch.cat([text_v, v], 2))
        h = self.out(h.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.transpose(1, 2).reshape(x.shape)


class TextBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self):
        super().__init__()
        self.norm_attn, self.norm_mlp = nn.LayerNorm(TEXT_WIDTH), nn.LayerNorm(TEXT_WIDTH)
        self.qkv, self.out = nn.Linear(TEXT_WIDTH, 3 * TEXT_WIDTH), nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.mlp_in, self.mlp_out = nn.Linear(TEXT_WIDTH, 4 * TEXT_WIDTH), nn.Linear(4 * TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, x):
        q, k, v = heads(self.qkv(self.norm_attn(x)), TEXT_HEADS).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


def heads(x, count):
    """[B, N, heads x D] -> [B, heads, N, D]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embed = nn.Embedding(VOCAB, TEXT_WIDTH)
        self.position_embed = nn.Parameter(torch.randn(TOKENS, TEXT_WIDTH))
        self.padding_embed = nn.Parameter(torch.randn(TOKENS, TEXT_WIDTH))
        self.text = nn.Sequential(*(TextBlock() for _ in range(TEXT_LAYERS)), nn.LayerNorm(TEXT_WIDTH))
        self.text_pool = nn.Linear(TEXT_WIDTH, EMB)
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, EMB), nn.SiLU(), nn.Linear(EMB, EMB))
        widths, width = [mult * WIDTH for mult in MULTS], WIDTH
        self.conv_in, self.down, self.up, skips = (
            nn.Conv2d(3, WIDTH, 3, padding=1),
            nn.ModuleList(),
            nn.ModuleList(),
            [],
        )
        skips.append(width)
        for level, features in enumerate(widths):
            for _ in range(BLOCKS):
                self.down.append(self.stage(ResBlock(width, features), level))
                width = features
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([ResBlock(width, width, "down")]))
                skips.append(width)
        self.middle = nn.ModuleList([ResBlock(width, width), Attention(width), ResBlock(width, width)])
        for level, features in reversed(list(enumerate(widths))):
            for block in range(BLOCKS + 1):
                self.up.append(self.stage(ResBlock(width + skips.pop(), features), level))
                width = features
                if level and block == BLOCKS:
                    self.up[-1].append(ResBlock(width, width, "up"))
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, OUT_CHANNELS, 3, padding=1)

    @staticmethod
    def stage(res, level):
        attended = [Attention(res.conv_out.out_channels)] if 2**level in ATTENTION_FACTORS else []
        return nn.ModuleList([res, *attended])

    def forward(self, x, time, tokens, mask):
        text = self.token_embed(tokens) + self.position_embed
        text = self.text(torch.where(mask[..., None], text, self.padding_embed))
        angles = time[:, None] * torch.exp(-math.log(10_000) / (WIDTH // 2) * torch.arange(WIDTH // 2))
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.text_pool(text[:, -1])
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            for layer in stage:
                h = layer(h, emb, text)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb, text)
        for stage in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in stage:
                h = layer(h, emb, text)
        return self.conv_out(F.silu(self.norm_out(h)))


def timed(fn):
    clock = time.process_time if "processor" in sys.argv else time.perf_counter
    fn()
    start = clock()
    fn()
    return clock() - start


def inputs(batch):
    tokens = torch.arange(batch * TOKENS).reshape(batch, TOKENS)
    return torch.randn(batch, 3, IMAGE, IMAGE), torch.full((batch,), 500.0), tokens, tokens % TOKENS < 20


def answer(network, matrix, request):
    """The answer to one request, a number."""
    if request == ["parameters"]:
        return sum(p.numel() for p in network.parameters())
    if request == ["product"]:
        return timed(lambda: matrix @ matrix)
    if request[0] == "flops":
        with FlopCounterMode(display=False) as counter:
            network(*inputs(int(request[1])))
        return counter.get_total_flops()
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[request[1]]
    network.to(memory_format=layout)
    x, *rest = inputs(int(request[0]))
    x = x.to(memory_format=layout)
    return timed(lambda: network(x, *rest))


def main():
    with torch.inference_mode():
        network, matrix = UNet().eval(), torch.randn(MATRIX, MATRIX)
        for line in sys.stdin:
            print(answer(network, matrix, line.split()), flush=True)


if __name__ == "__main__":
    main()
