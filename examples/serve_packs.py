"""One model answers a batch whose rows belong to different fine-tunes, each of them a skill pack of some bits a weight.

``python examples/serve_packs.py`` trains a small base and three skills in half a minute and serves them.
``python examples/serve_packs.py BASE FINETUNE [FINETUNE ...]`` does so with folders as Hugging Face writes them.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import CompressionPlan, Quantize, Raw
from graftwork.store.skill_pack.serving import serve

DIGITS = 10
LENGTH = 12
SKILLS = {"count up": 1, "count down": -1, "threes": 3}


def sequences(step: int | None, rows: int) -> Tensor:
    """Digits of which each is the one before plus `step`, after two to begin with; random ones without a step."""
    if step is None:
        return torch.randint(DIGITS, (rows, LENGTH))
    first = torch.randint(DIGITS, (rows, 1))
    return (first + step * torch.arange(LENGTH)) % DIGITS


def train(model: PreTrainedModel, step: int | None, steps: int) -> PreTrainedModel:
    """Train in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        batch = sequences(step, 32)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def trained() -> tuple[PreTrainedModel, dict[str, PreTrainedModel]]:
    """A base that knows the digits, and a fine-tune for each skill."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=DIGITS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    base = train(LlamaForCausalLM(config), None, 50)
    return base, {name: train(copy.deepcopy(base), step, 250) for name, step in SKILLS.items()}


def packs_of(base: PreTrainedModel, tuned: Mapping[str, PreTrainedModel], bpw: float) -> dict[str, SkillPack]:
    """A pack of each fine-tune."""
    packs = {}
    for name, model in tuned.items():
        packs[name] = SkillPack.build(model, base, bpw=bpw)
        print(f"{name}: {packs[name].nbytes:,} bytes, {packs[name].bits_per_weight:.2f} bits a weight")
    return packs


def digits() -> None:
    """Every row continues its two digits as its pack has learnt to."""
    base, tuned = trained()
    packs = packs_of(base, tuned, bpw=4.0)
    rows = [*SKILLS, None, *reversed(SKILLS)]
    prompts = torch.cat([sequences(SKILLS[row] if row else None, 1)[:, :2] for row in rows])
    with serve(base, packs) as served:
        answers = served.generate(prompts, packs=rows, max_new_tokens=8, do_sample=False, pad_token_id=0)
    right = 0
    for row, answer in zip(rows, answers, strict=True):
        print(f"{row or 'base':>10}: {' '.join(map(str, answer.tolist()))}")
        if row:
            right += answer.tolist() == [
                (int(answer[0]) + SKILLS[row] * i) % DIGITS for i in range(len(answer))
            ]
    print(f"{right} of {sum(row is not None for row in rows)} rows are as their pack has learnt")
    same = 0
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        with mount(base, packs[row] if row else []):
            alone = base.generate(prompt[None], max_new_tokens=8, do_sample=False, pad_token_id=0)
        same += torch.equal(alone[0], answer)
    print(f"{same} of {len(rows)} rows are those of the packs mounted one by one")


def folders(base_folder: str, tuned_folders: list[str]) -> None:
    """Every fine-tune, and the base, go on with the same text, in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    plan = CompressionPlan(
        {"norm|bias": Raw(), "embed": Quantize(2, "midrise", 128), "": Quantize(1, "sign", 128)}
    )
    packs = {Path(folder).name: SkillPack.build(folder, base_folder, plan) for folder in tuned_folders}
    for name, pack in packs.items():
        print(f"{name}: {pack.nbytes:,} bytes, {pack.bits_per_weight:.2f} bits a weight")
    rows = [None, *packs]
    inputs = tokenizer(["def main("] * len(rows), return_tensors="pt")
    with serve(base, packs) as served:
        start = time.perf_counter()
        answers = served.generate(**inputs, packs=rows, max_new_tokens=24, do_sample=False)
        print(f"{time.perf_counter() - start:.1f} s for {len(rows)} rows")
    for row, answer in zip(rows, answers, strict=True):
        print(f"--- {row or 'base'}\n{tokenizer.decode(answer)}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        folders(sys.argv[1], sys.argv[2:])
    else:
        digits()
