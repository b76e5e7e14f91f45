"""Diffusion models in JAX: train them on TPU or GPU pods, sample from them at a terminal."""

__version__ = "0.1.0"
