"""Sparse optimizers within transformers.Trainer and accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.adapt import AccumulatedGradient, LotterySparseFinetuner, Phase, SparseAdamW, SpIELFinetuner

pytestmark = pytest.mark.filterwarnings("default")


class Regression(nn.Module):
    """A model as Trainer takes it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.head(torch.tanh(self.body(inputs))).squeeze(-1)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


class Examples(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[number], "labels": self.inputs[number].sum()}


INDICES = {"body.weight": torch.arange(0, 48, 5)}


def parameters(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if name != "body.bias"]


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)


def sparse_adamw(net: nn.Module) -> torch.optim.Optimizer:
    return SparseAdamW(parameters(net), INDICES, lr=0.05, max_norm=1.0)


def trainer(folder: Path, net: nn.Module, optimizer: Any, scheduler: Any) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `hf` brings it)"
    )
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        save_steps=4,
        logging_steps=100,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    return transformers.Trainer(net, settings, train_dataset=Examples(), optimizers=(optimizer, scheduler))


def test_trainer_trains_and_resumes_exactly(tmp_path: Path) -> None:
    net, base = Regression(), Regression()
    optimizer = sparse_adamw(net)
    whole = trainer(tmp_path / "a", net, optimizer, decay(optimizer))
    whole.train()
    frozen = torch.ones(48, dtype=torch.bool)
    frozen[INDICES["body.weight"]] = False
    assert torch.equal(net.body.weight.view(-1)[frozen], base.body.weight.view(-1)[frozen])
    assert not torch.equal(net.body.weight, base.body.weight)
    assert torch.equal(net.body.bias, base.body.bias)
    other = Regression()
    optimizer = sparse_adamw(other)
    resumed = trainer(tmp_path / "b", other, optimizer, decay(optimizer))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), other.parameters(), strict=True))


def test_lottery_phases_with_trainer(tmp_path: Path) -> None:
    net, base = Regression(), Regression()

    def phase(phase: Phase) -> None:
        optimizer = phase.optimizer(0.05, max_norm=1.0)
        trainer(tmp_path / phase.kind, net, optimizer, phase.scheduler(decay)).train()
        assert phase.steps == 8

    delta = LotterySparseFinetuner(net, k=10, full="head.*").fit(phase, phase)
    assert delta.entries == 10
    delta.apply_(base, with_full=True)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), base.parameters(), strict=True))


def test_spiel_with_trainer(tmp_path: Path) -> None:
    net, base = Regression(), Regression()
    policy = AccumulatedGradient(period=4, window=2)
    finetuner = SpIELFinetuner(net, k=12, targets="body", full="head.*", policy=policy, total_steps=8)
    optimizer = finetuner.optimizer(0.05)
    start = optimizer.state[net.body.weight]["indices"].clone()
    trainer(tmp_path, net, optimizer, decay(optimizer)).train()
    assert finetuner.steps == 8
    assert net.body.weight.grad is None
    assert not torch.equal(optimizer.state[net.body.weight]["indices"], start)
    finetuner.delta().apply_(base, with_full=True)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), base.parameters(), strict=True))


def test_accelerate() -> None:
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed (the extra `bench` brings it)"
    )
    nets = [Regression(), Regression()]
    batches = list(torch.utils.data.DataLoader(Examples(), batch_size=8))
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(nets[0], SparseAdamW(parameters(nets[0]), INDICES, lr=0.05))
    plain = SparseAdamW(parameters(nets[1]), INDICES, lr=0.05)
    for batch in batches:
        optimizer.zero_grad()
        accelerator.backward(prepared(**batch)["loss"])
        optimizer.step()
        plain.zero_grad()
        nets[1](**batch)["loss"].backward()
        plain.step()
    assert all(torch.equal(x, y) for x, y in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
