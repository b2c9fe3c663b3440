"""Checkpoints: safetensors files, and folders of them, of any architecture.

Reading is lazy and memory-mapped and checks everything; writing is atomic; pickles are refused. Nothing here
loads torch before a tensor is asked for.
"""

from __future__ import annotations

from graftwork.checkpoint.header import Header, TensorInfo, parse_header, read_header
from graftwork.checkpoint.reader import Checkpoint, open_checkpoint
from graftwork.checkpoint.writer import write_checkpoint

__all__ = [
    "Checkpoint",
    "Header",
    "TensorInfo",
    "open_checkpoint",
    "parse_header",
    "read_header",
    "write_checkpoint",
]
