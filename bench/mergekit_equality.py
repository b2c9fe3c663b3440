"""Our merges against mergekit's, method by method, on tiny fp32 Llamas: ``python -m bench.mergekit_equality``.

``GRAFTWORK_MERGEKIT_PYTHON`` is the interpreter of an environment with mergekit (``pip install mergekit==0.1.5``). Where
the two differ on purpose, the table says why; ``docs/papers/merging.md`` says it at length. Exits with 1 if a difference
is larger than its row allows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.compose import merge

PYTHON = "GRAFTWORK_MERGEKIT_PYTHON"
ROUNDING = 1e-6  # of the largest weight: fp32 sums in another order
DONORS = ("one", "two", "three")

#: Run in mergekit's environment: every recipe of a list, each into its folder; what fails leaves a text instead.
DRIVER = """
import json, pathlib, sys, traceback
import torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(1)
for name, recipe in json.load(open(sys.argv[1])).items():
    out = pathlib.Path(sys.argv[2], name)
    try:
        options = MergeOptions(random_seed=0, quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options=options)
    except Exception as error:
        out.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
"""


class Case(NamedTuple):
    """A recipe, and the relative difference that is allowed; None: the two draw other random numbers."""

    name: str
    recipe: dict[str, Any]
    allowed: float | None = ROUNDING
    why: str = ""


def cases(folder: Path) -> list[Case]:
    """A recipe for every method that both have, several for those with switches."""
    base = str(folder / "base")

    def recipe(
        method: str,
        each: Sequence[dict[str, Any]],
        shared: dict[str, Any] | None = None,
        based: bool = True,
        listed: bool = False,
    ) -> dict[str, Any]:
        models: list[dict[str, Any]] = [{"model": base}] if listed else []
        models += [
            {"model": str(folder / name)} | ({"parameters": row} if row else {})
            for name, row in zip(DONORS, each, strict=False)
        ]
        found: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32"}
        return found | ({"base_model": base} if based else {}) | ({"parameters": shared} if shared else {})

    weights = [{"weight": 0.5}, {"weight": 0.3}, {"weight": -0.4}]
    dense = [row | {"density": d} for row, d in zip(weights, (0.5, 0.3, 0.8), strict=True)]
    graded = [{"weight": [0.1, 0.9], "density": [{"filter": "mlp", "value": [0.2, 0.6]}, {"value": 0.5}]}] * 2
    edge = "of equal magnitudes the first are kept here"
    random = "other random numbers; the means agree"
    return [
        Case("linear", recipe("linear", weights, based=False)),
        Case("linear, not normalized", recipe("linear", weights, {"normalize": False}, based=False)),
        Case("task_arithmetic", recipe("task_arithmetic", weights, {"lambda": 0.7})),
        Case("task_arithmetic, normalized", recipe("task_arithmetic", weights, {"normalize": True})),
        Case("task_arithmetic, graded", recipe("task_arithmetic", [{"weight": [0.1, 0.9]}] * 3)),
        Case("ties", recipe("ties", dense), why=edge),
        Case("ties, rescaled", recipe("ties", dense, {"rescale": True, "normalize": False, "int8_mask": True}), why=edge),
        Case("ties, graded", recipe("ties", graded), why=edge),
        Case("breadcrumbs", recipe("breadcrumbs", [row | {"gamma": 0.05} for row in dense]), why=edge),
        Case("breadcrumbs_ties", recipe("breadcrumbs_ties", [row | {"gamma": 0.05} for row in dense]), why=edge),
        Case("dare_linear", recipe("dare_linear", dense), None, random),
        Case("dare_linear, density 1", recipe("dare_linear", weights)),
        Case("dare_ties", recipe("dare_ties", dense), None, random),
        Case("dare_ties, density 1", recipe("dare_ties", weights)),
        Case("della", recipe("della", [row | {"epsilon": 0.1} for row in dense]), None, random),
        Case("della, density 1", recipe("della", weights)),
        Case("della_linear, density 1", recipe("della_linear", weights)),
        Case("sce", recipe("sce", [{}] * 3, {"select_topk": 0.3}), why=edge),
        Case("sce, all", recipe("sce", [{}] * 3)),
        Case("slerp", recipe("slerp", [{}], {"t": 0.3}, listed=True)),
        Case("slerp, graded", recipe("slerp", [{}], {"t": [{"filter": "self_attn", "value": [0, 1]}, {"value": 0.5}]},
                                     listed=True)),
        Case("nuslerp", recipe("nuslerp", [{"weight": 1.0}, {"weight": 3.0}], based=False)),
        Case("nuslerp, rows", recipe("nuslerp", [{"weight": 1.0}, {"weight": 3.0}], {"nuslerp_flatten": False})),
        Case("nuslerp, columns", recipe("nuslerp", [{"weight": 1.0}, {"weight": 3.0}],
                                        {"nuslerp_flatten": False, "nuslerp_row_wise": True})),
        Case("multislerp", recipe("multislerp", [{"weight": w} for w in (0.5, 0.3, 0.2)], based=False)),
        Case("multislerp, differences", recipe("multislerp", [{"weight": w} for w in (0.5, 0.3, 0.2)])),
        Case("karcher", recipe("karcher", [{}] * 3, based=False), 1e-5, "ends where a step is below tol"),
        Case("model_stock", recipe("model_stock", [{}] * 3)),
        Case("model_stock, rows", recipe("model_stock", [{}] * 3, {"filter_wise": True})),
        Case("nearswap", recipe("nearswap", [{}], {"t": 0.01}, listed=True), 1e-5, "no least distance of 1e-6 here"),
        Case("passthrough", {"merge_method": "passthrough", "dtype": "float32", "slices": [
            {"sources": [{"model": base, "layer_range": [0, 2]}]},
            {"sources": [{"model": str(folder / "one"), "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
        ]}),
    ]  # fmt: skip


def make_models(folder: Path) -> None:
    """A base and three fine-tunes of it, with differences of several sizes."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    with open_checkpoint(folder / "base") as base:
        tensors = {name: base.tensor(name).clone() for name in base.tensors}
        settings = base.config
    for number, name in enumerate(DONORS):
        source = torch.Generator().manual_seed(number + 1)
        tuned = {
            key: tensor + 0.02 * (number + 1) * torch.randn(tensor.shape, generator=source)
            for key, tensor in tensors.items()
        }
        write_checkpoint(folder / name, tuned, config=settings)


def compare(ours: Path, theirs: Path) -> tuple[float, float]:
    """The largest difference by the largest weight, and the cosine of the two."""
    worst, dot, squares = 0.0, 0.0, [0.0, 0.0]
    with open_checkpoint(ours) as one, open_checkpoint(theirs) as other:
        if set(one.tensors) != set(other.tensors):
            raise SystemExit(
                f"{ours.name}: other tensors: {sorted(set(one.tensors) ^ set(other.tensors))[:4]}"
            )
        for name in one.tensors:
            a, b = one.tensor(name).double(), other.tensor(name).double()
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
            dot += float((a * b).sum())
            squares = [squares[0] + float(a.square().sum()), squares[1] + float(b.square().sum())]
    return worst, dot / (squares[0] * squares[1]) ** 0.5


def main() -> int:
    python = os.environ.get(PYTHON)
    if not python:
        print(f"set {PYTHON} to the interpreter of an environment with mergekit 0.1.5")
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_models(folder)
        table = cases(folder)
        recipes = {f"case-{number}": case.recipe for number, case in enumerate(table)}
        (folder / "recipes.json").write_text(json.dumps(recipes))
        (folder / "theirs").mkdir()
        done = subprocess.run(
            [python, "-c", DRIVER, folder / "recipes.json", folder / "theirs"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stderr[-2000:])
            return 2
        return report(table, folder)


def report(table: Sequence[Case], folder: Path) -> int:
    """Print a row for each case; 1 if one differs more than it may."""
    bad = 0
    print(f"{'recipe':30} {'difference':>11} {'allowed':>9} {'cosine':>9}  why")
    for number, case in enumerate(table):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(case.recipe))
        merge(folder / "recipe.yaml", folder / "ours" / f"case-{number}", threads=1)
        fault = folder / "theirs" / f"case-{number}.error"
        if fault.exists():
            print(f"{case.name:30} mergekit: {fault.read_text()[:80]}")
            bad += 1
            continue
        worst, cosine = compare(folder / "ours" / f"case-{number}", folder / "theirs" / f"case-{number}")
        allowed = "random" if case.allowed is None else f"{case.allowed:.0e}"
        mark = " !" if case.allowed is not None and worst > case.allowed else ""
        bad += bool(mark)
        print(f"{case.name:30} {worst:11.2e} {allowed:>9} {cosine:9.6f}  {case.why}{mark}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
