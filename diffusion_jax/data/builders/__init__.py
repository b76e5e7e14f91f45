"""Data sets that this project prepares from files which a package manager can fetch; `python -m diffusion_jax.data` runs them."""
