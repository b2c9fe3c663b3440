"""The state that a sparse optimizer keeps for each parameter: made, loaded, and checked against the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from graftwork.adapt.optimizers.arena import WEIGHT_DTYPES, differing, index_dtype, written
from graftwork.ops.sparse_update import Support, gather_values

if TYPE_CHECKING:
    from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer

_ENTRY_DTYPES = {"age": torch.int32}  # of arrays that are not float32


class _Removable(Protocol):
    def remove(self) -> None: ...


class Handles:
    """Several hooks, removed together."""

    def __init__(self, handles: Sequence[_Removable]) -> None:
        self._handles = list(handles)

    def remove(self) -> None:
        """Remove the hooks; a second time does nothing."""
        while self._handles:
            self._handles.pop().remove()


def shown(keys: Iterable[Any], limit: int = 3) -> str:
    """A few keys, as an error names them."""
    names = [key if isinstance(key, str) else f"a parameter of shape {tuple(key.shape)}" for key in keys]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def label(optimizer: SparseOptimizer, param: Tensor | None) -> str:
    """How an error names a parameter: by its name if it has one, else by its place."""
    for number, (name, held) in enumerate(optimizer.named()):
        if held is param:
            return repr(name) if isinstance(name, str) else f"parameter {number}"
    return "a parameter"


def start(optimizer: SparseOptimizer, group: Mapping[str, Any], given: Sequence[dict[Any, Tensor]]) -> None:
    """Make the state of a new group's parameters: `given` are indices and bases, and what is used is taken out."""
    indices, bases = given
    names = group.get("param_names", group["params"])
    for name, param in zip(names, group["params"], strict=True):
        mine, base = (_take(found, name, param) for found in (indices, bases))
        where = f"{type(optimizer).__name__}: {label(optimizer, param)}"
        if base is not None and (base.shape != param.shape or base.dtype != param.dtype):
            raise ValueError(
                f"{where}: its base must have its shape and dtype, {tuple(param.shape)} and {param.dtype}, "
                f"got {tuple(base.shape)} and {base.dtype}"
            )
        if mine is not None:
            optimizer.state[param] = _sparse_state(optimizer, where, param, mine, base)
        elif optimizer.needs_base(group):
            kept = param.detach().clone() if base is None else base.detach().to(param.device)
            optimizer.state[param] = {"base": kept}


def _take(found: dict[Any, Tensor], name: Any, param: Tensor) -> Tensor | None:
    return found.pop(name) if name in found else found.pop(param, None)


def _sparse_state(
    optimizer: SparseOptimizer, where: str, param: Tensor, indices: Tensor, base: Tensor | None
) -> dict[str, Any]:
    if param.dtype not in WEIGHT_DTYPES:
        raise TypeError(
            f"{where}: weights that are tuned in part must be float16, bfloat16 or float32, got {param.dtype}; "
            f"leave its indices out, and it is tuned in full"
        )
    if not param.is_contiguous():
        raise ValueError(
            f"{where}: weights that are tuned in part must be contiguous, got strides {param.stride()}"
        )
    mine = _checked(where, param, indices)
    words = gather_values(Support([mine], [param.numel()]), [(param if base is None else base).detach()])
    zeros = torch.zeros(mine.shape, dtype=torch.float32, device=param.device)
    state: dict[str, Any] = {"step": 0, "shape": tuple(param.shape), "indices": mine, "base": words}
    for name in optimizer.entry_names:
        if name != "base":
            state[name] = zeros.to(_ENTRY_DTYPES.get(name, torch.float32), copy=True)
    for name, length in optimizer.other_lengths(param).items():
        state[name] = zeros.new_zeros(length)
    if base is not None:
        state["values"] = (
            gather_values(Support([mine], [param.numel()]), [param.detach()]).float() - words.float()
        )
    return state


def _checked(where: str, param: Tensor, indices: Tensor) -> Tensor:
    """Indices of the parameter, checked, on its device and of the narrowest dtype."""
    try:
        Support([indices], [param.numel()])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
    return indices.to(param.device, index_dtype(param.numel()))


def load(optimizer: SparseOptimizer, saved: Mapping[str, Any]) -> dict[Tensor, dict[str, Any]]:
    """The states of a state dict, by parameter, after a check that they are of such parameters."""
    name, groups = type(optimizer).__name__, saved["param_groups"]
    sizes, ours = ([len(g["params"]) for g in found] for found in (groups, optimizer.param_groups))
    if sizes != ours:
        raise ValueError(
            f"{name}.load_state_dict: the saved state is of another model: its groups have {sizes} parameters, "
            f"here they have {ours}"
        )
    loaded: dict[Tensor, dict[str, Any]] = {}
    for group, mine in zip(groups, optimizer.param_groups, strict=True):
        _check_names(name, group, mine)
        for key, param in zip(group["params"], mine["params"], strict=True):
            where = f"{name}.load_state_dict: {label(optimizer, param)}"
            state = saved["state"].get(key, {})
            if ("indices" in state) != ("indices" in optimizer.state.get(param, {})):
                raise ValueError(
                    f"{where} is tuned in {'part' if 'indices' in state else 'full'} in the saved state but not here; "
                    f"build the optimizer as it was"
                )
            check = _check_sparse if "indices" in state else _check_full
            check(optimizer, where, param, state)
            if state:
                loaded[param] = {entry: _copied(value, param) for entry, value in state.items()}
    return loaded


def _check_names(name: str, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    theirs, ours = saved.get("param_names"), mine.get("param_names")
    if theirs and ours and list(theirs) != list(ours):
        other = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), ("", ""))
        raise ValueError(
            f"{name}.load_state_dict: the saved state is of another model: it has {other[0]!r} where {other[1]!r} is"
        )


def _check_sparse(optimizer: SparseOptimizer, where: str, param: Tensor, state: Mapping[str, Any]) -> None:
    wanted = {"step", "shape", "indices", *optimizer.entry_names, *optimizer.other_lengths(param)}
    if set(state) != wanted:
        raise ValueError(
            f"{where}: the saved state has {sorted(state)}, wanted {sorted(wanted)}; it is of another optimizer"
        )
    if tuple(state["shape"]) != tuple(param.shape) or state["base"].dtype != param.dtype:
        raise ValueError(
            f"{where}: the saved state is of another model: of shape {tuple(state['shape'])} and {state['base'].dtype}, "
            f"here it is {tuple(param.shape)} and {param.dtype}"
        )
    entries = len(_checked(where, param, state["indices"]))
    lengths = dict.fromkeys(optimizer.entry_names, entries) | optimizer.other_lengths(param)
    for name, length in lengths.items():
        dtype = param.dtype if name == "base" else _ENTRY_DTYPES.get(name, torch.float32)
        if state[name].shape != (length,) or state[name].dtype != dtype:
            raise ValueError(
                f"{where}: {name} in the saved state must be {dtype} of shape ({length},), "
                f"got {state[name].dtype} of shape {tuple(state[name].shape)}"
            )


def _check_full(optimizer: SparseOptimizer, where: str, param: Tensor, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if (
            isinstance(value, Tensor)
            and name in ("base", *optimizer.full_names)
            and value.shape != param.shape
        ):
            raise ValueError(
                f"{where}: the saved state is of another model: {name} has shape {tuple(value.shape)}, "
                f"here it is {tuple(param.shape)}"
            )


def _copied(value: Any, param: Tensor) -> Any:
    """A copy on the parameter's device; a count of updates stays where it is."""
    if isinstance(value, Tensor):
        return value.detach().to(param.device if value.dim() else value.device, copy=True)
    return value


def check_resumed(optimizer: SparseOptimizer) -> None:
    """Require that the weights are those that the loaded state describes."""
    for arena in optimizer.arenas():
        words = gather_values(arena.support, arena.weights())
        wrong = differing(words, written(arena.arrays["base"], arena.arrays["values"]))
        for param, part in zip(arena.params, arena.support.split(wrong), strict=True):
            if part.any():
                raise ValueError(
                    f"{type(optimizer).__name__}.step: the loaded state is of other weights: {int(part.sum())} of the "
                    f"{len(part)} tuned weights of {label(optimizer, param)} are not its base + value; load the "
                    f"model's weights that were saved with it, too"
                )
