from __future__ import annotations

import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from graftwork.checkpoint.reader import open_checkpoint
from graftwork.errors import CheckpointError, SourceChanged
from tests.checkpoint.handmade import container, entry, make_tree, shard, sharded


@pytest.fixture
def path(tmp_path):
    header = {
        "f32": entry("F32", (2, 2), 0, 16),
        "f16": entry("F16", (2,), 16, 20),
        "scalar": entry("I32", (), 20, 24),
        "empty": entry("BF16", (0, 5), 24, 24),
        "odd": entry("U8", (1,), 24, 25),
        "unaligned": entry("F32", (2,), 25, 33),
        "f6": entry("F6_E2M3", (4,), 33, 36),
        "f4": entry("F4", (2, 2), 36, 38),
        "f4_odd": entry("F4", (2, 1), 38, 39),
        "e8": entry("F8_E8M0", (1,), 39, 40),
    }
    raw = container(header)
    pad = b"" if len(raw) % 8 == 0 else b" " * (8 - len(raw) % 8)
    path = tmp_path / "m.safetensors"
    path.write_bytes(container(raw[8:] + pad, bytes(range(40))))
    return path


def test_a_single_file(path):
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.path == path and checkpoint.root == path.parent
        assert checkpoint.other_files == () and checkpoint.config is None
        assert list(checkpoint.headers) == ["m.safetensors"]
        assert checkpoint.nbytes == 40
        assert checkpoint.file_size("m.safetensors") == path.stat().st_size
        assert checkpoint.read_file("m.safetensors") == path.read_bytes()


@pytest.mark.parametrize("name", ["f32", "f16", "scalar", "odd", "unaligned", "e8"])
def test_tensors_have_the_bytes_of_the_file(path, name):
    with open_checkpoint(path) as checkpoint:
        info = checkpoint.tensors[name]
        tensor = checkpoint.tensor(name)
        data = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(data))
    assert tuple(tensor.shape) == info.shape
    assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == bytes(data)
    assert tensor.data_ptr() % tensor.itemsize == 0
    assert data == path.read_bytes()[info.start : info.stop]


def test_an_empty_tensor(path):
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensor("empty")
        assert tuple(tensor.shape) == (0, 5) and tensor.dtype == torch.bfloat16


def test_packed_and_missing_dtypes(path):
    with open_checkpoint(path) as checkpoint:
        assert tuple(checkpoint.tensor("f4").shape) == (2, 1)
        for name in ["f6", "f4_odd"]:
            with pytest.raises(CheckpointError, match="read_into") as caught:
                checkpoint.tensor(name)
            assert (caught.value.file, caught.value.tensor) == (str(path), name)


def test_an_unknown_tensor_or_file(path):
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(CheckpointError, match="no such tensor"):
            checkpoint.tensor("nope")
        with pytest.raises(CheckpointError, match="no such file"):
            checkpoint.read_file("../nope")


def test_reading_parts_of_a_tensor(path):
    with open_checkpoint(path) as checkpoint:
        info = checkpoint.tensors["f32"]
        data = bytearray(4)
        checkpoint.read_into(info, 6, memoryview(data))
        assert data == bytes([6, 7, 8, 9])
        for offset in [-1, 13]:
            with pytest.raises(ValueError, match="'f32'"):
                checkpoint.read_into(info, offset, memoryview(data))
        for file in ["m.safetensors", "other"]:
            data = bytearray(2)
            if file == "other":
                with pytest.raises(CheckpointError):
                    checkpoint.read_file_into(file, 0, memoryview(data))
            else:
                checkpoint.read_file_into(file, 8, memoryview(data))
                assert data == b'{"'


def test_the_pieces_of_a_file(tmp_path):
    data = os.urandom((2 << 20) + 5)
    make_tree(tmp_path, {"m.safetensors": shard("x"), "large.bin": data, "empty.bin": b""})
    with open_checkpoint(tmp_path) as checkpoint:
        pieces = [bytes(piece) for piece in checkpoint.file_pieces("large.bin")]
        assert [len(piece) for piece in pieces] == [1 << 20, 1 << 20, 5] and b"".join(pieces) == data
        assert list(checkpoint.file_pieces("empty.bin")) == []
        (tmp_path / "large.bin").unlink()
        with pytest.raises(SourceChanged):
            next(checkpoint.file_pieces("large.bin"))


def test_writing_into_a_tensor_leaves_the_file_alone(path):
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensor("f32").zero_()
        checkpoint.tensor("unaligned").zero_()
    assert path.read_bytes() == before


def test_tensors_outlive_the_checkpoint(path):
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensor("scalar")
    assert tensor.item() == int.from_bytes(bytes([20, 21, 22, 23]), "little")
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor("scalar")


def test_a_tensor_is_read_where_it_cannot_be_mapped(path, monkeypatch):
    import mmap

    def no_memory(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_memory)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensor("odd").tolist() == [24]


def test_reading_from_many_threads(tmp_path):
    tensors = {f"t{i}": torch.randint(0, 256, (1000 + i,), dtype=torch.uint8) for i in range(20)}
    save_file(tensors, tmp_path / "m.safetensors")
    wrong = []

    def read(checkpoint) -> None:
        for name, tensor in tensors.items():
            data = bytearray(checkpoint.tensors[name].nbytes)
            checkpoint.read_into(checkpoint.tensors[name], 0, memoryview(data))
            if bytes(data) != tensor.numpy().tobytes() or not torch.equal(checkpoint.tensor(name), tensor):
                wrong.append(name)

    with open_checkpoint(tmp_path) as checkpoint:
        threads = [threading.Thread(target=read, args=(checkpoint,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json", "tokenizer/vocab.txt"])
def test_a_change_of_any_file_is_noticed(tmp_path, name):
    with open_checkpoint(sharded(tmp_path)) as checkpoint:
        checkpoint.check_unchanged()
        os.utime(tmp_path / name, ns=(0, 0))
        with pytest.raises(SourceChanged) as caught:
            checkpoint.check_unchanged()
        assert caught.value.file == str(tmp_path / name)


def test_a_file_that_shrinks_while_it_is_read(path):
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 100)
        with pytest.raises(SourceChanged) as caught:
            checkpoint.read_into(checkpoint.tensors["f4"], 0, memoryview(bytearray(2)))
        assert caught.value.file == str(path)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nope")


def test_a_single_file_may_be_given_by_a_link_or_without_a_suffix(tmp_path):
    make_tree(tmp_path, {"a/blob": shard("x")})
    (tmp_path / "link.safetensors").symlink_to("a/blob")
    for name in ["link.safetensors", "a/blob"]:
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert list(checkpoint.tensors) == ["x"]


def test_no_file_stays_open_after_an_error(tmp_path):
    sharded(tmp_path, second=b"broken")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_importing_the_package_loads_no_torch():
    import subprocess
    import sys

    code = "import graftwork.checkpoint, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
