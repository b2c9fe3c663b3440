"""Lossless differences between a base tensor and its fine-tune, entropy coded: as small as they get.

Two codes of the same ordinal difference (:func:`graftwork.ops.lossless_delta.encode_ordinal_planes`). ordinal_rans codes
every word, its class in the context of the base's exponent and of how much the words before it changed; sparse_delta
codes only the words that differ, and is applied in place.

GPU: decode_ordinal_rans is CUDA, a segment a warp; rANS needs ballots and irregular loads that Triton does not have.
What encodes, and sparse_delta, run on copies on the host. For a GPU code with segments of 2^16 words: a warp each.

None is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.reference import entropy_delta as reference
from graftwork.reference import sparse_delta as sparse_reference
from graftwork.reference.lossless_delta import EXPONENT_BITS, INTEGERS

#: The dtypes that :func:`encode_ordinal_rans` takes, in the order of the native code's numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
#: The dtypes that :func:`encode_sparse_delta` takes: all of two and four bytes.
SPARSE_DTYPES = tuple(dtype for dtype in (*EXPONENT_BITS, *INTEGERS) if dtype.itemsize in (2, 4))
SEGMENTS = tuple(1 << log2 for log2 in range(16, 21))
_FIX = "view it as a type of that size, or use encode_ordinal_planes"


def encode_ordinal_rans(base: Tensor, tuned: Tensor, segment: int | None = 1 << 20) -> Tensor:
    """Code a fine-tune as its bit-exact distance from the base, close to the distance's entropy.

    With the class c = sign(d)·bit_length(|d|) of the ordinal difference d of every word: c by rANS, with a probability
    that depends on the exponent of the base's word and on Σ|c| over the 32 words before; the |c| − 1 bits below the
    leading one as they are. Contexts share up to 16 probability tables, chosen by what they cost.

    Parameters
    ----------
    base, tuned : Tensor
        float16, bfloat16 or float32; same shape, dtype and device. Views are copied.
    segment : int, optional
        Words that are coded together, on their own: 2^16, 2^17, … 2^20. None: 2^20, halved for as long as that costs
        fewer bits.

    Returns
    -------
    Tensor
        The payload: uint8, one-dimensional. For unrelated tensors it is larger than `tuned`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bytes do not depend on device, ISA level or threads. The class code is FM-Delta's; the context
    of the exponent, and of the neighbourhood, rANS on 32 interleaved states, and the bijective order of floats are
    ours. ``docs/store-format.md`` describes the bytes.

    Examples
    --------
    >>> base = torch.randn(100_000).bfloat16()
    >>> tuned = (base.float() + 1e-3 * torch.randn(100_000)).bfloat16()
    >>> payload = encode_ordinal_rans(base, tuned)
    >>> len(payload) < 0.25 * tuned.nbytes
    True
    >>> torch.equal(decode_ordinal_rans(base, payload), tuned)
    True
    """
    _checks.check_pair("encode_ordinal_rans", base, tuned, FORMATS, _FIX)
    if segment is not None and segment not in SEGMENTS:
        raise ValueError(
            f"encode_ordinal_rans: segment must be None or one of {', '.join(map(str, SEGMENTS))}, got {segment}"
        )
    log2_segment = segment.bit_length() - 1 if segment else 0
    return torch.ops.graftwork.encode_ordinal_rans(base.detach(), tuned.detach(), log2_segment)


def decode_ordinal_rans(base: Tensor, payload: Tensor, tuned: Tensor | None = None) -> Tensor:
    """Restore a fine-tune from its base and :func:`encode_ordinal_rans`, bit for bit, in one pass.

    Parameters
    ----------
    base : Tensor
        The tensor that the payload was made against. A view is copied.
    payload : Tensor
        uint8, one-dimensional, on the device of `base`.
    tuned : Tensor, optional
        Like `base`, contiguous, apart from the inputs in memory; overwritten. None: a new tensor.

    Returns
    -------
    Tensor
        `tuned`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the payload is malformed; what `tuned` holds is undefined then. Memory outside
        of the arguments is never touched, whatever the payload's bytes are.

    Notes
    -----
    Deterministic. A payload notices most wrong bases, but not all: check a digest of the result.

    Examples
    --------
    >>> base, tuned = torch.randn(2, 3), torch.randn(2, 3)
    >>> torch.equal(decode_ordinal_rans(base, encode_ordinal_rans(base, tuned)), tuned)
    True
    """
    tuned = _check_restore("decode_ordinal_rans", base, payload, tuned, FORMATS)
    torch.ops.graftwork.decode_ordinal_rans(base.detach(), payload, tuned.detach())
    return tuned


def encode_sparse_delta(base: Tensor, tuned: Tensor, max_share: float = 0.125) -> Tensor | None:
    """Code where a fine-tune differs from its base and by how much, for updates that leave most words as they are.

    Of every word that differs: the distance from the one before and the ordinal difference; of both the sign and bit
    length by rANS, and the bits below the leading one as they are. One word in a hundred moved by one unit in the last
    place takes about 9.2 bits for each of these.

    Parameters
    ----------
    base, tuned : Tensor
        Same shape, dtype and device; any float or integer dtype of 2 or 4 bytes. Views are copied.
    max_share : float
        In (0, 1]: give up where more than this share of any 2^20 words differs.

    Returns
    -------
    Tensor or None
        The payload: uint8, one-dimensional; None if too much differs.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bytes do not depend on ISA level or threads. ``docs/store-format.md`` describes them.

    Examples
    --------
    >>> base = torch.zeros(1000, dtype=torch.bfloat16)
    >>> tuned = base.clone()
    >>> tuned[123] = 1
    >>> apply_sparse_delta_(base, encode_sparse_delta(base, tuned)).sum().item()
    1.0
    """
    _checks.check_pair("encode_sparse_delta", base, tuned, SPARSE_DTYPES, _FIX)
    if not 0 < max_share <= 1:
        raise ValueError(f"encode_sparse_delta: max_share must be in (0, 1], got {max_share}")
    most = max(1, int(max_share * min(base.numel(), 1 << 20)))
    payload = torch.ops.graftwork.encode_sparse_delta(base.detach(), tuned.detach(), most)
    return payload if payload.numel() else None


def apply_sparse_delta_(words: Tensor, payload: Tensor, reverse: bool = False) -> Tensor:
    """Turn a base into the fine-tune that :func:`encode_sparse_delta` coded against it, or back, in place.

    Parameters
    ----------
    words : Tensor
        The base (`reverse`: the fine-tune); contiguous; only the words that differ are read and written.
    payload : Tensor
        uint8, one-dimensional, on the device of `words`.
    reverse : bool
        Take the differences away instead of adding them: exactly undoes an application.

    Returns
    -------
    Tensor
        `words`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the payload is malformed; `words` is untouched then.

    Notes
    -----
    Deterministic. Any base is accepted: check a digest of the result.

    Examples
    --------
    >>> base, tuned = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.0])
    >>> payload = encode_sparse_delta(base, tuned, max_share=0.5)
    >>> apply_sparse_delta_(apply_sparse_delta_(base, payload), payload, reverse=True).tolist()
    [1.0, 2.0, 3.0]
    """
    _checks.check_tensor("apply_sparse_delta_", "words", words)
    _checks.check_dtype("apply_sparse_delta_", "words", words, SPARSE_DTYPES, _FIX)
    _check_payload("apply_sparse_delta_", payload, words)
    _checks.check_output("apply_sparse_delta_", "words", words)
    torch.ops.graftwork.apply_sparse_delta(words.detach(), payload, reverse)
    return words


def decode_sparse_delta(base: Tensor, payload: Tensor, tuned: Tensor | None = None) -> Tensor:
    """Restore a fine-tune from its base and :func:`encode_sparse_delta`, in one pass, beside the base.

    Parameters
    ----------
    base : Tensor
        The tensor that the payload was made against. A view is copied.
    payload : Tensor
        uint8, one-dimensional, on the device of `base`.
    tuned : Tensor, optional
        Like `base`, contiguous, apart from the inputs in memory; overwritten. None: a new tensor.

    Returns
    -------
    Tensor
        `tuned`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the payload is malformed; what `tuned` holds is undefined then.

    Notes
    -----
    Deterministic. Any base is accepted: check a digest of the result.

    Examples
    --------
    >>> base, tuned = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.0])
    >>> decode_sparse_delta(base, encode_sparse_delta(base, tuned, max_share=0.5)).tolist()
    [1.0, 2.5, 3.0]
    """
    tuned = _check_restore("decode_sparse_delta", base, payload, tuned, SPARSE_DTYPES)
    torch.ops.graftwork.decode_sparse_delta(base.detach(), payload, tuned.detach())
    return tuned


def _check_restore(
    operation: str, base: Tensor, payload: Tensor, tuned: Tensor | None, dtypes: tuple[torch.dtype, ...]
) -> Tensor:
    """Check what restores a fine-tune; the output."""
    _checks.check_tensor(operation, "base", base)
    _checks.check_dtype(operation, "base", base, dtypes, _FIX)
    _check_payload(operation, payload, base)
    if tuned is None:
        return torch.empty(base.shape, dtype=base.dtype, device=base.device)
    _checks.check_pair(operation, base, tuned, dtypes, _FIX)
    _checks.check_output(operation, "tuned", tuned)
    return tuned


def _check_payload(operation: str, payload: Tensor, base: Tensor) -> None:
    _checks.check_tensor(operation, "payload", payload)
    _checks.check_dtype(operation, "payload", payload, (torch.uint8,), "a payload is bytes")
    if payload.dim() != 1:
        raise ValueError(f"{operation}: payload must have one dimension, got shape {tuple(payload.shape)}")
    _checks.check_device(operation, "payload", payload, "base", base)


def _encode_rans(base: Tensor, tuned: Tensor, log2_segment: int) -> Tensor:
    base, tuned = _native.packed(base), _native.packed(tuned)
    core, numel = _native.load("_core"), base.numel()
    bound = core.ordinal_rans_payload_bound(numel, base.itemsize)
    payload, nbytes = _native.buffer("payload", bound), torch.empty(1, dtype=torch.int64)
    workspace = _native.buffer("workspace", core.ordinal_rans_workspace_bytes(_native.threads_for(numel)))
    form = FORMATS.index(base.dtype)
    arguments = base, tuned, payload, nbytes, workspace, numel, form, log2_segment
    _native.call("encode_ordinal_rans", *arguments, like=base)
    return payload[: int(nbytes)].clone()


def _decode_rans(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    base, payload = _native.packed(base), _native.packed(payload)
    _native.check_output("decode_ordinal_rans", "tuned", tuned, base=base, payload=payload)
    core, numel = _native.load("_core"), base.numel()
    workspace = _native.buffer("workspace", core.ordinal_rans_workspace_bytes(_native.threads_for(numel)))
    malformed, form = torch.empty(1, dtype=torch.int64), FORMATS.index(base.dtype)
    arguments = base, payload, payload.numel(), tuned, malformed, workspace, numel, form
    _native.call("decode_ordinal_rans", *arguments, like=base)
    reference.refuse_if("decode_ordinal_rans", bool(malformed))


def _parse_segments(payload: Tensor, numel: int, form: int) -> tuple[Tensor, int]:
    """The segments of a payload as the kernel takes them, on the host, and the most tables that one has."""
    cuda, nbytes = _native.load("_cuda"), payload.numel()
    frame = payload[:4].cpu()
    count = _native.query("_cuda", "rans_segment_count", frame, nbytes, numel)
    reference.refuse_if("decode_ordinal_rans", count < 0)
    frame = payload[: 4 + 4 * count].cpu()
    lengths = frame[4:].view(torch.int32).long() & 0xFFFFFFFF
    places = (frame.numel() + lengths.cumsum(0) - lengths)[:, None] + torch.arange(cuda.rans_head_bytes)
    heads = payload[places.clamp_(max=nbytes - 1).to(payload.device)].cpu()
    segments = torch.empty(count, cuda.rans_segment_bytes, dtype=torch.uint8)
    tables = _native.query("_cuda", "parse_rans_segments", frame, heads, nbytes, numel, form, segments)
    reference.refuse_if("decode_ordinal_rans", tables < 0)
    return segments, tables


def _decode_rans_cuda(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    base, payload = _native.packed(base), _native.packed(payload)
    _native.check_output("decode_ordinal_rans", "tuned", tuned, base=base, payload=payload)
    form = FORMATS.index(base.dtype)
    segments, tables = _parse_segments(payload, base.numel(), form)
    status = torch.zeros(len(segments), dtype=torch.int32, device=base.device)
    on_device = segments.to(base.device)
    arguments = base, payload, payload.numel(), on_device, len(segments), tables, tuned, status, form
    _native.call("decode_ordinal_rans", *arguments, like=base)
    reference.refuse_if("decode_ordinal_rans", bool(status.any()))


def _encode_sparse(base: Tensor, tuned: Tensor, max_changes: int) -> Tensor:
    base, tuned = _native.packed(base), _native.packed(tuned)
    core, numel, threads = _native.load("_core"), base.numel(), _native.threads_for(base.numel())
    bound = core.sparse_delta_payload_bound(numel, base.itemsize, max_changes)
    payload, nbytes = _native.buffer("payload", bound), torch.empty(1, dtype=torch.int64)
    workspace = _native.buffer("workspace", core.sparse_delta_workspace_bytes(max_changes, threads))
    word = numel, base.itemsize, base.dtype in EXPONENT_BITS
    _native.call(
        "encode_sparse_delta", base, tuned, payload, nbytes, workspace, *word, max_changes, like=base
    )
    return payload[: max(0, int(nbytes))].clone()


def _apply_sparse(words: Tensor, payload: Tensor, reverse: bool) -> None:
    payload = _native.packed(payload)
    _native.check_output("apply_sparse_delta_", "words", words, payload=payload)
    malformed = torch.empty(1, dtype=torch.int64)
    word = words.numel(), words.itemsize, words.dtype in EXPONENT_BITS
    arguments = words, payload, payload.numel(), malformed, *word, reverse
    _native.call("apply_sparse_delta", *arguments, like=words)
    reference.refuse_if("apply_sparse_delta_", bool(malformed))


def _decode_sparse(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    base, payload = _native.packed(base), _native.packed(payload)
    _native.check_output("decode_sparse_delta", "tuned", tuned, base=base, payload=payload)
    malformed = torch.empty(1, dtype=torch.int64)
    word = base.numel(), base.itemsize, base.dtype in EXPONENT_BITS
    _native.call("decode_sparse_delta", base, payload, payload.numel(), tuned, malformed, *word, like=base)
    reference.refuse_if("decode_sparse_delta", bool(malformed))


def _apply_sparse_cuda(words: Tensor, payload: Tensor, reverse: bool) -> None:
    copy = words.cpu()
    _apply_sparse(copy, payload.cpu(), reverse)
    words.copy_(copy)


def _decode_sparse_cuda(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    tuned.copy_(base)
    _apply_sparse_cuda(tuned, payload, False)


def _new_payload(base: Tensor, tuned: Tensor, option: int) -> Tensor:
    return base.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


_native.register(
    "encode_ordinal_rans",
    "(Tensor base, Tensor tuned, int log2_segment) -> Tensor",
    reference=reference.encode_ordinal_rans,
    fake=_new_payload,
    cpu=_native.Route("_core", FORMATS, _encode_rans),
    cuda=_native.Route("_core", FORMATS, _native.on_the_host(_encode_rans)),
)
_native.register(
    "decode_ordinal_rans",
    "(Tensor base, Tensor payload, Tensor(a!) tuned) -> ()",
    reference=reference.decode_ordinal_rans,
    fake=lambda base, payload, tuned: None,
    cpu=_native.Route("_core", FORMATS, _decode_rans),
    cuda=_native.Route("_cuda", FORMATS, _decode_rans_cuda),
)
_native.register(
    "encode_sparse_delta",
    "(Tensor base, Tensor tuned, int max_changes) -> Tensor",
    reference=sparse_reference.encode_sparse_delta,
    fake=_new_payload,
    cpu=_native.Route("_core", SPARSE_DTYPES, _encode_sparse),
    cuda=_native.Route("_core", SPARSE_DTYPES, _native.on_the_host(_encode_sparse)),
)
_native.register(
    "apply_sparse_delta",
    "(Tensor(a!) words, Tensor payload, bool reverse) -> ()",
    reference=sparse_reference.apply_sparse_delta,
    fake=lambda words, payload, reverse: None,
    cpu=_native.Route("_core", SPARSE_DTYPES, _apply_sparse),
    cuda=_native.Route("_core", SPARSE_DTYPES, _apply_sparse_cuda),
)
_native.register(
    "decode_sparse_delta",
    "(Tensor base, Tensor payload, Tensor(a!) tuned) -> ()",
    reference=sparse_reference.decode_sparse_delta,
    fake=lambda base, payload, tuned: None,
    cpu=_native.Route("_core", SPARSE_DTYPES, _decode_sparse),
    cuda=_native.Route("_core", SPARSE_DTYPES, _decode_sparse_cuda),
)
