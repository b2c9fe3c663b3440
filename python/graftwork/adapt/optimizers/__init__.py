"""Optimizers that train chosen weights of a model."""
