"""The Python source of the installed libraries, read as text: nothing is imported or run.

The packages are those that a graftwork environment with the ``hf`` extra always has, so that two machines
with the same pins see the same text.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graftwork.errors import MissingExtra

STDLIB = "stdlib"
PACKAGES = (
    STDLIB, "torch", "numpy", "transformers", "sympy", "networkx", "huggingface_hub", "rich", "fsspec",
)  # fmt: skip

_NOT_LIBRARY_CODE = {"test", "tests", "testing", "site-packages", "__pycache__"}
_NOT_EVERYWHERE = {"idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip"}  # absent from some Pythons


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its package, its path inside the package (posix), and where it lies here."""

    package: str
    name: str
    path: Path

    @property
    def key(self) -> int:
        """A number in [0, 2**64) from package and name alone: the order and the split of every corpus."""
        return int.from_bytes(hashlib.sha256(f"{self.package}/{self.name}".encode()).digest()[:8], "big")

    def text(self) -> str | None:
        """The file's text, or None if it is not UTF-8."""
        try:
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class Definition:
    """A documented function: its module, its name, its docstring and its source without the docstring."""

    module: Module
    name: str
    docstring: str
    code: str

    @property
    def summary(self) -> str:
        """The docstring's first paragraph on one line."""
        return " ".join(self.docstring.split("\n\n", 1)[0].split())


def modules(package: str, limit: int | None = None) -> list[Module]:
    """The source files of ``package`` without its tests, ordered by `Module.key`; at most ``limit`` of them.

    Raises
    ------
    MissingExtra
        If the package is not installed.
    """
    root = _root(package)
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if _NOT_LIBRARY_CODE.isdisjoint(parts) and _is_library(package, parts):
            found.append(Module(package, "/".join(parts), path))
    return sorted(found, key=lambda module: module.key)[:limit]


def definitions(files: Iterable[Module]) -> Iterator[Definition]:
    """Every documented function of the files, in the order of the files and of their lines."""
    for module in files:
        text = module.text()
        if text is not None:
            yield from _definitions_of(module, text)


def _root(package: str) -> Path:
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(f"the package {package} is not installed", remedy="pip install 'graftwork[hf]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _is_library(package: str, parts: tuple[str, ...]) -> bool:
    if any(part.startswith("test_") for part in parts):
        return False
    if package != STDLIB:
        return True
    top = parts[0].removesuffix(".py")
    return top in sys.stdlib_module_names and top not in _NOT_EVERYWHERE


def _definitions_of(module: Module, text: str) -> Iterator[Definition]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.split("\n")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in sorted(functions, key=lambda node: (node.lineno, node.col_offset)):
        docstring = ast.get_docstring(node)
        if docstring and len(node.body) > 1:
            yield Definition(module, node.name, docstring, _code_without_docstring(node, lines))


def _code_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    quoted = node.body[0]
    kept = lines[node.lineno - 1 : quoted.lineno - 1] + lines[quoted.end_lineno : node.end_lineno]
    return "\n".join(line[node.col_offset :] if line[: node.col_offset].isspace() else line for line in kept)
