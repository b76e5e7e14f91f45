"""Checkpoints from before a field of the config changed its kind."""

import jax
import numpy as np
import pytest

from configs.swiss_roll import get_config
from diffusion_jax import build, sampling
from diffusion_jax.training import beginning, checkpoint


@pytest.mark.parametrize("old, new", [(True, "full"), (False, "none")])
def test_remat_as_it_was_before_its_policies_had_names_still_samples_and_goes_on(tmp_path, old, new):
    config = get_config("debug")
    network = build.model(config, None).network
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(network.init, jax.random.key(0)))
    saved = config.to_dict()
    saved["model"]["remat"] = old
    checkpoint.write_weights(tmp_path, params, saved, None)
    loaded = sampling.load(str(tmp_path), {})
    assert loaded.model.config.model.remat == new
    assert beginning.resume(config, tmp_path) == (0, None)
