"""graftwork: carry what one pretrained model has learned over to another.

Importing the package loads neither torch nor any job; a job's module loads when it is first used
(``graftwork.store``, ``graftwork.checkpoint``, ``graftwork.ops``, ...).
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_MODULES = ("adapt", "checkpoint", "delta", "ops", "recipe", "reference", "report", "store")

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
