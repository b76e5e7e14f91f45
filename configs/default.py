"""Every field of a config, once, with its unit and meaning. A recipe calls this and sets only what differs.

python train.py --config=configs/default.py --workdir=runs/mine --config.train.batch_size=64
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Text to image by flow matching on the linear path, with a small ADM U-Net."""
    return ConfigDict(
        {
            "seed": 0,  # of parameters, data order and noise
            "data": {
                "name": "captioned_scenes",  # see build.DATA_SOURCES
                "dir": "data",  # where prepared data sets are kept
                "image_size": 32,  # pixels per side
                "max_objects": 1,  # captioned_scenes: 1, or 2 for one or two objects
                "spread": 1.0,  # captioned_scenes: how far a lone object strays from the middle, 0 to 1 (all of the image)
                "num_train_images": 20_000,  # captioned_scenes: how many scenes to draw
                "num_classes": 8,  # for model.condition = label; the scenes' label is the (first) object's shape
            },
            "text": {
                "vocab_size": 512,  # most tokens of the BPE trained on the captions
                "context_length": 16,  # tokens per caption; longer ones are cut
                "width": 128,  # of the text transformer
                "num_layers": 2,
                "num_heads": 4,
            },
            "model": {
                "condition": "text",  # text, label or none
                "channels": 128,  # of the first level
                "channel_mults": (1, 2, 2),  # per level, each at half the resolution of the one before
                "num_res_blocks": 2,  # per level
                "attention_resolutions": (16, 8),  # heights of feature maps with attention; the middle always has it
                "num_heads": 4,  # ignored where head_channels is positive
                "head_channels": 0,  # channels per head
                "qkv_order": "legacy",  # layout of the qkv layer's columns: legacy (OpenAI's) or new (ADM at 64 pixels)
                "adaptive_norm": True,  # AdaGN: the embedding scales and shifts; else it is added
                "norm_groups": 32,
                "resblock_updown": True,  # BigGAN's resampling inside residual blocks
                "dropout": 0.0,
                "patch_size": 1,  # > 1 works on patches of so many pixels: cheaper at high resolution
                "remat": False,  # recompute blocks in the backward pass: less memory, a third more time
                "dtype": "float32",  # of the blocks' arithmetic: float32 or bfloat16; parameters are float32
            },
            "diffusion": {
                "schedule": "linear_path",  # linear_path, cosine, linear, ddpm_linear or ddpm_cosine
                "num_table_steps": 1000,  # T of the ddpm_ schedules
                "parameterization": "velocity",  # what the network outputs: x0, eps, v, velocity or score
                "loss_space": "velocity",  # where its error is measured: the same names
                "time": "logit_normal",  # distribution of the training time: logit_normal or uniform
                "time_mean": 0.0,  # logit_normal: positive leans to noise
                "time_std": 1.0,
                "cond_dropout": 0.1,  # probability of the null condition, for classifier-free guidance
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_steps": 1000,  # linear; 0 is none
                "decay": "constant",  # after the warm-up: constant, or cosine to 0 at decay_steps
                "decay_steps": 100_000,  # end of the cosine, apart from train.num_steps
                "beta1": 0.9,
                "beta2": 0.999,
                "weight_decay": 0.0,
                "clip_norm": 1.0,  # global norm of the gradient
            },
            "ema": {"decay": 0.9999},  # limit; young averages decay faster
            "train": {
                "batch_size": 128,  # over all devices
                "num_steps": 100_000,  # where training stops
                "log_every_steps": 100,
                "sample_every_steps": 5_000,
                "checkpoint_every_steps": 5_000,
                "checkpoints_to_keep": 3,
            },
            "sample": {
                "sampler": "ddim",  # ancestral, ddim, euler or heun
                "eta": 0.0,  # ddim: 0 is deterministic
                "grid": "uniform",  # uniform, quadratic or shifted
                "shift": 3.0,  # shifted: above 1 spends more steps at high noise
                "num_steps": 50,
                "start": 1.0,  # the grid's first time; below 1 for eps networks on schedules that end without signal
                "guidance_scale": 3.0,  # 1 is off
                "clip_x0": True,  # clamp predicted images to [-1, 1]
                "samples_per_prompt": 4,
                "prompts": (  # of the grids that training shows
                    "a large red circle on a white background",
                    "a small blue square on a black background",
                    "a large green triangle on a grey background",
                    "a large yellow star on a black background",
                ),
            },
            "parallel": {"placement": "pmap"},  # pmap over all local devices, or single
        }
    )
