"""What the operations of the stem check at their door, and what they return besides the merged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update import _arena

#: The dtypes of weights, in the order of the native code's numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
Key = tuple[int, int]
Rounding = Literal["nearest", "stochastic"]
Nonfinite = Literal["propagate", "zero"]
_CAST = "cast it first, or leave it out"


class MergeCounts(NamedTuple):
    """What a merge met and did; the properties copy it from `table`, int64 on the host.

    Counts of several tensors may be added where no first index is asked for.
    """

    table: Tensor

    @property
    def nonfinite(self) -> list[int]:
        """Elements of each donor that are NaN or infinite."""
        return self.table[:-5:2].tolist()

    @property
    def first_nonfinite(self) -> list[int]:
        """Flat index of each donor's first such element; −1: it has none."""
        return self.table[1:-5:2].tolist()

    @property
    def base_nonfinite(self) -> int:
        """Elements of the base that are NaN or infinite."""
        return int(self.table[-5])

    @property
    def first_base_nonfinite(self) -> int:
        """Flat index of the base's first such element; −1: it has none."""
        return int(self.table[-4])

    @property
    def changed(self) -> int:
        """Words that differ from the base's, rounded to the output's dtype; 0 without a base."""
        return int(self.table[-3])

    @property
    def lost(self) -> int:
        """Updates that are not 0 but vanish in rounding: the word is the base's; 0 without a base."""
        return int(self.table[-2])

    @property
    def overflowed(self) -> int:
        """Finite values that are infinite in the output's dtype."""
        return int(self.table[-1])


def check_weights(
    operation: str, name: str, value: object, other_name: str = "", other: Tensor | None = None
) -> None:
    """Require a dense float16, bfloat16 or float32 tensor; of the shape and on the device of another one."""
    _checks.check_tensor(operation, name, value)
    if not isinstance(value, Tensor):  # check_tensor raised
        return
    _checks.check_dtype(operation, name, value, FORMATS, _CAST)
    if other is None:
        return
    if value.shape != other.shape:
        raise ValueError(
            f"{operation}: {name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}; "
            f"slice or reshape one of them first"
        )
    _checks.check_device(operation, name, value, other_name, other)


def check_donors(operation: str, name: str, donors: Sequence[Tensor], base: Tensor | None) -> None:
    """Require at least one donor, all of one shape, and the base's."""
    if isinstance(donors, Tensor) or not donors:
        got = "one tensor" if isinstance(donors, Tensor) else "none"
        raise ValueError(f"{operation}: {name} must be a list of at least one tensor, got {got}")
    for number, donor in enumerate(donors):
        check_weights(operation, f"{name}[{number}]", donor, f"{name}[0]", donors[0] if number else None)
    if base is not None:
        check_weights(operation, "base", base, f"{name}[0]", donors[0])


def check_numbers(operation: str, name: str, numbers: Sequence[float], count: int) -> None:
    """Require one number for each donor, finite in float32."""
    if len(numbers) != count:
        raise ValueError(f"{operation}: {name} must be {count}, one for each donor, got {len(numbers)}")
    for place, number in enumerate(numbers):
        check_finite(operation, f"{name}[{place}]", number)


def check_finite(operation: str, name: str, number: float) -> None:
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{operation}: {name} must be finite in float32, got {number}")


def check_share(operation: str, name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{operation}: {name} must be in [0, 1], got {share}")


def check_key(operation: str, name: str, key: Key) -> None:
    """Require the two 32-bit words of a Philox key."""
    if len(key) != 2 or not all(isinstance(word, int) and 0 <= word < 1 << 32 for word in key):
        raise ValueError(f"{operation}: {name} must be two integers in [0, 2^32), a Philox key, got {key}")


def check_choice(operation: str, name: str, value: str, choices: Sequence[str]) -> int:
    """The number of a choice."""
    if value not in choices:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(choices)}, got {value!r}")
    return choices.index(value)


def rounding_key(operation: str, rounding: Rounding, key: Key | None) -> Key | None:
    """The key if rounding is stochastic, else None."""
    if check_choice(operation, "rounding", rounding, ("nearest", "stochastic")) == 0:
        if key is not None:
            raise ValueError(
                f"{operation}: key is for stochastic rounding; leave it out, or pass rounding='stochastic'"
            )
        return None
    if key is None:
        raise ValueError(f"{operation}: stochastic rounding needs a key, two integers in [0, 2^32)")
    check_key(operation, "key", key)
    return key


def zero_nonfinite(operation: str, nonfinite: Nonfinite) -> bool:
    return check_choice(operation, "nonfinite", nonfinite, ("propagate", "zero")) == 1


def output(
    operation: str,
    like: Tensor,
    out: Tensor | None,
    residual_out: Tensor | None,
    dtype: torch.dtype | None,
    inputs: Mapping[str, Tensor | None],
) -> Tensor:
    """The output, a new one unless given; it may be one of the inputs, but share memory with none otherwise."""
    if out is None:
        if dtype is not None and dtype not in FORMATS:
            raise TypeError(f"{operation}: dtype must be one of {_checks.dtype_names(FORMATS)}, got {dtype}")
        out = torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)
    else:
        check_weights(operation, "out", out, "the inputs", like)
        _checks.check_output(operation, "out", out)
        if dtype is not None and dtype != out.dtype:
            raise TypeError(f"{operation}: dtype must be that of out, {out.dtype}, got {dtype}; leave it out")
        for name, tensor in inputs.items():
            if tensor is not None and not _is_same(out, tensor):
                _native.check_output(operation, "out", out, **{name: tensor})
    if residual_out is not None:
        check_weights(operation, "residual_out", residual_out, "the inputs", like)
        _checks.check_dtype(
            operation, "residual_out", residual_out, (torch.float32,), "the residual is exact in it"
        )
        _checks.check_output(operation, "residual_out", residual_out)
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        _native.check_output(operation, "residual_out", residual_out, out=out, **given)
    return out


def _is_same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and other.is_contiguous()
        and _native.memory_range(one) == _native.memory_range(other)
    )


def named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor | None]:
    return {f"{name}[{number}]": tensor for number, tensor in enumerate(tensors)}


def keep_count(density: float, numel: int) -> int:
    """How many of `numel` weights a density keeps: ⌊density·numel⌋, but one at least where the density is not 0."""
    if density <= 0 or numel == 0:
        return 0
    return numel if density >= 1 else max(1, math.floor(density * numel))


def held_weights(donors: Sequence[Tensor], base: Tensor | None) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """The tensors to be held, the base last; their pointers (0: no base), and their formats."""
    held = [_native.packed(tensor) for tensor in (*donors, *([] if base is None else [base]))]
    places = _native.addresses(held) + ([0] if base is None else [])
    formats = [FORMATS.index(tensor.dtype) for tensor in held] + ([0] if base is None else [])
    return held, (torch.tensor(places), torch.tensor(formats, dtype=torch.int32))


def table_on_host(run: Callable[..., Tensor], *written: int) -> Callable[..., Tensor]:
    """The CUDA route for now: the CPU route on copies; what it returns is a table that only the host reads."""
    copied = _arena.on_host_copies(run, *written)
    return lambda *arguments: copied(*arguments).cpu()
