"""PyTorch's part of unet_step.py: steps of ADM's U-Net, and of diffusers' UNet2DModel in the same shape, timed on request.

Its argument is JSON: a shape of shapes.py, and with it "processor" (see torch_answers.py) and "dtype", float32 or bfloat16 (by
autocast). Needs torch; the network "diffusers" needs diffusers too. Requests:

    NETWORK parameters                      their number
    NETWORK train|sampler MODE LAYOUT       [seconds, bytes] of one step, after one that is not counted; MODE eager|compile,
                                            LAYOUT contiguous|channels_last; bytes at the peak, null without a GPU
"""

import functools

import torch
import torch.nn.functional as F
from torch_answers import DEVICE, LAYOUTS, SETTINGS, serve, timed
from torch_unet import GROUPS, UNet

RATE, DECAY = 1e-4, 0.999


def adm(channels, mults, blocks, attention_factors, head, **rest):
    return UNet(channels, mults, blocks, attention_factors, head)


def diffusers(image, channels, mults, blocks, attention_factors, head, **rest):
    """UNet2DModel with ADM's blocks: scale and shift by the embedding, resampling inside of residual blocks."""
    from diffusers import UNet2DModel

    attended = [2**level in attention_factors for level in range(len(mults))]

    class Network(UNet2DModel):
        def forward(self, x, time):
            return super().forward(x, time).sample

    return Network(
        sample_size=image,
        block_out_channels=[mult * channels for mult in mults],
        layers_per_block=blocks,
        down_block_types=["AttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attended],
        up_block_types=["AttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attended)],
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=head,
        norm_num_groups=GROUPS,
    )


NETWORKS = {"adm": adm, "diffusers": diffusers}


class Steps:
    """The two steps of a network, in one layout, eager or compiled."""

    def __init__(self, network, mode, layout):
        self.network = NETWORKS[network](**SETTINGS).to(DEVICE, memory_format=LAYOUTS[layout])
        self.apply = torch.compile(self.network) if mode == "compile" else self.network
        size = SETTINGS["batch"], 3, SETTINGS["image"], SETTINGS["image"]
        self.x = torch.randn(size, device=DEVICE).contiguous(memory_format=LAYOUTS[layout])
        self.time = torch.full(size[:1], 500.0, device=DEVICE)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), RATE, fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        # Of what a step works on: parameters; to train, two moments and the average too.
        size = sum(p.nbytes for p in self.network.parameters())
        self.bytes = {"train": 4 * size + self.x.nbytes, "sampler": size + self.x.nbytes}

    def eps(self):
        enabled = SETTINGS["dtype"] == "bfloat16"
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            return self.apply(self.x, self.time).float()

    def train(self):
        F.mse_loss(self.eps(), self.x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.network.parameters()), 1 - DECAY)

    @torch.no_grad()
    def sampler(self):
        """DDIM's, of a network that predicts eps, between two levels."""
        eps = self.eps()
        return 0.6 * (self.x - 0.8 * eps) / 0.6 + 0.7 * eps


steps_of = functools.cache(Steps)


def answer(words):
    """Of a request's words."""
    network, what, *how = words
    if what == "parameters":
        return sum(p.numel() for p in NETWORKS[network](**SETTINGS).parameters())
    steps = steps_of(network, *how)
    seconds, memory = timed(getattr(steps, what))
    # Other networks lie on the device too: only what this one adds to them counts.
    return seconds, None if memory is None else memory + steps.bytes[what]


if __name__ == "__main__":
    serve(answer)
