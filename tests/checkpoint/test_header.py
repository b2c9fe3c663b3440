from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.checkpoint.header import MAX_HEADER_BYTES, TensorInfo, parse_header, read_header
from graftwork.errors import CheckpointError
from tests.checkpoint.handmade import container, entry

BIG = 2**63
ONE = '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'  # the object is still open


def parse(data: bytes):
    return parse_header(data, "dir/m.safetensors", len(data), relative="m.safetensors")


BROKEN_FILES = {
    "empty file": (b"", "too short", "an empty file"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "too short", "7 bytes"),
    "length only": (container("", length=2), "longer than the file", "2 bytes"),
    "length beyond the file": (container("{}", length=3), "longer than the file", "3 bytes"),
    "length 0": (container("", b"payload", length=0), "header is empty", "length 0"),
    "length 2^63": (container("{}", length=BIG), "too long", str(BIG)),
    "length 2^64 - 1": (container("{}", length=2**64 - 1), "too long", str(2**64 - 1)),
    "length over the limit": (container("{}", length=MAX_HEADER_BYTES + 1), "too long", "100000001"),
    "length at the limit": (container("{}", length=MAX_HEADER_BYTES), "longer than the file", None),
    "not UTF-8": (container(b'{"\xff":1}'), "not UTF-8", "byte 2"),
    "byte order mark": (container("\ufeff{}"), "does not start with '{'", "byte order mark"),
    "UTF-16": (container("{}".encode("utf-16-le")), "not valid JSON", None),
    "leading blank": (container(" {}"), "does not start with '{'", "' {}'"),
    "a list": (container("[]"), "does not start with '{'", "'[]'"),
    "a string": (container('"{}"'), "does not start with '{'", None),
    "no JSON": (container("{nonsense}"), "not valid JSON", "nonsense"),
    "no end": (container(ONE, b"1234"), "not valid JSON", None),
    "comma at the end": (container(ONE + ",}", b"1234"), "not valid JSON", None),
    "two objects": (container("{}{}"), "goes on after its object", "'{}'"),
    "NUL after the object": (container("{}\0"), "goes on after its object", None),
    "control character in a name": (container('{"a\n":1}'), "not valid JSON", None),
    "bad escape": (container('{"\\x":1}'), "malformed string", None),
    "half a surrogate pair": (container('{"\\ud800":1}'), "malformed string", None),
    "trailing byte": (container({"a": entry()}, b"12345"), "goes on after its last tensor", None),
    "trailing bytes, no tensors": (container({}, b"1"), "goes on after its last tensor", "11 bytes"),
    "metadata is null": (container('{"__metadata__":null}'), "not an object", "null"),
    "metadata is a list": (container('{"__metadata__":[]}'), "not an object", None),
    "metadata holds a number": (container('{"__metadata__":{"x":1}}'), "['x'] is not a string", None),
    "metadata holds an object": (container('{"__metadata__":{"x":{}}}'), "['x'] is not a string", None),
    "metadata key twice": (container('{"__metadata__":{"x":"1","x":"1"}}'), "holds 'x' twice", None),
    "metadata twice": (container('{"__metadata__":{},"__metadata__":{}}'), "__metadata__ twice", None),
    "metadata without end": (container('{"__metadata__":{"x":"1"'), "not valid JSON", None),
    "deep nesting": (container('{"__metadata__":' + "[" * 100_000 + "}"), "not an object", None),
}  # fmt: skip


@pytest.mark.parametrize(("data", "what", "got"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_file_is_refused_by_name(data, what, got):
    with pytest.raises(CheckpointError) as caught:
        parse(data)
    assert what in caught.value.what
    assert caught.value.file == "dir/m.safetensors"
    assert caught.value.got is not None and caught.value.wanted and caught.value.remedy
    if got is not None:
        assert got in str(caught.value.got)


def raw_entry(text: str) -> str:
    return f'{{"a":{text}}}'


def raw_shape(text: str) -> str:
    return raw_entry(f'{{"dtype":"U8","shape":[{text}],"data_offsets":[0,4]}}')


BROKEN_TENSORS = {
    "twice": (ONE + ',"a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}', "names a tensor twice"),
    "twice, once escaped": (ONE + ',"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}', "twice"),
    "unknown dtype": ({"a": entry("I4", (8,))}, "unknown dtype"),
    "dtype in lower case": ({"a": entry("u8")}, "unknown dtype"),
    "dtype is a number": ({"a": entry(8)}, "unknown dtype"),
    "negative size": ({"a": entry(shape=[-4])}, "not a list of sizes"),
    "fractional size": ({"a": entry(shape=[4.0])}, "not a list of sizes"),
    "size with an exponent": (raw_shape("4e0"), "not a list of sizes"),
    "size is true": ({"a": entry(shape=[True, 4])}, "not a list of sizes"),
    "size is text": ({"a": entry(shape=["4"])}, "not a list of sizes"),
    "size is null": ({"a": entry(shape=[None])}, "not a list of sizes"),
    "shape is a number": ({"a": entry(shape=4)}, "not a list of sizes"),
    "shape is an object": (raw_entry('{"dtype":"U8","shape":{},"data_offsets":[0,4]}'), "malformed"),
    "size of 2^63": ({"a": entry(shape=[BIG])}, "not a list of sizes"),
    "size of 5000 digits": (raw_shape("9" * 5000), "not valid JSON"),
    "size with a leading zero": (raw_shape("04"), "not valid JSON"),
    "size in other digits": (raw_shape("٤"), "not valid JSON"),
    "size is NaN": (raw_shape("NaN"), "not a list of sizes"),
    "overflow of 64 bits": ({"a": entry(shape=[2**32, 2**32])}, "overflows 64 bits"),
    "overflow to the true size": ({"a": entry("F64", [2**61 + 1])}, "overflows 64 bits"),
    "overflow beside a zero": ({"a": entry(shape=[0, 2**62, 2**62], end=0)}, "overflows 64 bits"),
    "too few bytes": ({"a": entry("F32", (2,))}, "size does not fit"),
    "too many bytes": ({"a": entry(shape=(3,))}, "size does not fit"),
    "no bytes": ({"a": entry(end=0)}, "size does not fit"),
    "bytes of an empty tensor": ({"a": entry(shape=(0,))}, "size does not fit"),
    "half a byte": ({"a": entry("F4", (7,))}, "ends inside a byte"),
    "quarter bytes": ({"a": entry("F6_E2M3", (5,))}, "ends inside a byte"),
    "reversed offsets": ({"a": entry(begin=4, end=0)}, "reversed"),
    "past the end": ({"a": entry(shape=(5,), end=5)}, "past the end"),
    "negative offset": ({"a": entry(begin=-4, end=0)}, "not two offsets"),
    "offset of 2^64": ({"a": entry(begin=2**64, end=2**64 + 4)}, "not two offsets"),
    "fractional offset": ({"a": entry(end=4.0)}, "not two offsets"),
    "one offset": (raw_entry('{"dtype":"U8","shape":[4],"data_offsets":[4]}'), "not two offsets"),
    "three offsets": (raw_entry('{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}'), "not two offsets"),
    "hole at the start": ({"a": entry(shape=(2,), begin=2)}, "belong to no tensor"),
    "hole between": ({"z": entry(shape=(1,), end=1), "a": entry(shape=(2,), begin=2)}, "belong to no tensor"),
    "overlap": ({"z": entry(shape=(3,), end=3), "a": entry(shape=(2,), begin=2)}, "overlap"),
    "the same bytes": ({"z": entry(), "a": entry()}, "overlap"),
    "empty tensor inside another": ({"z": entry(), "a": entry(shape=(0,), begin=2, end=2)}, "overlap"),
    "entry is null": (raw_entry("null"), "malformed"),
    "entry is a list": (raw_entry("[" * 100_000), "malformed"),
    "entry nests objects": (raw_entry('{"dtype":{}}'), "malformed"),
    "entry nests lists": (raw_entry('{"dtype":' + "[" * 60_000 + "}"), "not valid JSON"),
    "entry too long": (raw_entry('{"dtype":"%s"}' % ("U" * 70_000)), "malformed"),
    "no dtype": (raw_entry('{"shape":[4],"data_offsets":[0,4]}'), "malformed"),
    "no shape": (raw_entry('{"dtype":"U8","data_offsets":[0,4]}'), "malformed"),
    "no offsets": (raw_entry('{"dtype":"U8","shape":[4]}'), "malformed"),
    "dtype twice": (raw_entry('{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}'), "malformed"),
    "another key": (raw_entry('{"dtype":"U8","shape":[4],"data_offsets":[0,4],"strides":[1]}'), "malformed"),
    "no colon": ('{"a" {"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "not valid JSON"),
    "no comma": (ONE + '"b":{}}', "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("header", "what"), BROKEN_TENSORS.values(), ids=BROKEN_TENSORS)
def test_a_broken_entry_is_refused_by_file_and_tensor(header, what):
    with pytest.raises(CheckpointError) as caught:
        parse(container(header, b"1234"))
    assert what in caught.value.what
    assert caught.value.file == "dir/m.safetensors"
    assert caught.value.tensor == "a" or "not valid JSON" in what
    assert caught.value.got is not None and caught.value.wanted and caught.value.remedy


def test_a_good_header_gives_tensors_in_payload_order_and_its_exact_bytes():
    header = {
        "late": entry("F32", (2, 1), 4, 12),
        "__metadata__": {"format": "pt", "ü\\n": '"'},
        "early": entry("U8", (4,), 0, 4),
        "empty": entry("F64", (0, 3), 4, 4),
        "scalar": entry("I16", (), 12, 14),
    }
    data = container(json.dumps(header) + "\n\t  ", bytes(14))
    parsed = parse(data)
    assert [info.name for info in parsed.tensors] == ["early", "empty", "late", "scalar"]
    assert parsed.metadata == {"format": "pt", "ü\\n": '"'}
    assert parsed.raw == data[:-14] and parsed.data_start == len(data) - 14
    start = parsed.data_start
    late = parsed.tensors[2]
    assert late == TensorInfo("late", "F32", (2, 1), "m.safetensors", start + 4, start + 12)
    assert (late.nbytes, late.numel) == (8, 2)
    assert [info.numel for info in parsed.tensors] == [4, 0, 2, 1]


def test_no_tensors_is_legal():
    assert parse(container("{}")).tensors == ()
    assert parse(container('{ "__metadata__" : { } } ')).metadata == {}


@pytest.mark.parametrize("keys", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("indent", [None, 0, 3])
def test_key_order_and_blanks_do_not_matter(keys, indent):
    pairs = list(entry("F32", (1, 1)).items())
    text = json.dumps({"a": dict(pairs[i] for i in keys)}, indent=indent)
    (info,) = parse(container(text, b"1234")).tensors
    assert info[1:3] == ("F32", (1, 1))


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_known(code):
    bits = DTYPES[code].bits
    (info,) = parse(container({"a": entry(code, (8,), 0, bits)}, bytes(bits))).tensors
    assert (info.nbytes, info.numel) == (bits, 8)


HOSTILE_NAMES = [
    "", "/etc/passwd", "../../x", "a\0b", "new\nline", "\\", '"', "x" * 65536, "раypal", "é", "e\u0301",
    "\U0001f600", "{}", "\u202e", "\x7f",
]  # fmt: skip


@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_is_a_name(ascii_only):
    header = {name: entry(shape=(1,), begin=i, end=i + 1) for i, name in enumerate(HOSTILE_NAMES)}
    text = json.dumps(header, ensure_ascii=ascii_only)
    parsed = parse(container(text, bytes(len(HOSTILE_NAMES))))
    assert [info.name for info in parsed.tensors] == HOSTILE_NAMES


GOOD = container(
    {"__metadata__": {"k": "v"}, "a": entry("F32", (2,), 0, 8), "b": entry("I16", (3,), 8, 14)}, bytes(14)
)


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_truncation_anywhere_is_an_error(size, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(GOOD[:size])
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.file == str(path)


@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_never_escapes_the_checks(at, byte):
    data = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    try:
        header = parse(data)
    except CheckpointError:
        return
    ends = [header.data_start, *(info.stop for info in header.tensors)]
    assert ends == sorted(ends) and ends[-1] == len(data)
    assert all(info.nbytes * 8 == DTYPES[info.dtype].bits * info.numel for info in header.tensors)


@given(text=st.text(st.sampled_from('{}[]",:\\ 01ab\n'), max_size=40))
def test_random_text_is_parsed_as_json_would_or_refused(text):
    data = container("{" + text, b"")
    try:
        header = parse(data)
    except CheckpointError:
        return
    assert json.loads("{" + text).get("__metadata__", {}) == header.metadata and not header.tensors


def test_read_header_of_a_file(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(GOOD)
    assert read_header(path).tensors == parse(GOOD).tensors
    assert read_header(path, "sub/m.safetensors").tensors[0].file == "sub/m.safetensors"


def test_parse_header_wants_the_whole_header():
    with pytest.raises(CheckpointError, match="cut off"):
        parse_header(GOOD[:20], "m.safetensors", len(GOOD))


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="a FIFO"):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_tensors(count):
    line = '"layers.{}.w":{{"dtype":"F16","shape":[2,1],"data_offsets":[{},{}]}}'
    raw = container("{" + ",".join(line.format(i, 4 * i, 4 * i + 4) for i in range(count)) + "}")
    header = parse_header(raw, "m", len(raw) + 4 * count)
    assert len(header.tensors) == count and header.tensors[-1].stop == len(raw) + 4 * count
