"""Random words: known answers, positions, uniformity."""

from __future__ import annotations

import doctest

import pytest
import torch

from graftwork.ops.merge import philox, philox_uniform
from graftwork.reference.merge.philox import philox_blocks, philox_words
from tests.generators.weights import SIZES

#: From the authors' Random123: counter, key, words.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox_blocks(key, torch.tensor([counter])).tolist() == [words]


def test_the_native_code_knows_the_first() -> None:
    wanted = torch.tensor([(word >> 8) * 2.0**-24 for word in KNOWN[0][2]])
    assert torch.equal(philox_uniform((0, 0), 0, 4), wanted)


@pytest.mark.parametrize("start", [0, 1, 6, 1 << 20, (1 << 34) - 5, (1 << 61) + 3])
def test_any_part_is_the_reference_s(start: int, device: str) -> None:
    """Positions from 2^34 on have a counter above 32 bits."""
    for count in SIZES:
        out = torch.empty(count, device=device)
        assert philox_uniform((3, 1 << 31), start, count, out) is out
        words = philox_words((3, 1 << 31), start, count, torch.device("cpu"))
        assert torch.equal(out.cpu(), (words >> 8).float() * 2.0**-24)


def test_keys_give_different_numbers_and_all_are_uniform() -> None:
    streams = torch.stack([philox_uniform(key, 0, 100_000) for key in ((0, 0), (1, 0), (0, 1))]).double()
    assert float(streams.min()) >= 0
    assert float(streams.max()) < 1
    # Five standard deviations of the mean, of the second moment's and of the correlation's.
    assert float((streams.mean(1) - 0.5).abs().max()) < 5 * 12**-0.5 / 100_000**0.5
    assert float((streams.square().mean(1) - 1 / 3).abs().max()) < 5 * 0.3 / 100_000**0.5
    assert float((torch.corrcoef(streams) - torch.eye(3)).abs().max()) < 5 / 100_000**0.5


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"philox_uniform: key must be two integers in \[0, 2\^32\)"):
        philox_uniform((0, 1 << 32), 0, 1)
    with pytest.raises(ValueError, match=r"key must be two integers"):
        philox_uniform((0,), 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start must be in \[0, 2\^62\) and count at least 0, got -1 and 1"):
        philox_uniform((0, 0), -1, 1)
    with pytest.raises(ValueError, match=r"count at least 0, got 0 and -2"):
        philox_uniform((0, 0), 0, -2)
    with pytest.raises(ValueError, match=r"out must be contiguous float32 \(4,\), got torch.float64 \(4,\)"):
        philox_uniform((0, 0), 0, 4, torch.zeros(4).double())


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(philox, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
