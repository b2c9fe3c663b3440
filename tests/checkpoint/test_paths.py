from __future__ import annotations

import pytest

from graftwork.checkpoint.paths import check_distinct, check_relative, resolve_inside, suffix_of
from graftwork.errors import CheckpointError
from tests.checkpoint.handmade import make_tree


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "a\\b", "..\\x", "C:/x",
        "c:x", "a\0b", "a\nb", "a\x7f", "a\ud800",
    ],
)  # fmt: skip
def test_an_unsafe_path_is_refused(name):
    with pytest.raises(CheckpointError, match="unsafe") as caught:
        check_relative(name, file="index.json", tensor="w")
    assert (caught.value.file, caught.value.tensor) == ("index.json", "w")


@pytest.mark.parametrize(
    "name", ["a", "a/b.c", "...", "..a", "a b", "é", "説明　書", ".gitattributes", "run:1"]
)
def test_a_plain_path_passes(name):
    assert check_relative(name, file="index.json") == name


def test_names_that_collide_on_other_file_systems():
    check_distinct(["a", "b", "a"], file="x")
    for other in ["A", "a\u0301", "STRASSE"]:
        names = ["a", "\u00e1", "straße", other]
        with pytest.raises(CheckpointError, match="differ only") as caught:
            check_distinct(names, file="x")
        assert repr(other) in caught.value.got


def test_links_may_stay_inside_only(tmp_path):
    root = make_tree(tmp_path / "root", {"a": b"a", "sub/b": b"b"})
    make_tree(tmp_path, {"outside": b"secret", "root-sibling/x": b""})
    (root / "in").symlink_to("sub/b")
    (root / "sub" / "up").symlink_to("../a")
    assert resolve_inside(root, "in").read_bytes() == b"b"
    assert resolve_inside(root, "sub/up").read_bytes() == b"a"
    for name, target in [
        ("out", "../outside"),
        ("absolute", tmp_path / "outside"),
        ("sibling", "../root-sibling/x"),
        ("chain", "out"),
        ("nowhere", "gone"),
        ("loop", "loop"),
    ]:
        (root / name).symlink_to(target)
        with pytest.raises(CheckpointError) as caught:
            resolve_inside(root, name)
        assert caught.value.file == str(root.resolve() / name)
    (root / "folder").symlink_to("..")
    with pytest.raises(CheckpointError, match="leads out"):
        resolve_inside(root, "folder/outside")


def test_a_file_under_a_file_cannot_be_followed(tmp_path):
    make_tree(tmp_path, {"a": b""})
    with pytest.raises(CheckpointError):
        resolve_inside(tmp_path, "a/b")


def test_the_root_itself_may_be_reached_by_a_link(tmp_path):
    make_tree(tmp_path / "root", {"a": b"a"})
    (tmp_path / "link").symlink_to("root")
    assert resolve_inside(tmp_path / "link", "a").read_bytes() == b"a"


def test_suffix():
    assert suffix_of("a/b.SafeTensors") == ".safetensors" and suffix_of("a.b/c") == ""
