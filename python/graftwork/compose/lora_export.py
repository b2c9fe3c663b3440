"""A merge as a LoRA: for every changed matrix the best factors of a given rank, and what they leave out."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_checkpoint
from graftwork.checkpoint.dtypes import DTYPES, torch_dtype
from graftwork.checkpoint.files import AtomicFolder, write_file
from graftwork.compose.adapter import CONFIG, WEIGHTS
from graftwork.compose.lora_rows import LoraExport, LoraRow
from graftwork.errors import AdapterError, CheckpointError
from graftwork.ops.quantized_delta import svd_delta

__all__ = ["to_lora"]

Source = str | os.PathLike[str] | Checkpoint
Ranks = int | Mapping[str, int]

_FACTORS = ("float32", "bfloat16", "float16")
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "ctrl")
"""Model types of transformers whose linear matrices are stored ``[in, out]``."""
_EMBEDDING = re.compile(r"(^|\.)([a-z_]*embed[a-z_]*|w[tp]e)\.weight$")
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
_WITH_LM_HEAD = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_TILE = 1 << 20


def to_lora(
    base: Source,
    merged: Source,
    out: str | os.PathLike[str],
    *,
    rank: Ranks | None = None,
    energy: float | None = None,
    others: Literal["save", "drop", "refuse"] = "save",
    dtype: str = "float32",
    base_name: str | None = None,
    seed: int = 0,
) -> LoraExport:
    """Write what a merge changed as an adapter folder that peft loads on the base.

    Every changed matrix becomes B·A, its update's largest singular triples, with the root of the singular values in each
    factor and a scale of 1. Convolutions are matrices ``[out, in·kernel]``; embeddings get peft's embedding factors; a
    changed bias beside a matrix is kept in full (``bias: lora_only``).

    Parameters
    ----------
    base, merged : path or Checkpoint
        Two checkpoints of one architecture.
    out : path
        The adapter's folder, which does not exist.
    rank : int or mapping of str to int, optional
        For all matrices, or by patterns of tensors' names (``*.mlp.*``; the first that fits). One above a matrix's smaller
        side is taken as that side, which makes the factors exact up to rounding.
    energy : float, optional
        In (0, 1]: take the least rank that carries this share of a matrix's squared update; with ``rank``, at most that.
    others : "save", "drop" or "refuse"
        Changed tensors that are no matrices (norms), or whose shape is another than the base's (grown embeddings): keep
        their modules in full, leave them out, or raise. All three show in the report.
    dtype : "float32", "bfloat16" or "float16"
        Of the factors; their rounding is part of the error.
    base_name : str, optional
        What the adapter calls its base; default: the base's path.
    seed : int
        Of the range finder.

    Raises
    ------
    AdapterError
        Nothing changed, or something changed that an adapter cannot carry.
    CheckpointError
        The two are not of one architecture, or a weight is not finite.

    Notes
    -----
    One matrix is decomposed at a time, in fp32. The same call gives the same bytes on one machine with one number of
    threads; BLAS differs in last bits elsewhere.
    """
    _check_arguments(rank, energy, others, dtype)
    AtomicFolder(out).check_free()
    with ExitStack() as stack:
        one, two = (
            source if isinstance(source, Checkpoint) else stack.enter_context(open_checkpoint(source))
            for source in (base, merged)
        )
        export = _Export(one, two, rank, energy, dtype, seed)
        export.run(others)
        config = export.config(base_name or str(one.path))
        with AtomicFolder(out) as folder:
            write_checkpoint(folder.path / WEIGHTS, export.tensors)
            write_file(folder.path / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        for checkpoint in (one, two):
            checkpoint.check_unchanged()
    nbytes = sum(tensor.nbytes for tensor in export.tensors.values())
    return LoraExport(Path(out), tuple(export.rows), nbytes, tuple(export.notes))


def _check_arguments(rank: Ranks | None, energy: float | None, others: str, dtype: str) -> None:
    if rank is None and energy is None:
        raise ValueError("give rank, energy or both")
    ranks = [rank] if isinstance(rank, int) else list((rank or {}).values())
    if any(type(number) is not int or number < 1 for number in ranks):
        raise ValueError(f"ranks must be whole numbers of at least 1, got {rank!r}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy!r}")
    if others not in ("save", "drop", "refuse"):
        raise ValueError(f"others must be 'save', 'drop' or 'refuse', got {others!r}")
    if dtype not in _FACTORS:
        raise ValueError(f"dtype must be one of {', '.join(_FACTORS)}, got {dtype!r}")


class _Export:
    """The adapter as it is put together: ``tensors`` by peft's names, and a row for every changed tensor."""

    def __init__(
        self,
        base: Checkpoint,
        merged: Checkpoint,
        rank: Ranks | None,
        energy: float | None,
        dtype: str,
        seed: int,
    ) -> None:
        self._base, self._merged = base, merged
        self._rank, self._energy, self._seed = rank, energy, seed
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._settings = base.config or merged.config or {}
        self._turned = self._settings.get("model_type") in _CONV1D
        self._ranks: dict[str, int] = {}
        self._saved: list[str] = []
        self._has_bias = False
        self.tensors: dict[str, Tensor] = {}
        self.rows: list[LoraRow] = []
        self.notes: list[str] = []

    def run(self, others: str) -> None:
        """Decompose all that changed."""
        missing = sorted(
            name for name in self._base.tensors if name not in {*self._merged.tensors, *self._merged.tied}
        )
        if missing:
            raise CheckpointError(
                "the merge lacks tensors of the base", file=self._merged.path, tensor=missing[0],
                got=f"{len(missing)} missing", remedy="give the base that it was merged on",
            )  # fmt: skip
        own_heads = [name for name in self._merged.tied if name in self._base.tensors]
        changed = [name for name in (*self._merged.tensors, *own_heads) if self._is_changed(name)]
        if not changed:
            raise AdapterError(
                "the merge changed nothing that an adapter could carry",
                file=self._merged.path,
                got=f"{len(self._merged.tensors)} tensors as in the base",
                remedy="use the base",
            )
        matrices = [name for name in changed if self._is_matrix(name)]
        for name in matrices:
            self._decompose(name)
        full = []
        for name in changed:
            module, _, leaf = name.rpartition(".")
            if name in matrices:
                continue
            if (
                leaf == "bias"
                and f"{module}.weight" in matrices
                and not _EMBEDDING.search(f"{module}.weight")
            ):
                self._add_bias(module, name)
            else:
                full.append(name)
        self._carry(full, others)

    def _held(self, name: str) -> str | None:
        """The name under which the base holds a tensor."""
        held = self._base.tied.get(name, name)
        return held if held in self._base.tensors else None

    def _info(self, name: str) -> TensorInfo:
        return self._merged.tensors[self._merged.tied.get(name, name)]

    def _is_changed(self, name: str) -> bool:
        held = self._held(name)
        if held is None or self._base.tensors[held].shape != self._info(name).shape:
            return True
        one, two = self._base.tensor(held), self._merged.tensor(name)
        return (
            not torch.equal(one, two) if one.dtype == two.dtype else not torch.equal(one.float(), two.float())
        )

    def _is_matrix(self, name: str) -> bool:
        info, held = self._info(name), self._held(name)
        fits = held is not None and self._base.tensors[held].shape == info.shape and 0 not in info.shape
        floating = DTYPES[info.dtype].kind == "float" and torch_dtype(info.dtype) is not None
        return fits and floating and name.endswith(".weight") and len(info.shape) in (2, 4)

    def _update(self, name: str) -> Tensor:
        held = self._held(name)
        update = self._merged.tensor(name).float() - (0 if held is None else self._base.tensor(held).float())
        if not bool(torch.isfinite(update).all()):
            at = int((~torch.isfinite(update)).reshape(-1).nonzero()[0])
            raise CheckpointError(
                "the update is not finite", file=self._merged.path, tensor=name, got=f"flat index {at}",
                remedy="repair the weights, or merge with nan: zero",
            )  # fmt: skip
        return update

    # ---- matrices

    def _wanted_rank(self, name: str, smaller: int) -> int | None:
        if self._rank is None or isinstance(self._rank, int):
            wanted = self._rank
        else:
            wanted = next(
                (number for pattern, number in self._rank.items() if fnmatchcase(name, pattern)), None
            )
            if wanted is None and self._energy is None:
                raise AdapterError(
                    "no pattern gives a tensor its rank", tensor=name, got=", ".join(self._rank),
                    remedy="add a pattern '*' for all others",
                )  # fmt: skip
        return None if wanted is None else min(wanted, smaller)

    def _decompose(self, name: str) -> None:
        module = name.removesuffix(".weight")
        update = self._update(name)
        matrix = update.flatten(1)
        embedding = bool(_EMBEDDING.search(name))
        turned = embedding or (self._turned and update.ndim == 2 and not _is_head(name))
        if turned:
            matrix = matrix.T.contiguous()
        found = svd_delta(
            matrix,
            None,
            rank=self._wanted_rank(name, min(matrix.shape)),
            energy=self._energy,
            seed=self._seed,
        )
        rank = max(len(found.values), 1)
        if not len(found.values):  # peft has no factors of rank 0
            found = svd_delta(matrix, None, rank=1, seed=self._seed)
        root = found.values.clamp(min=0).sqrt()
        b = (found.left * root).to(self._dtype)
        a = (found.right * root).T.contiguous().to(self._dtype)
        norm, left = float(torch.linalg.vector_norm(matrix.double())), _error(matrix, b, a)
        self.rows.append(LoraRow(name, tuple(update.shape), "factors", rank, norm, left))
        self._ranks[module] = rank
        if update.ndim == 4:
            b, a = b[..., None, None], a.view(rank, *update.shape[1:])
        parts = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        for part, tensor in zip(parts, (a, b), strict=True):
            self.tensors[f"base_model.model.{module}.{part}"] = tensor
        self._follow_tie(name, module, a, b)

    def _follow_tie(self, name: str, module: str, a: Tensor, b: Tensor) -> None:
        """A head that is tied to embeddings needs factors of its own: peft changes the module that it is told of alone."""
        for head, embeddings in self._merged.tied.items():
            if embeddings != name or self._base.tied.get(head) != name or not head.endswith(".weight"):
                continue
            if not self._has_lm_head:
                self.notes.append(f"a head that is {name} under another name keeps the base's weight in peft")
                continue
            own = head.removesuffix(".weight")
            self._ranks[own] = self._ranks[module]
            self.tensors[f"base_model.model.{own}.lora_A.weight"] = b.T.contiguous()
            self.tensors[f"base_model.model.{own}.lora_B.weight"] = a.T.contiguous()
            self.notes.append(f"{head} is {name} and has the same factors")

    @property
    def _architectures(self) -> list[str]:
        return [name for name in self._settings.get("architectures") or () if isinstance(name, str)]

    @property
    def _has_lm_head(self) -> bool:
        """Whether the head that a configuration ties is called so; of other models than decoders the name is unknown."""
        names = self._architectures
        return not names or any(
            _TASKS[end] in _WITH_LM_HEAD for name in names for end in _TASKS if name.endswith(end)
        )

    # ---- the rest

    def _add_bias(self, module: str, name: str) -> None:
        """A changed bias beside factors, in full, where peft writes that of a module that it wraps."""
        self._has_bias = True
        norm = float(torch.linalg.vector_norm(self._update(name).double()))
        self.tensors[f"base_model.model.{module}.base_layer.bias"] = self._merged.tensor(name)
        self.rows.append(LoraRow(name, tuple(self._info(name).shape), "full", None, norm, 0.0))

    def _carry(self, names: list[str], others: str) -> None:
        impossible = [name for name in names if not self._can_save(name)]
        if names and (others == "refuse" or (impossible and others == "save")):
            first = impossible[0] if impossible else names[0]
            raise AdapterError(
                "something changed that is no matrix of a module",
                file=self._merged.path,
                tensor=first,
                got=f"{len(impossible or names)} such tensors",
                remedy="others='drop' leaves it out"
                + ("" if impossible else "; others='save' keeps it in full"),
            )
        for name in names:
            norm = (
                float(torch.linalg.vector_norm(self._update(name).double()))
                if self._comparable(name)
                else 0.0
            )
            shape = tuple(self._info(name).shape)
            if others == "drop":
                self.rows.append(LoraRow(name, shape, "dropped", None, norm, norm))
                continue
            self.rows.append(LoraRow(name, shape, "full", None, norm, 0.0))
            module = name.rpartition(".")[0]
            if module not in self._saved:
                self._saved.append(module)
                for own in self._merged.tensors:
                    if own.rpartition(".")[0] == module:
                        self.tensors[f"base_model.model.{own}"] = self._merged.tensor(own)

    def _comparable(self, name: str) -> bool:
        held = self._held(name)
        return held is None or self._base.tensors[held].shape == self._info(name).shape

    def _can_save(self, name: str) -> bool:
        """Whether peft can keep the tensor's module in full: one without factors, and without modules of its own."""
        module, _, leaf = name.rpartition(".")
        inner = any(
            other.startswith(f"{module}.") and "." in other[len(module) + 1 :]
            for other in self._merged.tensors
        )
        return leaf in ("weight", "bias") and module not in self._ranks and not inner

    def config(self, base_name: str) -> dict[str, Any]:
        """``adapter_config.json``."""
        usual = Counter(self._ranks.values()).most_common(1)[0][0] if self._ranks else 1
        special = {_pattern(module): rank for module, rank in self._ranks.items() if rank != usual}
        architectures = [name for name in self._settings.get("architectures") or () if isinstance(name, str)]
        task = next(
            (task for name in architectures for end, task in _TASKS.items() if name.endswith(end)), None
        )
        return {
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": special,
            "alpha_pattern": special,
            "target_modules": sorted(self._ranks) or ["^$"],
            "modules_to_save": self._saved or None,
            "bias": "lora_only" if self._has_bias else "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": self._turned,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }


def _is_head(name: str) -> bool:
    """Whether a matrix of a model with Conv1D is one of its few linear modules, which are stored ``[out, in]``."""
    return name.split(".")[-2] in ("lm_head", "score", "classifier", "summary")


def _pattern(module: str) -> str:
    return module if re.fullmatch(r"[\w.]+", module) else re.escape(module)


def _error(matrix: Tensor, b: Tensor, a: Tensor) -> float:
    """The norm of what the factors leave of a matrix, tile by tile in fp64."""
    rows = max(1, _TILE // max(1, matrix.shape[1]))
    total = 0.0
    for start in range(0, len(matrix), rows):
        tile = slice(start, start + rows)
        total += float((matrix[tile].double() - b[tile].double() @ a.double()).square().sum())
    return float(total**0.5)
