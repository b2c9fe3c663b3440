"""What is not exactly the payload for exactly these weights is refused, and the weights stay as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.delta import codecs
from graftwork.delta.container import DeltaFile
from graftwork.errors import BaseMismatch, ChecksumError, DeltaError, GraftworkError, UnknownCodec
from graftwork.store.sync import apply_, encode, inspect
from tests.generators.checkpoints import base_tensors, random_tensor
from tests.generators.sealed_files import rewrite as resealed
from tests.store.sync_cases import State, bits, chunked_state, cloned, stepped


def small() -> tuple[State, State, bytes]:
    """Two versions of two tensors, one of which changes and one not, and the payload between them."""
    previous = {"w": random_tensor((60,), torch.bfloat16, 1), "same": torch.ones(3)}
    current = {**stepped({"w": previous["w"]}), "same": torch.ones(3)}
    return previous, current, encode(previous, current, version="5", parent="4")


def refused(target: State, payload: bytes, wanted: type[Exception] = GraftworkError, **how: Any) -> Exception:
    """Apply, see that it is refused and that nothing changed."""
    before = bits(target)
    with pytest.raises(wanted) as caught:
        apply_(target, payload, threads=1, **how)
    assert bits(target) == before
    return caught.value


@pytest.mark.parametrize("check", ["all", "changed"])
@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_changed_byte_is_refused(check: str, flip: int) -> None:
    previous, _, payload = small()
    for position in range(len(payload)):
        broken = bytearray(payload)
        broken[position] ^= flip
        refused(previous, bytes(broken), check=check)


def test_every_truncation_and_extension_is_refused() -> None:
    previous, _, payload = small()
    for stop in range(len(payload)):
        refused(previous, payload[:stop])
    refused(previous, payload + b"\0")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wrong_base(threads: int) -> None:
    previous = chunked_state()
    payload = encode(previous, stepped(previous))
    for place in (0, 5, -1):
        other = cloned(previous)
        other["w"][place] += 1
        before = bits(other)
        with pytest.raises(BaseMismatch, match="not what the payload was made against") as caught:
            apply_(other, payload, threads=threads)
        assert caught.value.tensor == "w" and bits(other) == before


def test_a_wrong_base_where_nothing_changes() -> None:
    previous, current, payload = small()
    other = {**cloned(previous), "same": torch.zeros(3)}
    error = refused(other, payload, BaseMismatch)
    assert error.tensor == "same"
    apply_(other, payload, check="changed")
    assert torch.equal(other["w"], current["w"]) and not other["same"].any()


def test_a_chain_goes_in_order_each_payload_once() -> None:
    versions = [chunked_state(1)]
    for seed in range(3):
        versions.append(stepped(versions[-1], seed))
    payloads = [
        encode(old, new, version=str(i + 1), parent=str(i))
        for i, (old, new) in enumerate(itertools.pairwise(versions))
    ]
    target = cloned(versions[0])
    for number, payload in enumerate(payloads):
        for other in {*payloads} - {payload}:
            refused(target, other, BaseMismatch)
            refused(target, other, BaseMismatch, expect_parent=str(number))
        assert apply_(target, payload, expect_parent=str(number)).version == str(number + 1)
        assert bits(target) == bits(versions[number + 1])
        assert "already" in str(refused(target, payload, BaseMismatch))


def test_the_parent_is_checked_before_the_words() -> None:
    previous, _, payload = small()
    assert "another version" in str(refused(previous, payload, BaseMismatch, expect_parent="3"))
    unnamed = encode(previous, previous)
    assert "another version" in str(refused(previous, unnamed, BaseMismatch, expect_parent="3"))
    assert apply_(previous, payload, expect_parent="4").parent == "4"


rewrite = partial(resealed, kind="sync")


def test_a_rewritten_payload_is_a_payload() -> None:
    previous, current, payload = small()
    apply_(previous, rewrite(payload, change=lambda parts: None))
    assert bits(previous) == bits(current)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p["metadata"].pop("sync"), DeltaError, "not a sync payload"),
        (lambda p: p["metadata"].update(more="1"), DeltaError, "not a sync payload"),
        (lambda p: p["metadata"].update(sync="{}"), ChecksumError, "seal"),
        (lambda p: p["manifest"].update(more=1), ChecksumError, "seal"),
        (lambda p: p["metadata"].update(version="1.9"), DeltaError, "canonical"),
        (lambda p: p["fields"].update({"more::stream": b""}), DeltaError, "fields"),
        (lambda p: p["fields"].pop("w::stream"), DeltaError, "fields"),
    ],
)
def test_parts_that_do_not_belong_together(
    change: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    previous, _, payload = small()
    assert message in str(refused(previous, rewrite(payload, change=change, seal=False), error))


def tensor_update(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda parts: parts["manifest"]["tensors"]["w"].update(changes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p["said"].update(version=5), DeltaError, "metadata"),
        (lambda p: p["said"].update(tied={"w": "same"}), DeltaError, "metadata"),
        (lambda p: p["said"].update(tied={"x": "y"}), DeltaError, "metadata"),
        (lambda p: p["said"].update(tied=[1]), DeltaError, "metadata"),
        (lambda p: p["said"].update(tied={"x": "w", "y": ["w"]}), DeltaError, "metadata"),
        (tensor_update(basis=None), DeltaError, "difference"),
        (tensor_update(codec="zip"), UnknownCodec, "codec"),
        (tensor_update(codec="same"), DeltaError, "same"),
        (tensor_update(shape=[61]), DeltaError, "size"),
        (tensor_update(digest="0" * 64), ChecksumError, "add up"),
        (lambda p: p["manifest"]["tensors"].pop("w"), DeltaError, "fields"),
    ],
)
def test_a_sealed_payload_is_checked_as_well(
    change: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    """A seal protects from accidents; whoever makes a payload can seal anything."""
    previous, _, payload = small()
    assert message in str(refused(previous, rewrite(payload, change=change), error))


def table_of(parts: dict[str, Any], place: int, value: int) -> None:
    table = bytearray(parts["fields"]["w::chunks"])
    table[place] = value
    parts["fields"]["w::chunks"] = bytes(table)


@pytest.mark.parametrize(
    ("place", "value", "message"), [(4, 1, "undone"), (4, 200, "method"), (5, 1, "reserved"), (0, 0, "fill")]
)
def test_chunk_records_of_another_kind(place: int, value: int, message: str) -> None:
    previous, _, payload = small()
    broken = rewrite(payload, change=lambda parts: table_of(parts, place, value))
    assert message in str(refused(previous, broken, DeltaError))


def test_methods_that_cannot_be_undone_are_neither_made_nor_taken() -> None:
    state = {"w": torch.randint(0, 256, (3000,), dtype=torch.uint8)}
    payload = encode(state, {"w": torch.randint(0, 256, (3000,), dtype=torch.uint8)})
    from graftwork.store.sync.payload import SyncPayload

    with SyncPayload(payload) as opened:
        chunks, _ = opened.delta.chunks("w")
        assert {codecs.METHODS[chunk.method].name for chunk in chunks} <= {"sparse", "ordz"}


def test_other_files_are_no_payloads(tmp_path: Path) -> None:
    from safetensors.torch import save

    from graftwork.store import pack
    from tests.generators.checkpoints import tuned_tensors, write_folder

    target = base_tensors()
    assert "no manifest" in str(refused(target, save(target), DeltaError))
    write_folder(tmp_path / "base", target)
    write_folder(tmp_path / "tuned", tuned_tensors(target))
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store")
    (delta,) = (tmp_path / "store").rglob("*.safetensors")
    DeltaFile(delta).close()
    assert "not a sync payload" in str(refused(target, delta.read_bytes(), DeltaError))
    with pytest.raises(FileNotFoundError):
        apply_(target, tmp_path / "nothing")


def test_inspect_needs_no_weights_and_checks_what_it_can() -> None:
    _, _, payload = small()
    assert (inspect(payload).version, inspect(payload).parent) == ("5", "4")
    with pytest.raises(GraftworkError):
        inspect(payload[:-1])
