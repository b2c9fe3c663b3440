from __future__ import annotations

import hashlib

import pytest

from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest, leaf_digest, tree_digest


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 2 * LEAF_BYTES + 33])
def test_the_digest_is_what_the_module_says(size):
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    leaves = [hashlib.sha256(data[at : at + LEAF_BYTES]).digest() for at in range(0, size, LEAF_BYTES)]
    wanted = hashlib.sha256(b"graftwork-tree-1" + size.to_bytes(8, "little") + b"".join(leaves)).hexdigest()
    assert bytes_digest(data) == wanted == tree_digest(size, leaves)


def test_golden():
    assert bytes_digest(b"") == "be63192c283421ea8147862104bb613fbbd1c4102100dd75ab0fe319f77e28b9"
    assert bytes_digest(b"graftwork") == "aaf1bc00ae9532f7f71a3e518fa4478833df24c95ddb76ddeb06241e31f33a4e"


def test_views_of_any_type():
    view = memoryview(bytearray(range(16)))
    assert bytes_digest(view.cast("d")) == bytes_digest(bytes(range(16)))
    assert leaf_digest(view) == hashlib.sha256(view).digest()
