"""ADM's U-Net in PyTorch, with GLIDE's text if asked for: the peer of ours, of the same shapes and number of parameters."""

import math

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32


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

    def forward(self, x, emb, text):
        h = self.conv_in(self.resampled(F.silu(self.norm_in(x))))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(self.resampled(x)) + h


def heads(x, count):
    """[B, N, heads x D] -> [B, heads, N, D]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


class Attention(nn.Module):
    """Pixels attend to pixels, and before them to the caption's tokens where there are any."""

    def __init__(self, channels, head, text_width):
        super().__init__()
        self.heads, self.norm = channels // head, nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.text_kv = nn.Linear(text_width, 2 * channels) if text_width else None

    def forward(self, x, emb, text):
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = heads(self.qkv(h), self.heads).chunk(3, dim=-1)
        if self.text_kv is not None:
            text_k, text_v = heads(self.text_kv(text), self.heads).chunk(2, dim=-1)
            k, v = torch.cat([text_k, k], 2), torch.cat([text_v, v], 2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(h).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """
    Args:
      channels, mults, blocks, attention_factors, head: as in shapes.py.
      out_channels: of the output; the input has 3.
      text: (tokens, mask) -> [B, N, W], whose last token joins the embedding; `text_width` is W.
    """

    def __init__(self, channels, mults, blocks, attention_factors, head, out_channels=3, text=None, text_width=None):
        super().__init__()
        self.channels, self.text, emb = channels, text, 4 * channels
        self.text_pool = nn.Linear(text_width, emb) if text_width else None
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.conv_in, self.down, self.up = nn.Conv2d(3, channels, 3, padding=1), nn.ModuleList(), nn.ModuleList()
        widths, width, skips = [mult * channels for mult in mults], channels, [channels]

        def attention(level):
            return [Attention(widths[level], head, text_width)] if 2**level in attention_factors else []

        for level, features in enumerate(widths):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([ResBlock(width, features, emb), *attention(level)]))
                width = features
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([ResBlock(width, width, emb, "down")]))
                skips.append(width)
        self.middle = nn.ModuleList(
            [ResBlock(width, width, emb), Attention(width, head, text_width), ResBlock(width, width, emb)]
        )
        for level, features in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                layers = [ResBlock(width + skips.pop(), features, emb), *attention(level)]
                width = features
                layers += [ResBlock(width, width, emb, "up")] if level and block == blocks else []
                self.up.append(nn.ModuleList(layers))
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x, time, *caption):
        half = self.channels // 2
        angles = time[:, None] * torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
        emb, text = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1)), None
        if self.text is not None:
            text = self.text(*caption)
            emb = emb + self.text_pool(text[:, -1])
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
