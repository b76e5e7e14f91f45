"""PyTorch's part of unet_step.py: ADM's U-Net, without a condition, timed on request. Needs torch and nothing else.

    python unet_step_torch.py '{"image": 32, "batch": 16, "channels": 64, ...}'

Reads requests from its standard input, one a line, and answers each with one line:

    parameters                              their number
    product                                 seconds of one 2048-wide float32 matrix product
    train|sampler eager|compile LAYOUT      seconds of one step, after one that is not counted; LAYOUT contiguous|channels_last

With the argument "processor" seconds are those that the process computed, not those that passed.
"""

import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

GROUPS, MATRIX, RATE, DECAY = 32, 2048, 1e-4, 0.999
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class ResBlock(nn.Module):
    """norm, silu, (resampling,) convolution; norm, scale and shift by the embedding, silu, convolution; a skip around."""

    def __init__(self, inputs, outputs, emb, resample=None):
        super().__init__()
        self.resample = resample
        self.norm_in, self.conv_in = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * outputs)
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x, emb):
        h = self.conv_in(self.resampled(F.silu(self.norm_in(x))))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(self.resampled(x)) + h


class Attention(nn.Module):
    def __init__(self, channels, head):
        super().__init__()
        self.heads, self.norm = channels // head, nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x, emb):
        batch, channels, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = h.reshape(batch, height * width, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(h).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    def __init__(self, channels, mults, blocks, attention_factors, head):
        super().__init__()
        self.channels, emb = channels, 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.conv_in, self.down, self.up = nn.Conv2d(3, channels, 3, padding=1), nn.ModuleList(), nn.ModuleList()
        widths, width, skips = [mult * channels for mult in mults], channels, [channels]
        for level, features in enumerate(widths):
            attended = 2**level in attention_factors
            for _ in range(blocks):
                layers = [ResBlock(width, features, emb), *([Attention(features, head)] if attended else [])]
                self.down.append(nn.ModuleList(layers))
                width = features
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([ResBlock(width, width, emb, "down")]))
                skips.append(width)
        self.middle = nn.ModuleList([ResBlock(width, width, emb), Attention(width, head), ResBlock(width, width, emb)])
        for level, features in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                layers = [ResBlock(width + skips.pop(), features, emb)]
                width = features
                layers += [Attention(width, head)] if 2**level in attention_factors else []
                layers += [ResBlock(width, width, emb, "up")] if level and block == blocks else []
                self.up.append(nn.ModuleList(layers))
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, time):
        half = self.channels // 2
        angles = time[:, None] * torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            for layer in stage:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for stage in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in stage:
                h = layer(h, emb)
        return self.conv_out(F.silu(self.norm_out(h)))


class Steps:
    """The two steps of a network, in one layout, eager or compiled."""

    def __init__(self, shape, layout, compiled, device):
        self.network = UNet(*(shape[k] for k in ("channels", "mults", "blocks", "attention_factors", "head"))).to(
            device
        )
        self.network.to(memory_format=LAYOUTS[layout])
        self.apply = torch.compile(self.network) if compiled else self.network
        size = shape["batch"], 3, shape["image"], shape["image"]
        self.x = torch.randn(size, device=device).contiguous(memory_format=LAYOUTS[layout])
        self.time = torch.full(size[:1], 500.0, device=device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), RATE, fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def train(self):
        F.mse_loss(self.apply(self.x, self.time), self.x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.network.parameters()), 1 - DECAY)

    @torch.no_grad()
    def sampler(self):
        """DDIM's, of a network that predicts eps, between two levels."""
        eps = self.apply(self.x, self.time)
        return 0.6 * (self.x - 0.8 * eps) / 0.6 + 0.7 * eps


def timed(fn, device):
    clock = time.process_time if "processor" in sys.argv else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    fn()
    wait()
    start = clock()
    fn()
    wait()
    return clock() - start


def main():
    shape, steps = json.loads(sys.argv[1]), {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(MATRIX, MATRIX, device=device)
    for line in sys.stdin:
        request = line.split()
        if request == ["product"]:
            print(timed(lambda: matrix @ matrix, device), flush=True)
            continue
        how = tuple(request[1:]) or ("eager", "contiguous")
        if how not in steps:
            steps[how] = Steps(shape, how[1], how[0] == "compile", device)
        if request == ["parameters"]:
            print(sum(p.numel() for p in steps[how].network.parameters()), flush=True)
        else:
            print(timed(getattr(steps[how], request[0]), device), flush=True)


if __name__ == "__main__":
    main()
