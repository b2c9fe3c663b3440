"""A tiny language model and its trainer: real training dynamics in seconds, for benchmarks and tests."""

from __future__ import annotations

from bench.tiny.model import TinyConfig, TinyLM
from bench.tiny.training import byte_tokens, evaluate, train

__all__ = ["TinyConfig", "TinyLM", "byte_tokens", "evaluate", "train"]
