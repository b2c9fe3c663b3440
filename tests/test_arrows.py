"""The arrows of the architecture: who may import whom, who may know torch, who may touch a pointer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "graftwork"
FILES = sorted(PACKAGE.rglob("*.py"))

NATIVE = {"_core", "_cuda"}
LOWEST = {"errors"}
#: What each part may import beside itself. A part that is not listed is a job.
ARROWS = {
    "": set(),
    "errors": set(),
    "reference": LOWEST,
    "triton_kernels": LOWEST,
    "ops": LOWEST | NATIVE | {"reference", "triton_kernels"},
    "checkpoint": LOWEST,
    "recipe": LOWEST,
    "texts": LOWEST | {"checkpoint"},
    "delta": LOWEST | {"ops", "checkpoint"},
}
JOB = LOWEST | {"ops", "checkpoint", "recipe", "delta", "texts"}
PARTS = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
JOBS = PARTS - set(ARROWS) - {"cli", "report", "__main__"}
FRONT = {"cli": JOB | JOBS | {"report"}, "report": JOB | JOBS, "__main__": {"cli"}}


def public(job: str) -> set[str]:
    """The names that a job offers, which other jobs may use; what lies behind them they may not."""
    tree = (
        ast.parse((PACKAGE / job / "__init__.py").read_text())
        if (PACKAGE / job).is_dir()
        else ast.Module([], [])
    )
    return {
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }


#: These load without torch: `graftwork --help` and `graftwork list` must not wait for it.
TORCHLESS = ("__init__", "errors", "checkpoint", "recipe", "cli")


def part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(node: ast.AST) -> Iterator[str]:
    """Absolute names of the modules that a statement imports; `from a import b` gives a.b, which may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: none inside functions, none for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from at_import_time(node)


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_follow_the_arrows(path: Path) -> None:
    here = part(path)
    allowed = ARROWS.get(here) if here in ARROWS else FRONT.get(here, JOB)
    for node in ast.walk(ast.parse(path.read_text())):
        for module in imported(node):
            top, _, rest = module.partition(".")
            if top != "graftwork" or rest.startswith("__"):
                continue
            there = rest.split(".")[0]
            offered = here in JOBS and there in JOBS and rest.removeprefix(f"{there}.") in public(there)
            assert there == here or there in allowed or offered, (
                f"{name(path)}:{node.lineno} imports {module}"
            )


@pytest.mark.parametrize(
    "path", [path for path in FILES if (part(path) or "__init__") in TORCHLESS], ids=name
)
def test_no_torch_at_import_time(path: Path) -> None:
    heavy = {
        "torch",
        "triton",
        "graftwork.ops",
        "graftwork.reference",
        "graftwork.triton_kernels",
        "graftwork.delta",
    }
    for node in at_import_time(ast.parse(path.read_text())):
        for module in imported(node):
            prefixes = {module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)}
            assert not heavy & prefixes, f"{name(path)}:{node.lineno} imports {module}"


def test_pointers_stay_in_one_module() -> None:
    touching = [name(path) for path in FILES if re.search(r"\bdata_ptr\b|\bctypes\b", path.read_text())]
    assert touching == ["ops/_native.py"]


def test_the_native_code_knows_neither_torch_nor_python() -> None:
    sources = [
        path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"}
    ]
    assert sources
    for path in sources:
        text = path.read_text()
        assert not re.search(r"#\s*include\s*[<\"](torch|ATen|c10)/", text), path
        if path.parent.name != "bind":
            assert not re.search(r"#\s*include\s*[<\"](pybind11/|Python\.h)", text), path


def test_no_module_is_called_after_nothing() -> None:
    banned = {"utils", "util", "helpers", "common", "misc"}
    assert not [name(path) for path in FILES if path.stem.strip("_") in banned]
