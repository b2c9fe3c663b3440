"""Which of a target's tensors each tensor of a payload is for."""

from __future__ import annotations

from typing import NamedTuple

from graftwork.delta.manifest import TensorRecord
from graftwork.delta.weights import Weights
from graftwork.errors import BaseMismatch
from graftwork.store.sync.payload import SyncPayload

_REMEDY = "apply it to the model that it was made for"


class Target(NamedTuple):
    """A tensor of a payload, and the name by which the target's source knows the tensor that it is for.

    ``writes`` is false if another tensor of the payload, with the same content, is for the same memory.
    """

    record: TensorRecord
    held: str
    writes: bool


def match_target(weights: Weights, payload: SyncPayload) -> list[Target]:
    """Every pair of a payload's tensor and one of the target's, checked for name, dtype and shape.

    Tied tensors of the payload may be apart in the target, and tied ones of the target apart in the payload if
    they are equal there. A name may be missing on one side if the other ties it to one that is there.
    """
    records = payload.delta.records
    names = payload.groups()
    found: dict[tuple[str, str], None] = {}
    for name, group in names.items():
        firsts = [first for alias in group if (first := weights.first_name(alias)) is not None]
        if not firsts:
            raise BaseMismatch(
                "the target lacks a tensor of the payload", file=weights.what, tensor=name, remedy=_REMEDY
            )
        found |= dict.fromkeys((name, first) for first in firsts)
    covered = {held for _, held in found}
    for name in weights.names:
        if weights.first_name(name) not in covered:
            raise BaseMismatch(
                "the payload lacks a tensor of the target", file=weights.what, tensor=name, remedy=_REMEDY
            )
    writers: dict[str, TensorRecord] = {}
    targets = []
    for name, held in found:
        record = records[name]
        _check_pair(record, held, weights)
        writer = writers.setdefault(held, record)
        if writer.digest != record.digest:
            raise BaseMismatch(
                "tensors that are tied in the target differ in the payload",
                file=weights.what,
                tensor=writer.name,
                got=f"{record.name} differs from it",
                remedy=_REMEDY,
            )
        targets.append(Target(record, held, writer is record))
    return targets


def _check_pair(record: TensorRecord, held: str, weights: Weights) -> None:
    meta = weights.source.metas[held]
    if (meta.dtype, tuple(meta.shape)) != (record.dtype, record.shape):
        raise BaseMismatch(
            "a tensor of the target is not as the payload says",
            file=weights.what,
            tensor=held,
            got=f"{meta.dtype} {list(meta.shape)}",
            wanted=f"{record.dtype} {list(record.shape)}",
            remedy=_REMEDY,
        )
