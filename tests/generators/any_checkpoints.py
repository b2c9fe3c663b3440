"""Hypothesis strategies for pairs of a base and its fine-tune: any dtypes, shapes, names, files and layouts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from graftwork.checkpoint.dtypes import DTYPES
from tests.generators.raw_tensors import RawTensor, moved, raw_file, raw_tensor, with_rows

_CASTS = ("F16", "BF16", "F32")
_NAMES = st.one_of(
    st.sampled_from(
        ["w", "w::stream", "w::chunks", "__manifest__", "a/../b", "/", "model.embed_tokens.weight", ""]
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
)
_FILE_NAMES = st.sampled_from(
    ["notes.txt", "vocab/merges.txt", "a b/ä.bin", ".hidden", "optimizer.pt", "x.json"]
)
_CODES = st.one_of(st.sampled_from(_CASTS), st.sampled_from(sorted(DTYPES)))
_SEEDS = st.integers(0, 1 << 20)


@dataclass
class AnyCheckpoint:
    """The files of a checkpoint."""

    tensors: dict[str, RawTensor]
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the files into a new folder."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def _bits_fit(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with a dimension more where the dtype's numbers would end inside a byte."""
    return (*shape, 4) if DTYPES[dtype].bits < 8 else shape


@st.composite
def _tensors(draw: st.DrawFn, large: bool) -> RawTensor:
    dtype = draw(_CODES)
    shape = draw(st.lists(st.integers(0, 9), max_size=4).map(tuple))
    rows = st.integers(1, 40)
    shape = draw(
        st.one_of(st.just(shape), st.tuples(rows, rows), *([st.just((1024, 300, 2))] if large else []))
    )
    return raw_tensor(dtype, _bits_fit(dtype, shape), draw(_SEEDS))


@st.composite
def _tuned(draw: st.DrawFn, base: RawTensor) -> RawTensor:
    """What becomes of a tensor: equal, moved a little or much, cast, requantised, grown, cut, transposed, replaced."""
    seed = draw(_SEEDS)
    what = draw(st.sampled_from(["same", "few", "many", "other", "cast", "grown", "cut", "reshaped"]))
    if what == "few":
        return moved(base, 0.01, seed)
    if what == "many":
        return moved(base, 0.7, seed, reach=draw(st.sampled_from([1, 30, 127])))
    if what == "other":
        return raw_tensor(base.dtype, base.shape, seed)
    if what == "cast":
        code = draw(_CODES)
        if base.dtype in _CASTS and code in _CASTS:
            return RawTensor(code, base.shape, cast(base.data, base.dtype, code))
        return raw_tensor(code, _bits_fit(code, base.shape), seed)
    if what in ("grown", "cut") and base.shape and (len(base.shape) > 1 or DTYPES[base.dtype].bits >= 8):
        rows = base.shape[0] + draw(st.integers(1, 5)) if what == "grown" else base.shape[0] // 2
        return with_rows(base, rows, seed)
    if what == "reshaped":
        return base._replace(shape=(1, *base.shape))
    return base


def cast(data: bytes, source: str, target: str) -> bytes:
    """Numbers of one float type in another, a BF16 cut off rather than rounded: near, as a fine-tune's would be."""
    if source == "BF16":
        wide = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        wide = np.frombuffer(data, "<f2" if source == "F16" else "<f4").astype("<f4")
    with np.errstate(all="ignore"):
        return {
            "F32": wide.tobytes,
            "F16": lambda: wide.astype("<f2").tobytes(),
            "BF16": lambda: wide.view("<u2")[1::2].tobytes(),
        }[target]()


@st.composite
def _laid_out(draw: st.DrawFn, tensors: dict[str, RawTensor]) -> AnyCheckpoint:
    """The tensors in one or several files, with or without an index, in any order, beside any other files."""
    names = draw(st.permutations(sorted(tensors)))
    shards = draw(st.integers(1, 3))
    metadata = draw(st.one_of(st.none(), st.dictionaries(st.text("pt=ä", max_size=5), _NAMES, max_size=2)))
    files: dict[str, bytes] = draw(st.dictionaries(_FILE_NAMES, st.binary(max_size=300), max_size=3))
    weight_map = {}
    for number in range(shards):
        own = names[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = raw_file({name: tensors[name] for name in own}, metadata)
        weight_map |= dict.fromkeys(own, file)
    if draw(st.booleans()) and len({*weight_map.values()}) == shards:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    files["config.json"] = json.dumps({"tie_word_embeddings": draw(st.booleans())}).encode()
    return AnyCheckpoint(tensors, files)


@st.composite
def checkpoint_rows(draw: st.DrawFn, count: int = 2, *, large: bool = False) -> list[AnyCheckpoint]:
    """A base, its fine-tune, a fine-tune of that, …; ``large`` ones may have tensors of several chunks."""
    rows = [draw(st.dictionaries(_NAMES, _tensors(large), max_size=5))]
    for _ in range(count - 1):
        tuned = {name: draw(_tuned(tensor)) for name, tensor in rows[-1].items() if draw(st.integers(0, 5))}
        added = draw(st.dictionaries(_NAMES, _tensors(False), max_size=2))
        tuned |= {name: tensor for name, tensor in added.items() if name not in rows[-1]}
        if tuned and draw(st.booleans()):
            tuned["tied copy"] = tuned[draw(st.sampled_from(sorted(tuned)))]
        rows.append(tuned)
    return [draw(_laid_out(tensors)) for tensors in rows]
