"""Start inputs of the readers' targets, made from valid files when the fuzzing starts, and the words of their texts."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import zstandard

from graftwork.delta.manifest import CHUNK_RECORD_BYTES
from graftwork.store import pack
from graftwork.store.sync import encode, export_sparse
from tests.fuzz.delta_inputs import weights
from tests.fuzz.readers import CODERS
from tests.generators.checkpoints import random_tensor, updated, write_folder

#: What a mutation puts into a text whole: numbers at the edges of what readers hold them in, and other kinds of value.
TOKENS = (
    *("null", "true", "-1", "0", "0.0", "-0", "1e999", "-1e999", "NaN", "Infinity", "1" * 20, "9" * 5000),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "4294967296", "0x10", "1_0"),
    *(
        '""',
        '"\\ud800"',
        '"\\u0000"',
        '"a"',
        "{}",
        "[]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        ":",
        '"',
        "\\",
        "[0]",
        '{"":0}',
    ),
    *(
        '"__metadata__":{"a":"b"}',
        '"F4"',
        '"F6_E2M3"',
        '"BF16"',
        '"dtype"',
        '"shape"',
        '"data_offsets"',
        '"weight_map"',
    ),
    *(
        '"min_reader":[1,0]',
        '"version":[9,9]',
        '"base":null',
        '"tensors":{}',
        '"entries":{}',
        '"files":[]',
        '"facts":{}',
    ),
    *(
        '"codec":"same"',
        '"codec":"raw"',
        '"codec":"ordz"',
        '"basis":null',
        '"nbytes":0',
        '"digest":"' + "0" * 64 + '"',
    ),
    *("../x", "/x", "C:", "~x", "a/b", "é", "é", "\xff\x02\x02", "\xff\x10\x08", "\xff\x40\x06"),
    *(
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!float ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "!!null ",
        "? ",
        "- ",
    ),
    *(
        "2001-99-99",
        "2001-01-01 00:00:00 +99:99",
        "0o9",
        "1:99:99",
        ".inf",
        ".nan",
        "1e5",
        "|\n",
        ">\n",
        "\n",
        "---\n",
    ),
)


def token_bytes() -> list[bytes]:
    """The tokens as bytes: repetitions are not UTF-8, all else is."""
    return [token.encode("latin-1" if token.startswith("\xff") else "utf-8") for token in TOKENS]


def start_inputs(target: str) -> list[bytes]:
    """Valid inputs of ``target``; some with a repetition in the middle."""
    return _ALL[target]()


def _checkpoint(folder: Path) -> tuple[Path, Path]:
    base = {
        "a": random_tensor((6, 5), torch.bfloat16, 1),
        "b": random_tensor((7,), torch.float32, 2),
        "c": random_tensor((3,), torch.int32, 3),
        "d": random_tensor((4, 2), torch.float16, 4),
        "e": random_tensor((5,), torch.float8_e4m3fn, 5),
    }
    tuned = {name: updated(tensor, 2e-3, 6) for name, tensor in base.items()}
    tuned |= {"d": base["d"].float(), "n": random_tensor((0, 4), torch.bfloat16, 7)}
    return write_folder(folder / "base", base, shards=2), write_folder(folder / "tuned", tuned)


def _stored(suffix: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = _checkpoint(folder)
        for codec in ("auto", "small"):
            pack(base, {codec: tuned, "base": base}, out=folder / codec, codec=codec)
        return [path.read_bytes() for path in sorted(folder.glob(f"*/{suffix}"))]


def _headers() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        wholes = [
            path.read_bytes() for path in sorted(Path(name).glob("*/*.safetensors")) or _saved(Path(name))
        ]
    texts = [whole[8 : 8 + int.from_bytes(whole[:8], "little")] for whole in wholes]
    sizes = [len(whole) - 8 - len(text) for whole, text in zip(wholes, texts, strict=True)]
    stretched = b'{"a":{"dtype":"U8","shape":[2,\xff\x02\x011],"data_offsets":[0,4]}}'
    unusual = (
        b'{"a":{"shape":[2,\xff\x02\x032],"dtype":"U8","data_offsets":[0,4]},\n"b":{"shape":[],"dtype":"F4"}}'
    )
    return [
        *(b"\1" + whole for whole in wholes),
        *(b"\0" + size.to_bytes(3, "little") + text for size, text in zip(sizes, texts, strict=True)),
        *(b"\0\4\0\0" + text for text in (stretched, unusual, b"{" + b" " * 16 + b"\xff\x10\x01}")),
    ]


def _saved(folder: Path) -> list[Path]:
    _checkpoint(folder)
    return sorted(folder.glob("*/*.safetensors"))


def _indexes() -> list[bytes]:
    shard = "model-00001-of-00002.safetensors"
    index = {"metadata": {"total_size": 12}, "weight_map": {"a": shard, "b": shard.replace("1", "2", 1)}}
    text = json.dumps(index).encode()
    deep = b"[" * 8 + b"\xff\x08\x02" + b"]" * 8 + b"\xff\x08\x02"
    return [b"\0" + text, b'\1{"model_type": "toy", "tie_word_embeddings": true}', b"\0" + deep, b"\1" + deep]


def _manifests() -> list[bytes]:
    inputs = []
    for whole in _stored("objects/*/*.safetensors"):
        header = int.from_bytes(whole[:8], "little")
        places = json.loads(whole[8 : 8 + header])
        first, last = places["__manifest__"]["data_offsets"]
        text = whole[8 + header + first : 8 + header + last]
        tables = [row["data_offsets"] for name, row in places.items() if name.endswith("::chunks")]
        inputs += [text + b"\0" + whole[8 + header + start : 8 + header + stop] for start, stop in tables]
        inputs.append(text.replace(b'"shape":[', b'"shape":[3,\xff\x02\x01', 1) + b"\0")
    return inputs


def _delta_files() -> list[bytes]:
    wholes = _stored("objects/*/*.safetensors")
    return [kind + whole for kind in (b"\0", b"\1") for whole in wholes]


def _delta_records() -> list[bytes]:
    return [text for whole in _stored("objects/*/*.safetensors") for text in _records_of(whole)]


def _records_of(whole: bytes, sync: bool = False) -> list[bytes]:
    """The text from which `delta_of` makes a delta file again: one for each tensor, or of all for a sync."""
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    said = header.pop("__metadata__")
    places = {
        name: whole[start + row["data_offsets"][0] : start + row["data_offsets"][1]]
        for name, row in header.items()
    }
    manifest = json.loads(places["__manifest__"])
    for name, row in manifest["tensors"].items():
        stream, table = places.get(f"{name}::stream", b""), places.get(f"{name}::chunks", b"")
        row["payloads"], at = [], 0
        for record in range(0, len(table), CHUNK_RECORD_BYTES):
            length, method = struct.unpack_from("<IB", table, record)
            row["payloads"].append([method, stream[at : at + length].decode("latin-1")])
            at += length
        if row["codec"] != "same":
            del row["digest"]
    if sync:
        return [json.dumps({**manifest, "sync": json.loads(said["sync"])}).encode()]
    return [
        json.dumps({**manifest, "tensors": {name: row}}).encode() for name, row in manifest["tensors"].items()
    ]


def _updated_weights() -> list[dict[str, torch.Tensor]]:
    few = {name: tensor.clone() for name, tensor in weights().items()}
    few["a"][3, 2] = 1.0
    few["d"][1:3, 1] = 0.5
    many = {name: updated(tensor, 2e-3, 6) for name, tensor in weights().items()}
    return [few, many, {name: tensor.clone() for name, tensor in weights().items()}]


def _syncs() -> list[bytes]:
    payloads = [encode(weights(), new, version="8", parent="7") for new in _updated_weights()]
    texts = [text for payload in payloads for text in _records_of(payload, sync=True)]
    return [*(b"\1" + payload for payload in payloads), *(b"\0" + text for text in texts)]


def _sparse_forms() -> list[bytes]:
    return [export_sparse(encode(weights(), new, version="8"), weights()) for new in _updated_weights()]


def _chunks() -> Iterator[bytes]:
    for number, (method, words) in enumerate(CODERS):
        for count in (1, 31, 1000):
            nbytes = count * words.nbytes
            basis = (bytes(range(251)) * (1 + nbytes // 251))[:nbytes]
            tuned = bytes(byte ^ (i % 37 == 0) for i, byte in enumerate(basis))
            parts = method.encode(memoryview(bytearray(basis)), memoryview(bytearray(tuned)), words, 1)
            if parts is not None:
                yield bytes([number]) + (count - 1).to_bytes(2, "little") + b"".join(map(bytes, parts))
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(31))
    yield bytes([0, 30, 0]) + len(without_size).to_bytes(4, "little") + without_size


def _roots() -> list[bytes]:
    texts = _stored("store.json")
    row = b'"a":{"manifest":"0"},'
    texts.append(
        texts[0].replace(b'"entries":{', b'"entries":{' + row + b"\xff" + bytes([len(row)]) + b"\x01")
    )
    return [kind + text for kind in (b"\0", b"\1") for text in texts]


def _entries() -> list[bytes]:
    texts = [text for text in _stored("objects/*/*.json") if b"graftwork-entry" in text]
    return [*texts, texts[0].replace(b'"F32",[', b'"F32",[2,\xff\x02\x01')]


def _recipes() -> list[bytes]:
    bomb = b"base: [&a [x,x,x,x],\n" + b",\n".join(
        b"&%c [%s]" % (97 + i, b",".join([b"*%c" % (96 + i)] * 4)) for i in range(1, 16)
    )
    merged = b"a: &a {k: v}\n" + b"".join(
        b"%c: &%c {<<: [%s]}\n" % (97 + i, 97 + i, b",".join([b"*%c" % (96 + i)] * 4)) for i in range(1, 16)
    )
    return [
        b"\0base: models/base\nfinetunes: {mail: models/mail, code: ~/code}\nout: store\ncodec: small\nthreads: 2\n",
        b"\0base: b\nout: o\nfinetunes:\n- x\n- &y 'y'\n- *y\n",
        b"\1name: n\nstep: {lr: 1e-4, steps: 3, mode: 3}\ndata: [x, /y]\nweights: {one: 1, half: .5, l: [1, 2]}\n",
        b"\1name: n\nstep: &s\n  <<: {lr: 1}\n  steps: 2\nmore: [*s, {lr: 0x10}]\n",
        b"\1name: 2001-01-01\nstep: {lr: 2001-01-01 10:00:00 +01:00}\n",
        b"\0" + bomb + b"]\nfinetunes: [x]\nout: o\n",
        b"\0" + merged,
        b"\1" + b"[" * 16 + b"\xff\x10\x02",
    ]


_ALL = {
    "header": _headers,
    "index": _indexes,
    "manifest": _manifests,
    "delta_file": _delta_files,
    "delta_records": _delta_records,
    "decode_chunk": lambda: list(_chunks()),
    "sync": _syncs,
    "sparse_form": _sparse_forms,
    "root": _roots,
    "entry": _entries,
    "recipe": _recipes,
}
