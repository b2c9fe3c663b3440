from __future__ import annotations

import gzip
import itertools

import pytest

from bench import corpora
from bench.corpora import pairs, source
from graftwork.errors import MissingExtra

CODE = '''\
"""Module."""


class Shape:
    def area(self, scale: float) -> float:
        """Area of the shape in square units.

        Longer words.
        """
        return scale * self.width


    def bare(self):
        return 0


@decorated
async def outer(x):
    "Await the sum of both numbers."
    async def inner(y):
        """Add the outer number."""
        return x + y
    return await inner(x)


def only_documented():
    """Nothing but words here."""
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "shapes.py"
    path.write_text(CODE)
    return source.Module("stdlib", "shapes.py", path)


def test_definitions_come_in_line_order_without_their_docstrings(module):
    area, outer, inner = corpora.definitions([module])
    assert [area.name, outer.name, inner.name] == ["area", "outer", "inner"]
    assert area.summary == "Area of the shape in square units."
    assert "Longer words." in area.docstring
    assert area.code == "def area(self, scale: float) -> float:\n    return scale * self.width"
    assert outer.code.startswith("async def outer(x):\n    async def inner(y):")
    assert inner.code == "async def inner(y):\n    return x + y"


@pytest.mark.parametrize("content", [b"def broken(:\n", b"x = '\xff'\n", b"x = 0\0\n"])
def test_files_that_are_no_python_are_passed_over(tmp_path, content):
    path = tmp_path / "odd.py"
    path.write_bytes(content)
    assert list(corpora.definitions([source.Module("stdlib", "odd.py", path)])) == []


def test_modules_are_library_code_in_a_fixed_order():
    found = corpora.modules("rich")
    assert found == corpora.modules("rich")
    assert [m.key for m in found] == sorted(m.key for m in found)
    assert corpora.modules("rich", limit=3) == found[:3]
    assert not any("test" in m.name.split("/") for m in corpora.modules("numpy"))
    assert not any("site-packages" in m.path.parts[-3:] for m in corpora.modules("stdlib"))


def test_a_package_that_is_absent_is_named():
    with pytest.raises(MissingExtra, match="graftwork_no_such_package"):
        corpora.modules("graftwork_no_such_package")


@pytest.fixture(scope="module")
def split():
    return corpora.docstring_code_pairs(("rich", "numpy"), files_per_package=25)


def test_pairs_are_distinct_and_deterministic(split):
    assert len(split.train) > 40
    assert len(split.held_out) > 5
    every = [*split.train, *split.held_out]
    assert len({pair.docstring.lower() for pair in every}) == len(every)
    assert len({pair.code for pair in every}) == len(every)
    pairs._usable_definitions.cache_clear()
    assert corpora.docstring_code_pairs(("rich", "numpy"), files_per_package=25) == split


def test_held_out_pairs_share_no_file_with_training(split):
    files = {}
    for package in ("rich", "numpy"):
        for definition in corpora.definitions(corpora.modules(package)):
            files.setdefault(definition.code, set()).add(definition.module)
    for part, held_out in ((split.train, False), (split.held_out, True)):
        for pair in part:
            assert any(pairs.is_held_out(module) == held_out for module in files[pair.code])


def test_no_docstring_tells_its_package():
    packages = ("rich", "numpy")
    labelled = corpora.docstring_packages(packages, files_per_package=25)
    assert {example.package for example in labelled.train} == set(packages)
    for example, package in itertools.product((*labelled.train, *labelled.held_out), packages):
        assert package not in example.docstring.lower()


def test_a_prefix_holds_every_column_in_proportion():
    mixed = list(pairs._interleave([["a"] * 30, ["b"] * 10, []]))
    assert mixed[:20].count("b") == 5
    assert len(mixed) == 40


@pytest.mark.parametrize("kind", ["source", "prose"])
def test_installed_text_is_bounded_and_fixed(kind):
    text = corpora.installed_text(kind, ["rich"], max_chars=60_000)
    assert text == corpora.installed_text(kind, ["rich"], max_chars=60_000)
    assert sum(map(len, (*text.train, *text.held_out))) <= 60_000
    assert text.train
    assert not set(text.train) & set(text.held_out)


def test_installed_text_refuses_other_kinds():
    with pytest.raises(ValueError, match="'poems'"):
        corpora.installed_text("poems", ["rich"])


def test_manual_pages_lose_their_markup(tmp_path):
    folder = tmp_path / "de" / "man1"
    folder.mkdir(parents=True)
    page = '.\\" comment\n.TH X 1\n.SH NAME\n.B graft\n\\- veredelt \\fIB\\(co\\fPume\n'
    (folder / "graft.1.gz").write_bytes(gzip.compress(page.encode()))
    assert corpora.manual_pages("de", root=tmp_path) == {"graft.1": "NAME\ngraft\n- veredelt B©ume"}
    with pytest.raises(MissingExtra, match="manpages-pt-br"):
        corpora.manual_pages("pt_BR", root=tmp_path)


def test_fortunes_are_split_by_topic(tmp_path):
    (tmp_path / "science").write_text("One.\n%\nTwo\nlines.\n%\n")
    (tmp_path / "science.dat").write_bytes(b"\0")
    assert corpora.fortunes(root=tmp_path) == {"science": ["One.", "Two\nlines."]}
    with pytest.raises(MissingExtra, match="apt-get install fortunes"):
        corpora.fortunes(root=tmp_path / "none")
