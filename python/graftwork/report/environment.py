"""What graftwork runs on: versions, processor, GPU, and which extras are installed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from graftwork import __version__

__all__ = ["environment"]

_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]")


def environment() -> dict[str, Any]:
    """JSON-able facts; what is not there is None, and the missing packages of each extra are named."""
    import torch

    return {
        "graftwork": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cpu_level": _cpu_level(),
        "threads": torch.get_num_threads(),
        "cuda_built": find_spec("graftwork._cuda") is not None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "extras": {extra: sorted(missing) for extra, missing in sorted(_extras().items())},
    }


def _cpu_level() -> str | None:
    """The instruction-set level that the native core chose; None where the core was not built."""
    from graftwork.ops import isa_level

    return isa_level()


def _extras() -> dict[str, set[str]]:
    """For every extra, the packages of it that are not installed."""
    missing: dict[str, set[str]] = {}
    for package, extra in _requirements():
        missing.setdefault(extra, set())
        if _version(package) is None:
            missing[extra].add(package)
    return missing


def _requirements() -> Iterator[tuple[str, str]]:
    try:
        requirements = metadata.requires("graftwork") or []
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        if found := _REQUIREMENT.match(requirement):
            yield found[1], found[2]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
