"""Files that are not safetensors: how to recognise them, and what to tell the user to do."""

from __future__ import annotations

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

CONVERT_PICKLE = (
    'graftwork never unpickles; where you trust the file, convert it with: python -c "import torch;'
    "from safetensors.torch import save_file as s;"
    "s({k: v.clone() for k, v in torch.load('IN.bin', map_location='cpu', weights_only=True).items()},"
    "'model.safetensors')\""
)

_PICKLE = ("a pickle (torch.save) file", CONVERT_PICKLE)
_MAGIC: tuple[tuple[bytes, tuple[str, str]], ...] = (
    (b"GGUF", ("a GGUF file", "use the safetensors files that it was made from")),
    (b"PK\x03\x04", _PICKLE),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"version ", ("a Git LFS pointer, not the file itself", "fetch the file with: git lfs pull")),
    (b"<!DOCTYP", ("a web page", "download the file again")),
    (b"<html", ("a web page", "download the file again")),
    (b"\x89HDF", ("an HDF5 file", "convert it to safetensors")),
    (b"\x93NUMPY", ("a NumPy file", "convert it to safetensors")),
)


def recognise(head: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, with the remedy; None if unknown.

    Ask only about a file that is not safetensors: the length of a header can look like any of these.
    """
    return next((known for magic, known in _MAGIC if head.startswith(magic)), None)
