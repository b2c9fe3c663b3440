"""Sparse fine-tuning from a recipe, and deltas onto checkpoints: what the command line runs."""
