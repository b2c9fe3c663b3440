"""Which matrices SpIEL tunes, and how many weights of each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from graftwork.adapt.roles import Choice, Roles, assign_roles, match_names

#: Modules by name: shell patterns, or a function of name and module.
Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]


def apportion(total: int, numels: Sequence[int]) -> list[int]:
    """Shares of `total` by size, of which each tensor that has elements gets one at least if there are enough.

    Examples
    --------
    >>> apportion(10, [50, 30, 1])
    [5, 4, 1]
    """
    whole = sum(numels)
    least = [1 if numel and total >= len(numels) else 0 for numel in numels]
    rest, room = total - sum(least), whole - sum(least)
    exact = [(numel - one) * rest / room if room else 0.0 for numel, one in zip(numels, least, strict=True)]
    shares = [one + int(part) for one, part in zip(least, exact, strict=True)]
    by_remainder = sorted(range(len(numels)), key=lambda place: (int(exact[place]) - exact[place], place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def target_weights(model: nn.Module, targets: Targets | None) -> dict[str, nn.Parameter]:
    """The weights of the targets, by the name of the parameter."""
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if targets is None:
        owners: dict[int, int] = {}
        for module in modules.values():
            for param in module.parameters(recurse=False):
                owners[id(param)] = owners.get(id(param), 0) + 1
        chosen = [name for name in linear if owners[id(modules[name].weight)] == 1]
    elif callable(targets):
        chosen = [name for name, module in modules.items() if targets(name, module)]
    else:
        chosen = []
        for pattern in [targets] if isinstance(targets, str) else targets:
            exact = pattern in modules
            matches = (
                [pattern] if exact else [name for name in match_names(pattern, modules) if name in linear]
            )
            if not matches:
                near = difflib.get_close_matches(pattern, linear, n=1, cutoff=0.3)
                raise ValueError(
                    f"targets: the pattern {pattern!r} matches no Linear module"
                    + (f"; is {near[0]!r} meant?" if near else "")
                )
            chosen += matches
    for name in chosen:
        if not isinstance(modules[name], nn.Linear):
            raise TypeError(
                f"targets: {name!r} must be a torch.nn.Linear, got {type(modules[name]).__name__}"
            )
    if not chosen:
        raise ValueError("targets: the model has no Linear module to tune")
    return {f"{name}.weight".lstrip("."): modules[name].weight for name in dict.fromkeys(chosen)}


def target_roles(model: nn.Module, weights: Mapping[str, nn.Parameter], full: Choice) -> Roles:
    ids = {id(param) for param in weights.values()}
    return assign_roles(model, maskable=lambda _, param: id(param) in ids, full=full, frozen=())
