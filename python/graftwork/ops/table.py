"""Which operation runs natively on which device and dtype; ``python -m graftwork.ops.table`` prints the page."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import graftwork.ops
from graftwork.ops._checks import dtype_names
from graftwork.ops._native import NATIVE

_HEAD = """\
# Operations

Where an operation of `graftwork.ops` has native code, for the dtype of its first argument. Every other device and
dtype runs by the reference, which gives the same result more slowly; a `FallbackWarning` says so once.
Written by `make docs`.

| operation | device | native code | dtypes |
|---|---|---|---|
"""


def _implementation(device: str, module: str) -> str:
    if module == "_core":
        return "C++" if device == "cpu" else "C++, on copies on the host"
    return "CUDA" if module == "_cuda" else "Triton"


def markdown() -> str:
    """The page ``docs/operations.md``: one row for each operation and device."""
    for module in pkgutil.iter_modules(graftwork.ops.__path__):
        if not module.name.startswith("_") and module.name != "table":
            importlib.import_module(f"graftwork.ops.{module.name}")
    rows = [
        f"| `{name}` | {device} | {_implementation(device, route.module)} | {dtype_names(route.dtypes)} |\n"
        for name, routes in sorted(NATIVE.items())
        for device, route in routes.items()
    ]
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(markdown())
