"""What the general compressors make of the same files; both restore them exactly, as graftwork does."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import zstandard

ZIPNN = "pip install zipnn==0.5.4"


def zstd_bytes(file: Path) -> int:
    """Size of the file under zstd at its default level, 3."""
    return len(zstandard.ZstdCompressor(level=3).compress(file.read_bytes()))


def zipnn_bytes(file: Path, dtype: str, base: Path | None = None) -> int | None:
    """Size of the file under ZipNN, which splits floats into byte planes; None if it is not installed.

    With ``base``, a file of the same size, it compresses the XOR of the two.
    """
    if find_spec("zipnn") is None:
        return None
    from zipnn import ZipNN

    coder = ZipNN(bytearray_dtype=dtype, delta_compressed_type="byte" if base else 0)
    # It writes into its input, so both are read afresh.
    return len(coder.compress(file.read_bytes(), delta_second_data=base.read_bytes() if base else None))
