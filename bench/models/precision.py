"""The cheapest arithmetic that trains well on this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def training_autocast() -> AbstractContextManager[None]:
    """bf16 matrix products on CPUs that have instructions for them; no change elsewhere."""
    features = torch.cpu.get_capabilities()
    fast = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)
