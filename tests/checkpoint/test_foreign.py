from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from graftwork.checkpoint.foreign import CONVERT_PICKLE
from graftwork.checkpoint.reader import open_checkpoint
from graftwork.errors import CheckpointError
from tests.checkpoint.handmade import container


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"GGUF\x03\0\0\0" + bytes(50), "GGUF"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (zip_archive(), "pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "pickle"),
        (pickle.dumps({"a": 1}, protocol=5), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x93NUMPY\x01\0" + bytes(50), "NumPy"),
    ],
)
def test_other_formats_are_recognised(tmp_path, data, got):
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a safetensors file") as caught:
        open_checkpoint(path)
    assert got in caught.value.got and caught.value.remedy


def test_a_header_whose_length_looks_like_a_pickle_is_fine(tmp_path):
    data = container("{" + " " * (0x280 - 2) + "}")
    assert data.startswith(b"\x80\x02")
    (tmp_path / "m.safetensors").write_bytes(data)
    open_checkpoint(tmp_path).close()


@pytest.mark.slow
def test_the_conversion_command_works(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    torch.save(tensors, tmp_path / "IN.bin")
    command = CONVERT_PICKLE.split(": ", 1)[1].removeprefix("python")
    subprocess.run(f"{sys.executable}{command}", shell=True, cwd=tmp_path, check=True, env=dict(os.environ))
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == tensors.keys() and all(torch.equal(converted[k], tensors[k]) for k in tensors)
