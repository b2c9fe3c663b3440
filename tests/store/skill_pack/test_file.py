from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from graftwork.checkpoint import write_checkpoint
from graftwork.checkpoint.files import AtomicFile
from graftwork.errors import (
    CheckpointError,
    ChecksumError,
    DeltaError,
    TargetExists,
    UnknownCodec,
    VersionTooNew,
)
from graftwork.ops.quantized_delta import LowRankGroup, LowRankPack
from graftwork.store import SkillPack
from graftwork.store.skill_pack import CompressionPlan, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.file import fields_digest
from graftwork.store.skill_pack.low_rank import LowRank
from graftwork.store.skill_pack.manifest import ErrorOf, Manifest, TensorRow
from graftwork.store.skill_pack.pieces import Outline, Piece
from tests.store.skill_pack.cases import EVERY, PLAN, base_state, same, tuned_state
from tests.store.skill_pack.handmade import Parts, changed, put_together, redigest, take_apart

GOLDEN = "ff6ba201426433f82bb31b71e6264467e23dbde61674b333290b145561c26255"


@pytest.fixture(scope="module")
def pack() -> SkillPack:
    base = base_state()
    return SkillPack.build(tuned_state(base), base, PLAN)


@pytest.fixture
def file(pack: SkillPack, tmp_path: Path) -> Path:
    pack.save(tmp_path / "skill.safetensors")
    return tmp_path / "skill.safetensors"


def test_a_file_holds_the_pack(pack: SkillPack, file: Path) -> None:
    with SkillPack.open(file) as opened:
        assert opened.digest == pack.digest and opened.base_digest == pack.base_digest
        assert opened.report() == pack.report() and opened.nbytes == pack.nbytes
        assert list(opened.unchanged) == ["steps"] and opened.recipe == pack.recipe
        for name in pack.tensors:
            assert same(opened.piece(name).fields(), pack.piece(name).fields())
            assert torch.equal(opened.delta(name), pack.delta(name))
        opened.verify()
    assert opened.delta("model.norm.weight").shape == (33,)  # read before it was closed


@pytest.mark.parametrize("kind", EVERY)
def test_every_codec_goes_into_a_file_and_comes_back(kind: str, tmp_path: Path) -> None:
    base = base_state()
    plan = CompressionPlan({"": EVERY[kind], "@bias|norm": Raw()})
    built = SkillPack.build(tuned_state(base), base, plan)
    built.save(tmp_path / "a.safetensors")
    again = SkillPack.open(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    for name in built.tensors:
        assert torch.equal(again.delta(name), built.delta(name))


def test_fields_are_mapped_and_read_when_they_are_used(file: Path) -> None:
    data = bytearray(file.read_bytes())
    opened = SkillPack.open(file)
    parts = take_apart(bytes(data))
    _, _, content = parts["fields"]["model.norm.weight::raw"]
    at = data.index(content)
    data[at] ^= 1
    file.write_bytes(data)
    broken = SkillPack.open(file)  # header, seal and manifest are whole
    broken.piece("stem.conv.weight")
    with pytest.raises(ChecksumError, match="differ from their digest") as caught:
        broken.piece("model.norm.weight")
    assert caught.value.tensor == "model.norm.weight" and caught.value.file == str(file)
    with pytest.raises(ChecksumError):
        broken.verify()
    opened.close()


def test_any_reader_of_safetensors_lists_and_reads_the_fields(pack: SkillPack, file: Path) -> None:
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if not name.startswith("__pad__")]  # noqa: SIM118
        assert sorted(names) == sorted(f"{n}::{f}" for n in pack.tensors for f in pack.piece(n).fields())
        codes = opened.get_tensor("model.layers.0.mlp.up_proj.weight::q")
        assert torch.equal(codes, pack.piece("model.layers.0.mlp.up_proj.weight").fields()["q"])


def test_large_fields_start_at_multiples_of_256_bytes(tmp_path: Path) -> None:
    base = {"a": torch.zeros(130, 130), "b": torch.zeros(3, 5), "c": torch.zeros(100, 333)}
    tuned = tuned_state(base, size=1.0)
    SkillPack.build(tuned, base, CompressionPlan({"": Quantize(3, block=32)})).save(
        tmp_path / "f.safetensors"
    )
    data = (tmp_path / "f.safetensors").read_bytes()
    for dtype, _, content in take_apart(data)["fields"].values():
        align = 256 if len(content) >= 4096 else 1 if dtype == "U8" else 2
        assert data.index(content) % align == 0
    assert data == put_together(take_apart(data))


def golden_pack() -> SkillPack:
    """A pack whose bytes follow from arithmetic alone: no SVD of BLAS."""
    columns, rows = (
        torch.arange(40).float() % 8 - 3,
        torch.arange(3).float(),
    )  # all are levels: errors are exactly zero
    base = {"a.weight": torch.zeros(3, 40), "a.bias": torch.zeros(3), "same": torch.ones(2)}
    base |= {"few.weight": torch.zeros(2, 40), "drawn.weight": torch.zeros(2, 40)}
    few = torch.where(torch.arange(80) % 13 == 5, 0.75, 0.0).view(2, 40)
    tuned = {"a.weight": (rows[:, None] + 1) * 0.25 * columns, "a.bias": rows / 8, "same": torch.ones(2)}
    tuned |= {"few.weight": few, "drawn.weight": torch.ones(2, 40)}
    plan = CompressionPlan(
        {
            "few": Prune(0.2),
            "drawn": Sparse("dare", keep=0.5, seed=3),
            "weight": Quantize(3, "asym", block=8),
            "bias": Raw(),
        }
    )
    built = SkillPack.build(tuned, base, plan, quantizer="rtn")
    errors = {name: row.error.squared for name, row in built.tensors.items() if name != "drawn.weight"}
    assert not any(errors.values())
    values = torch.tensor([2.0])
    group = LowRankGroup(0, torch.ones(1, 2).half(), torch.full((1, 3), 0.5).half(), values)
    outline = Outline(1, 2, 3)
    low = LowRank(outline, (LowRankPack((2, 3), (group,)),))
    error = ErrorOf(0.0, 0.0, 6.0)
    digest = fields_digest(low.fields())
    row = TensorRow("b", "svd", (2, 3), "F32", "0" * 64, 0.5, error, low.facts(), digest, ("c",))
    manifest = Manifest(
        built.base_digest, {**built.tensors, "b": row}, built.unchanged, {"n": "why"}, built.recipe
    )
    pieces: dict[str, Piece] = {name: built.piece(name) for name in built.tensors}
    return SkillPack(manifest, {**pieces, "b": low})


def test_golden_bytes(tmp_path: Path) -> None:
    """The format may not drift: a changed digest needs a new version of the format, and a reader of both."""
    golden_pack().save(tmp_path / "golden.safetensors")
    data = (tmp_path / "golden.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN
    opened = SkillPack.open(tmp_path / "golden.safetensors")
    assert torch.equal(opened.delta("b"), torch.full((2, 3), 0.5))
    assert opened.left_out == {"n": "why"} and opened.tensors["b"].tied == ("c",)


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    golden_pack().save(path)
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        broken = bytearray(data)
        broken[at] ^= 1 + at % 255
        path.write_bytes(broken)
        with pytest.raises((CheckpointError, DeltaError)):
            SkillPack.open(path).verify()


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_a_cut_file_is_refused(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises((CheckpointError, DeltaError)):
        SkillPack.open(file)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", {"w": torch.zeros(3)})
    for path in (tmp_path / "model" / "model.safetensors", tmp_path / "model"):
        with pytest.raises(DeltaError, match="not the file of a skill pack"):
            SkillPack.open(path)
    with pytest.raises(CheckpointError, match="no such file"):
        SkillPack.open(tmp_path / "missing.safetensors")


def test_a_file_that_is_there_stays(pack: SkillPack, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    with pytest.raises(TargetExists):
        pack.save(file)

    def fail(self: AtomicFile, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AtomicFile, "write", fail)
    with pytest.raises(OSError, match="No space"):
        pack.save(file, overwrite=True)
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


NORM, UP, Q = (
    "model.norm.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
)


EMBED, CONV = "model.embed_tokens.weight", "stem.conv.weight"


def of(tensor: str, key: str, value: object) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts["manifest"]["tensors"][tensor][key] = value

    return change


def say(key: str, value: object) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts["manifest"][key] = value

    return change


def group(key: str, value: object) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts["manifest"]["tensors"][Q]["groups"][0][0][key] = value

    return change


def without_field(parts: Parts) -> None:
    del parts["fields"][f"{NORM}::raw"]


def with_field(parts: Parts) -> None:
    parts["fields"]["other::raw"] = ["U8", [4], b"abcd"]


def with_orphan(parts: Parts) -> None:
    parts["fields"]["orphan"] = ["U8", [4], b"abcd"]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (say("format", "other"), DeltaError, "another format"),
        (say("min_reader", [9, 0]), VersionTooNew, "newer graftwork"),
        (say("version", [1, 7]), DeltaError, "the header says version"),
        (say("version", "1.0"), DeltaError, "not a version"),
        (say("base", {"digest": "abc"}), DeltaError, "manifest is malformed"),
        (say("base", None), DeltaError, "manifest is malformed"),
        (say("tensors", []), DeltaError, "manifest is malformed"),
        (say("unchanged", [3]), DeltaError, "manifest is malformed"),
        (of(NORM, "codec", "fractal"), UnknownCodec, "codec that this graftwork does not have"),
        (of(NORM, "codec", ["raw"]), DeltaError, "malformed"),
        (of(NORM, "codec", "svd"), DeltaError, "malformed"),
        (of(NORM, "orig_dtype", "I64"), DeltaError, "malformed"),
        (of(NORM, "orig_dtype", "F99"), DeltaError, "malformed"),
        (of(NORM, "shape", [34]), DeltaError, "fields are not those"),
        (of(NORM, "shape", [-33]), DeltaError, "malformed"),
        (of(NORM, "shape", [33.0]), DeltaError, "malformed"),
        (of(NORM, "shape", [1 << 40, 1 << 40]), DeltaError, "malformed"),
        (of(UP, "shape", [1 << 30, 1 << 20]), DeltaError, "fields are not those"),
        (of(NORM, "dtype", "fp8"), DeltaError, "malformed"),
        (of(NORM, "exponent", 200), DeltaError, "malformed"),
        (of(NORM, "lambda", True), DeltaError, "malformed"),
        (of(NORM, "lambda", "1"), DeltaError, "malformed"),
        (of(NORM, "err", {}), DeltaError, "malformed"),
        (of(NORM, "fields_sha256", "0" * 63), DeltaError, "malformed"),
        (of(NORM, "base_sha256", 5), DeltaError, "malformed"),
        (of(NORM, "tied", [1]), DeltaError, "malformed"),
        (of(UP, "bits", 5), DeltaError, "malformed"),
        (of(UP, "bits", 3.0), DeltaError, "malformed"),
        (of(UP, "scheme", "asym"), DeltaError, "fields are not those"),
        (of(UP, "block", 24), DeltaError, "fields are not those"),
        (of(UP, "block", -16), DeltaError, "malformed"),
        (of(UP, "scale_exp", 999), DeltaError, "malformed"),
        (of(UP, "scale_exp", 1.5), DeltaError, "malformed"),
        (of(UP, "row_align", 3), DeltaError, "malformed"),
        (of(Q, "groups", []), DeltaError, "malformed"),
        (of(Q, "groups", [[7]]), DeltaError, "malformed"),
        (group("count", 1 << 40), DeltaError, "malformed"),
        (group("count", -1), DeltaError, "malformed"),
        (group("start", "0"), DeltaError, "malformed"),
        (group("u", 15), DeltaError, "malformed"),
        (of(EMBED, "count", 1 << 40), DeltaError, "malformed"),
        (of(EMBED, "count", 1.0), DeltaError, "malformed"),
        (of(EMBED, "index", "morse"), DeltaError, "malformed"),
        (of(EMBED, "index", ["rans"]), DeltaError, "malformed"),
        (of(EMBED, "index", "raw"), DeltaError, "malformed"),
        (of(EMBED, "index_bytes", 1 << 50), DeltaError, "fields are not those"),
        (of(EMBED, "index_bytes", -1), DeltaError, "malformed"),
        (of(EMBED, "exponent", None), DeltaError, "malformed"),
        (of(EMBED, "value", "fp4"), DeltaError, "malformed"),
        (of(CONV, "key", [1]), DeltaError, "malformed"),
        (of(CONV, "key", [1, 1 << 32]), DeltaError, "malformed"),
        (of(CONV, "key", [1, 2]), DeltaError, "malformed"),
        (of(CONV, "below", 1 << 21), DeltaError, "malformed"),
        (of(CONV, "shape", [1 << 20, 1 << 20]), DeltaError, "malformed"),
        (of(CONV, "below", 1 << 25), DeltaError, "malformed"),
        (of(CONV, "below", 8388608.0), DeltaError, "malformed"),
        (without_field, DeltaError, "fields are not those"),
        (with_field, DeltaError, "fields are not those"),
        (with_orphan, DeltaError, "fields are not those"),
    ],
)
def test_a_sealed_file_that_says_nonsense_is_refused(
    file: Path, change: Callable[[Parts], None], kind: type[Exception], words: str
) -> None:
    """The seal keeps accidents out; whoever seals anew still cannot make a reader take memory or believe anything."""
    file.write_bytes(changed(file.read_bytes(), change))
    with pytest.raises(kind, match=words):
        SkillPack.open(file).verify()


@pytest.mark.parametrize(
    ("tensor", "field", "word", "words"),
    [
        (NORM, "raw", b"\x00\x00\x80\x7f", "not finite"),
        (EMBED, "val", b"\x00\xfc", "not finite"),
        (EMBED, "col", b"\xff\xff\xff\xff", "malformed"),
        (CONV, "val_scale", b"\x00\xfe", "finite and not negative"),
        (UP, "scale", b"\x00\x7c", "finite and not negative"),
        (UP, "scale", b"\x01\x80", "finite and not negative"),
        (Q, "s.0", b"\x00\x00\xc0\x7f", "not finite"),
        (Q, "v_scale.0", b"\x80\x7f", "finite and not negative"),
    ],
)
def test_numbers_of_a_sealed_file_are_looked_at(
    file: Path, tensor: str, field: str, word: bytes, words: str
) -> None:
    def change(parts: Parts) -> None:
        held = parts["fields"][f"{tensor}::{field}"]
        held[2] = word + held[2][len(word) :]
        redigest(parts, tensor)

    file.write_bytes(changed(file.read_bytes(), change))
    opened = SkillPack.open(file)
    with pytest.raises(DeltaError, match=words) as caught:
        opened.piece(tensor)
    assert caught.value.tensor == tensor


def test_a_group_that_starts_within_another_is_refused(file: Path) -> None:
    file.write_bytes(changed(file.read_bytes(), group("start", 5)))
    with pytest.raises(DeltaError, match="malformed"):
        SkillPack.open(file).verify()


STRANGE = (None, True, -1, 0, 1, 7, 2**31, 2**70, 1.5, 1e400, "", "U8", "0" * 64, [], [[]], [0], {}, {"a": 1})


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@pytest.mark.parametrize("seed", range(8))
def test_a_manifest_with_any_value_changed_is_read_or_refused(file: Path, seed: int) -> None:
    """Never another error, whatever stands at whichever place."""
    data, chance = file.read_bytes(), random.Random(seed)
    for _ in range(60):
        parts = take_apart(data)
        container, key = chance.choice(places(parts["manifest"]))
        container[key] = chance.choice(STRANGE)
        file.write_bytes(put_together(parts))
        with suppress(CheckpointError, DeltaError):
            SkillPack.open(file).verify()


def test_without_a_new_seal_a_changed_manifest_is_refused(file: Path) -> None:
    def change(parts: Parts) -> None:
        text = parts["metadata"]["delta.manifest"]
        parts["metadata"]["delta.manifest"] = text.replace('"seed":0', '"seed":1')

    file.write_bytes(changed(file.read_bytes(), change, seal=False))
    with pytest.raises(ChecksumError, match="differs from its seal"):
        SkillPack.open(file)


def test_unknown_keys_of_a_later_minor_version_are_ignored(file: Path) -> None:
    def change(parts: Parts) -> None:
        parts["manifest"] |= {"version": [1, 3], "remark": "of a later version"}
        parts["metadata"]["version"] = "1.3"
        parts["manifest"]["tensors"][NORM]["mood"] = "fine"

    file.write_bytes(changed(file.read_bytes(), change))
    SkillPack.open(file).verify()
