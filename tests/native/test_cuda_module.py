"""The compiled CUDA module imports without a GPU, and its errors name the operation."""

from __future__ import annotations

import pytest
import torch

cuda = pytest.importorskip(
    "graftwork._cuda", reason="graftwork was built without a CUDA compiler", exc_type=ImportError
)


def test_it_imports_without_a_driver() -> None:
    assert cuda.device_count() == torch.cuda.device_count()


def test_refused_arguments_are_value_errors() -> None:
    with pytest.raises(ValueError, match=r"^encode_ordinal_planes: "):
        cuda.encode_ordinal_planes(0, 0, 0, 5, 3, True, 0)
    with pytest.raises(ValueError, match=r"^delta_stats: "):
        cuda.delta_stats(0, 0, 1, 9, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"^decode_ordinal_rans: "):
        cuda.decode_ordinal_rans(0, 0, 0, 0, 1, 17, 0, 0, 1, 0)
    with pytest.raises(ValueError, match=r"^gather_values: "):
        cuda.gather_values(0, 0, 3, 0, 1, 4, 0, 1, 0)
    with pytest.raises(ValueError, match=r"^topk_absdiff: "):
        cuda.topk_absdiff(0, 0, 0, 0, 0, 1, 1, 1, 0, 2, 0, 0, 0)
    with pytest.raises(ValueError, match=r"^merge_deltas: "):
        cuda.merge_deltas(0, 0, 0, 1.0, 0, 0, 0, 1.0, 1, 1, 2, 0, 0, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present: the launch would succeed")
def test_a_launch_without_a_gpu_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match=r"^decode_ordinal_planes: CUDA driver"):
        cuda.decode_ordinal_planes(0, 0, 0, 5, 2, True, False, 0)


def test_scratch_of_sparse_updates_goes_with_their_tiles() -> None:
    """A double and a count, or a few words, for each tile; three histograms for a selection."""
    entries = (0, 1, 1024, 1025)
    assert [cuda.gather_gradients_workspace_bytes(n) for n in entries] == [0, 16, 16, 32]
    assert [cuda.swap_values_workspace_bytes(n) for n in entries] == [24, 48, 48, 72]
    assert [cuda.merge_deltas_workspace_bytes(n) for n in entries] == [32, 64, 64, 96]
    assert [cuda.topk_absdiff_workspace_bytes(n) for n in (0, 2)] == [3 * 2048 * 8 + 24, 3 * 2048 * 8 + 56]


def test_workspace_holds_four_doubles_a_segment() -> None:
    assert [cuda.delta_stats_workspace_bytes(numel, 2) for numel in (0, 1, 16384, 16385)] == [0, 32, 32, 64]
