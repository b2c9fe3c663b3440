"""Random numbers that are a function of a key and a position: any part of a tensor, in any order, gives the same.

GPU: on copies on the host for now.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge.arguments import Key, check_key
from graftwork.ops.sparse_update import _arena
from graftwork.reference.merge import philox as reference


def philox_uniform(key: Key, start: int, count: int, out: Tensor | None = None) -> Tensor:
    """Uniform numbers of the positions from `start` on: Philox4x32-10's words, their upper 24 bits times 2^−24.

    Position i is word i mod 4 of the block with the 128-bit counter ⌊i/4⌋.

    Parameters
    ----------
    key : tuple of (int, int)
        Two 32-bit words.
    start : int
        First position, in [0, 2^62).
    count : int
        Numbers, at least 0.
    out : Tensor, optional
        float32 ``[count]``, contiguous, overwritten. None: a new one on the host.

    Returns
    -------
    Tensor
        `out`, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    The bits do not depend on device, ISA level or threads. Salmon et al. 2011.

    Examples
    --------
    >>> torch.equal(philox_uniform((7, 0), 0, 9)[5:], philox_uniform((7, 0), 5, 4))
    True
    """
    check_key("philox_uniform", "key", key)
    if not 0 <= start < 1 << 62 or count < 0:
        raise ValueError(
            f"philox_uniform: start must be in [0, 2^62) and count at least 0, got {start} and {count}"
        )
    if out is None:
        out = torch.empty(count, dtype=torch.float32)
    elif out.dtype != torch.float32 or out.shape != (count,) or not out.is_contiguous():
        raise ValueError(
            f"philox_uniform: out must be contiguous float32 ({count},), got {out.dtype} {tuple(out.shape)}"
        )
    torch.ops.graftwork.philox_uniform(out, *key, start)
    return out


def _uniform(out: Tensor, key0: int, key1: int, start: int) -> None:
    _native.call("philox_uniform", out, out.numel(), key0, key1, start, like=out)


def _uniform_fake(out: Tensor, key0: int, key1: int, start: int) -> None:
    return None


_native.register(
    "philox_uniform",
    "(Tensor(a!) out, int key0, int key1, int start) -> ()",
    reference=reference.philox_uniform,
    fake=_uniform_fake,
    cpu=_native.Route("_core", (torch.float32,), _uniform),
    cuda=_native.Route("_core", (torch.float32,), _arena.on_host_copies(_uniform, 0)),
)
