from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.compose.models import family


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``one``, ``two`` and ``three`` in bf16; not to be changed."""
    return family(tmp_path_factory.mktemp("models"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp32."""
    return family(tmp_path_factory.mktemp("wide"))
