"""What the documentation shows runs as it stands."""

from __future__ import annotations

import copy
import doctest
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from graftwork.adapt import SparseDelta
from tests.generators.checkpoints import updated, write_folder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "graftwork"
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_docstrings(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed


def readme_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


class Regression(nn.Module):
    """Called with a batch's fields, it gives an object with a loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self.head(self.body(x).tanh()).square().mean())


def test_the_readme_example_of_sparse_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code = readme_examples()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Regression()
    base = copy.deepcopy(model)
    german = copy.deepcopy(base)
    with torch.no_grad():
        german.body.weight[0, 0] += 1.0
    SparseDelta.from_models(base, german).save("german.safetensors")
    seen: list[list[torch.Tensor]] = []

    def evaluate(given: nn.Module) -> None:
        seen.append([param.detach().clone() for param in given.parameters()])

    given = {"model": model, "base": base, "evaluate": evaluate, "batches": [{"x": torch.ones(4, 8)}] * 3}
    before = [param.detach().clone() for param in base.parameters()]
    exec(compile(code, "README.md", "exec"), given)
    assert all(map(torch.equal, base.parameters(), before))
    assert not all(map(torch.equal, seen[0], before))
    assert given["task"].entries == 3  # 4 % of 81 weights
    assert given["both"].entries in (3, 4)


def test_the_readme_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = readme_examples()
    monkeypatch.chdir(tmp_path)
    model = nn.ModuleDict({"lm_head": nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)})
    base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    chat = {name: updated(tensor, 1e-3, 1) for name, tensor in base.items()}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "runs" / "chat", chat)
    write_folder(
        tmp_path / "runs" / "code", {name: updated(tensor, 1e-2, 2) for name, tensor in base.items()}
    )
    trained = {name: updated(tensor, 1e-5, 3) for name, tensor in base.items()}
    replica = {name: tensor.clone() for name, tensor in base.items()}
    exec(compile(code, "README.md", "exec"), {"model": model, "trained": trained, "replica": replica})
    assert torch.equal(replica["lm_head.weight"], trained["lm_head.weight"])
    assert torch.equal(model["lm_head"].weight, chat["lm_head.weight"])
    assert "% of the files" in capsys.readouterr().out
