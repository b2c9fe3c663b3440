from __future__ import annotations

import math

import pytest

from graftwork.report.wording import (
    count_of,
    show_bytes,
    show_cosine,
    show_measure,
    show_name,
    show_relative,
    show_shape,
    show_share,
)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1234, "1.23 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (88_000_000, "88.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert plain(show_bytes(count)) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (1e-9, "< 0.01 %"),
        (0.9999999, "> 99.9 %"),
        (0.0057, "0.57 %"),
        (0.1234, "12.3 %"),
        (1.07, "107 %"),
    ],
)
def test_share(share: float | None, text: str) -> None:
    assert plain(show_share(share)) == text


def test_measures_keep_three_digits() -> None:
    assert [show_measure(x) for x in (0.0, 4.0, 0.00384, 1e-9, 1234.0, math.inf, None)] == [
        *("0", "4.00", "0.00384", "1.00e-09", "1,234", "–", "–"),
    ]
    assert plain(show_relative(0.04)) == "4.00 %"
    assert plain(show_relative(None)) == "–"


def test_cosine_near_one_is_not_one() -> None:
    assert [plain(show_cosine(x)) for x in (1.0, 0.99999, 0.9994, -0.5, None)] == [
        *("1.000", "> 0.999", "0.999", "-0.500", "–"),
    ]


def test_names_are_safe_to_print() -> None:
    assert show_name("a\n\x1b[31mb\u202ec") == "a\\n\\x1b[31mb\\u202ec"
    assert len(show_name("x" * 65_536)) == 96 and "…" in show_name("x" * 65_536)
    assert show_name("ünï.codé") == "ünï.codé"


def test_counts_and_shapes() -> None:
    assert [count_of(n, "entry") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
    assert count_of(1234, "file") == "1,234 files"
    assert show_shape("BF16", (2, 3)) == "BF16 [2, 3]" and show_shape(None, None) == "–"
