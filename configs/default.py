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
                "name": "captioned_scenes",  # or tfds:NAME, folder:PATH, shards:GLOB (docs/data.md); swiss_roll and heartbeat are
                #   vectors, for model.kind = mlp
                "dir": "data",  # where prepared data sets are kept
                "image_size": 32,  # pixels per side
                "channels": 3,  # 3 of colour pictures, 1 of grey ones
                "max_objects": 1,  # captioned_scenes: 1, or 2 for one or two objects
                "spread": 1.0,  # captioned_scenes: how far a lone object strays from the middle, 0 to 1 (all of the image)
                "num_train_images": 20_000,  # captioned_scenes: how many scenes to draw
                "num_classes": 8,  # for model.condition = label; the scenes' label is the (first) object's shape
                "image_field": "image",  # names in the set's examples; dotted for what is nested, as captions.text
                "caption_field": "caption",  # its value may be several captions, of which each draw takes one
                "label_field": "label",
                "crop": "centre",  # centre or random square, once the short side is image_size; none squeezes the whole
                "random_crop_min": 0.8,  # random: the least side of the square as a share of the short side, ADM's classifiers' 0.8
                "flip": False,  # mirror half of the pictures; not where captions say left and right
                "on_error": "raise",  # an example that cannot be used: raise, or skip to take another, told and counted
                "workers": 0,  # processes that read ahead; 0 is a thread of this one
            },
            "text": {
                "tokenizer": "trained",  # a BPE learned from the captions, gpt2: GLIDE's, or for model.kind = clip clip: CLIP's
                "vocab_size": 512,  # trained: most tokens to learn
                "vocabulary": "vocab.bpe.gz",  # gpt2 and clip: the file of merges, from openai/glide-text2im
                "context_length": 16,  # tokens per caption; longer ones are cut
                "width": 128,  # of the text transformer
                "num_layers": 2,
                "num_heads": 4,
                "scan_layers": False,  # one compiled layer that runs num_layers times, its parameters stacked: compiles sooner
            },
            "model": {
                "kind": "unet",  # unet, classifier (of noisy images, the unet's way down), clip (of noisy images and captions),
                #   annotated (the tutorial's small unet: channels, channel_mults, norm_groups), or mlp for data that are vectors
                "width": 128,  # mlp: of its residual blocks
                "depth": 4,  # mlp: number of them
                "octaves": 0,  # mlp: sines and cosines of each number at so many octaves, for fine detail
                "condition": "text",  # text, label or none
                "null_class": True,  # label: one class more, the null condition; without it there is no classifier-free guidance
                "low_res": 0,  # side of a smaller picture, enlarged, as a further condition: an upsampler; 0 is none
                "inpaint": False,  # a picture with a part masked as a further condition
                "pool": "attention",  # classifier: attention, adaptive, spatial or spatial_v2
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
                "remat": "none",  # what is computed again in the backward pass, for less memory: none, full (all of each block, a
                #   third more time) or dots (all but what dense layers give)
                "attention": "auto",  # over pixels: xla, cudnn (GPU, bfloat16), flash (TPU, from 1024 pixels) or auto
                "dtype": "float32",  # of the blocks' arithmetic: float32 or bfloat16; parameters are float32
            },
            "clip": {  # model.kind = clip
                "patch_size": 4,  # pixels
                "image_width": 768,
                "image_layers": 12,
                "image_heads": 12,
                "text_width": 512,
                "text_layers": 12,
                "text_heads": 8,
                "features": 512,  # of the space in which both are compared
                "vocab_size": 65536,  # rows of the table of tokens
                "context_length": 77,
                "learn_logit_scale": False,  # of similarities, 1 / 0.07 at first and 100 at most; else it is 100
            },
            "diffusion": {
                "kind": "gaussian",  # gaussian, or discrete for data of categories
                "transition": "uniform",  # discrete: what a lost category becomes: uniform (any) or absorbing (a mask)
                "schedule": "linear_path",  # linear_path, cosine, linear, sigmoid, edm, or a table of betas: ddpm_linear,
                #   ddpm_linear_unscaled (1e-4 to 0.02 for any T), ddpm_cosine (or ddpm_squaredcos_cap_v2), ddpm_quadratic,
                #   ddpm_sigmoid, ddpm_sigmoid_alpha_bar, ddpm_const, ddpm_jsd, ddpm_geometric, ddpm_warmup10 or ddpm_warmup50
                "schedule_shift": 1.0,  # factor of sigma / alpha for larger images, their side over the schedule's own; 1 is off
                "sigma_max": 80.0,  # edm: noise at t = 1, in units of the data
                "num_table_steps": 1000,  # T of the ddpm_ schedules
                "rescale_times": False,  # ddpm_: the network is told times as if T were 1000, as improved DDPM's are
                "zero_terminal_snr": False,  # ddpm_: rescale the table so that its last step is pure noise
                "parameterization": "velocity",  # what the network outputs: x0, eps, v, velocity, score, edm or previous (ddpm_)
                "sigma_data": 0.5,  # edm, as parameterization, schedule or weight: standard deviation of the data
                "variance": "small",  # of the reverse step: small, large, or by the network (ddpm_): learned or learned_range
                "objective": "denoising",  # the error in loss_space; or improved DDPM's (ddpm_): mse, rescaled_mse, kl, rescaled_kl
                "loss_space": "velocity",  # where denoising's error is measured: the names of parameterization
                "distance": "l2",  # of denoising's error: l2, l1 or huber
                "weight": "none",  # of the error of eps by noise level: none, min_snr, p2, edm or sigmoid
                "weight_gamma": 5.0,  # min_snr: most that an error of x0 weighs, 5 is usual; p2: the power, 1 is usual
                "weight_bias": 0.0,  # sigmoid: the logsnr below which noise counts in full
                "time": "logit_normal",  # distribution of the training time: logit_normal, uniform, log_normal_sigma (EDM's), or
                #   for ddpm_ schedules discrete_uniform or loss_second_moment (steps with large losses more often)
                "time_mean": 0.0,  # logit_normal: positive leans to noise; log_normal_sigma: of log sigma, -1.2 in EDM
                "time_std": 1.0,  # of the same; 1.2 in EDM
                "cond_dropout": 0.1,  # probability of the null condition, for classifier-free guidance
                "low_res_noise": 0.0,  # upsamplers: the small picture is taught with noise of deviations from 0 to this, of [-1, 1]
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_steps": 1000,  # linear; 0 is none
                "decay": "constant",  # after the warm-up: constant, or linear or cosine to 0 at decay_steps
                "decay_steps": 100_000,  # end of the decay, apart from train.num_steps
                "beta1": 0.9,
                "beta2": 0.999,
                "weight_decay": 0.0,
                "clip_norm": 1.0,  # global norm of the gradient; 0 is no limit
            },
            "ema": {
                "decay": 0.9999,  # limit; young averages decay faster
                "more_decays": (),  # of further averages, for sample.py --ema_decay
                "posthoc_stds": (),  # (0.05, 0.1): power-function averages of such lengths, for sample.py --ema_std of any
                "snapshot_every_steps": 5_000,  # of the posthoc ones, and at the end; kept, in WORKDIR/ema_snapshots
            },
            "train": {
                "init_from": "",  # fine-tuning: a run or converted checkpoint where a new run begins (docs/glide.md)
                "init_reshaped": "refuse",  # its parameters of another shape than here: refuse, or new to begin them untrained
                "batch_size": 128,  # over all devices
                "accumulation": 1,  # pieces of the batch gone through one after the other: as much less memory, the same step
                "num_steps": 100_000,  # where training stops
                # Each at the end of a run too; 0 is never, but logs and checkpoints at the end.
                "log_every_steps": 100,
                "sample_every_steps": 5_000,
                "evaluate_every_steps": 0,  # metrics of a few samples (the group evaluate)
                "checkpoint_every_steps": 5_000,
                "checkpoints_to_keep": 3,
                "max_skipped_steps": 20,  # so many in a row whose loss or gradient is not finite end the run; 0 is no limit
                "rollbacks": 0,  # how often it then goes back to the last checkpoint by itself, past the batches since
            },
            "sample": {
                "sampler": "ddim",  # see build.SAMPLERS: ancestral, ddim, plms, euler, euler_ancestral, heun, midpoint, lms,
                #   dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde or unipc
                "eta": -1.0,  # noise of ddim, euler_ancestral and the _sde samplers; below 0 is each one's own (0, 1, 1)
                "order": 0,  # of plms, lms and unipc; 0 is each one's own
                "churn": 0.0,  # heun: EDM's S_churn, noise added back over the whole run
                "grid": "uniform",  # uniform, quadratic, shifted, karras, logsnr or respaced
                "shift": 3.0,  # shifted: above 1 spends more steps at high noise
                "rho": 7.0,  # karras: above 1 spends more steps at low noise
                "sigma_min": 0.002,  # karras and logsnr: sigma / alpha of the last step before the data
                "sigma_max": 80.0,  # karras and logsnr: of the first step
                "spacing": "250",  # respaced: ADM's and GLIDE's strings ("250", "ddim25", "10,15,20", "fast27"); ddpm_ schedules
                "num_steps": 50,  # for all grids but respaced
                "start": 1.0,  # the grid's first time; below 1 for eps networks on schedules that end without signal
                "guidance": "classifier_free",  # or autoguidance, by an earlier checkpoint, or none
                "guidance_scale": 3.0,  # 1 is off
                "guidance_combine": "plain",  # plain, rescaled or projected (APG)
                "guidance_low": 0.0,  # no guidance at times below
                "guidance_high": 1.0,  # no guidance at times above
                "guidance_rescale": 0.7,  # rescaled: share of the spread that is pulled back
                "apg_parallel": 0.0,  # projected: share of the part along x0 that is kept
                "apg_norm": 0.0,  # projected: limit of the difference's norm over an image; 0 is none
                "threshold": "clip",  # of predicted images: clip to [-1, 1], dynamic (Imagen) or none
                "classifier_scale": 1.0,  # of the gradient of a classifier, or of CLIP
                "threshold_quantile": 0.995,  # dynamic: of the absolute pixel values
                "temperature": 1.0,  # of the first noise; 0.997 in GLIDE's upsampler
                "samples_per_prompt": 4,
                "prompts": (  # of the grids that training shows
                    "a large red circle on a white background",
                    "a small blue square on a black background",
                    "a large green triangle on a grey background",
                    "a large yellow star on a black background",
                ),
            },
            "evaluate": {  # while it trains, with sample's sampler and guidance_scale; of captioned scenes score_* by the checker
                "num_samples": 64,  # pictures, of the split's first captions
                "split": "validation",  # or test: pairs of colour and shape that training never sees together
                "features": "inception",  # metrics fid (fd) and kid by inception, efficientnet or classifier, where file is set
                "file": "",  # its weights, or a classifier's --workdir, as evaluate's --features_file
            },
            "parallel": {
                "placement": "pmap",  # pmap (data-parallel, parameters replicated), sharded (over a mesh) or single
                "mesh": (1, -1, 1),  # sharded: devices along data, fsdp and tensor; -1 is what is left
            },
        }
    )
