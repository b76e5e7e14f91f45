"""What a recipe needs on named chips, worked out before any is paid for: python -m diffusion_jax.plan."""
