"""Rematerialisation: what the forward pass keeps of a block for the backward pass, which computes the rest again."""

import flax.linen as nn
import jax

REMAT = {
    "none": None,  # all is kept
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # dense layers' outputs; not convolutions', nor logits
}


def rematerialised(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """The block under a policy of REMAT."""
    return block if policy == "none" else nn.remat(block, policy=REMAT[policy])
