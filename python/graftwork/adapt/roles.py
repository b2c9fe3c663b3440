"""Which parameters of a model are tuned in part, in full, or not at all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor, nn

from graftwork.adapt.optimizers.arena import WEIGHT_DTYPES
from graftwork.ops._native import memory_range

#: Parameters by name: shell patterns (``*``, ``?``, ``[ab]``), or a function of name and parameter.
Choice = str | Sequence[str] | Callable[[str, nn.Parameter], bool]


@dataclass(frozen=True)
class Roles:
    """The parameters of a model by what becomes of them, each once, under its first name.

    Attributes
    ----------
    maskable : dict of str to Parameter
        Tuned in part.
    full : dict of str to Parameter
        Tuned in full, such as a new head.
    frozen : dict of str to Parameter
        Not tuned.
    tied : dict of str to str
        Other names of parameters, to the first.
    """

    maskable: dict[str, nn.Parameter]
    full: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    tied: dict[str, str]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Maskable and full ones."""
        return {**self.maskable, **self.full}

    @property
    def tied_of_trainable(self) -> dict[str, str]:
        """Other names of maskable and full parameters."""
        return {name: first for name, first in self.tied.items() if first not in self.frozen}

    @property
    def numel(self) -> int:
        """Weights in all, tied ones once."""
        return sum(p.numel() for p in (*self.trainable.values(), *self.frozen.values()))


def assign_roles(
    model: nn.Module,
    maskable: Choice | None = None,
    full: Choice | None = None,
    frozen: Choice | None = None,
) -> Roles:
    """Give every parameter of a model a role.

    Parameters
    ----------
    model : Module
        The model. Parameters that do not require a gradient are frozen whatever is said.
    maskable : choice, optional
        Tuned in part. By default those of the body of a Hugging Face model (``model.base_model_prefix``), and all of
        another model.
    full : choice, optional
        Tuned in full. By default what is neither maskable nor frozen: the head.
    frozen : choice, optional
        Not tuned. By default the parameters of layer and RMS normalisations. ``()`` for none.

    Returns
    -------
    Roles
        A parameter that is chosen twice is frozen rather than full, and full rather than maskable. Where all three
        are given and a parameter is in none, it is frozen.

    Raises
    ------
    ValueError
        A pattern matches no parameter, nothing is left to tune, or parameters share a part of their memory.
    TypeError
        A maskable parameter is not float16, bfloat16 or float32.

    Notes
    -----
    The roles of LT-SFT's code (Ansell et al. 2022), where embeddings are maskable and normalisations frozen.

    Examples
    --------
    >>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 1)})
    >>> roles = assign_roles(model, maskable="body.*")
    >>> list(roles.maskable), list(roles.full), list(roles.frozen)
    (['body.weight', 'body.bias'], ['head.weight', 'head.bias'], ['norm.weight', 'norm.bias'])
    """
    named, tied = _named_once(model)
    chosen = {
        "maskable": _chosen("maskable", _body(model, named) if maskable is None else maskable, named),
        "full": set() if full is None else _chosen("full", full, named),
        "frozen": _norms(model, named) if frozen is None else _chosen("frozen", frozen, named),
    }
    roles = Roles({}, {}, {}, tied)
    for name, param in named.items():
        if not param.requires_grad or name in chosen["frozen"]:
            roles.frozen[name] = param
        elif name in chosen["full"] or (full is None and name not in chosen["maskable"]):
            roles.full[name] = param
        elif name in chosen["maskable"]:
            roles.maskable[name] = param
        else:
            roles.frozen[name] = param
    _check_maskable(roles)
    return roles


def _check_maskable(roles: Roles) -> None:
    if not roles.maskable:
        raise ValueError(
            "no parameter is left to be tuned in part; look at maskable, full, frozen, and requires_grad"
        )
    for name, param in roles.maskable.items():
        if param.dtype not in WEIGHT_DTYPES:
            raise TypeError(
                f"parameter {name!r} must be float16, bfloat16 or float32 to be tuned in part, got {param.dtype}; "
                f"freeze it or tune it in full"
            )


def _named_once(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Parameters under their first names, and the other names of tied ones."""
    firsts: dict[object, str] = {}
    named: dict[str, nn.Parameter] = {}
    tied: dict[str, str] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        place = (memory_range(param), param.shape, param.stride()) if param.numel() else id(param)
        first = firsts.setdefault(place, name)
        if first == name:
            named[name] = param
        else:
            tied[name] = first
    ranges = sorted((memory_range(param), name) for name, param in named.items() if param.numel())
    for ((device, _, stop), name), ((other_device, start, _), other) in pairwise(ranges):
        if device == other_device and start < stop:
            raise ValueError(
                f"parameters {name!r} and {other!r} share a part of their memory; clone one of them"
            )
    return named, tied


def _chosen(role: str, choice: Choice | set[str], named: dict[str, nn.Parameter]) -> set[str]:
    if isinstance(choice, set):
        return choice
    if callable(choice):
        return {name for name, param in named.items() if choice(name, param)}
    found: set[str] = set()
    for pattern in [choice] if isinstance(choice, str) else choice:
        matches = match_names(pattern, named)
        if not matches:
            near = difflib.get_close_matches(pattern, named, n=1, cutoff=0.3)
            raise ValueError(
                f"{role}: the pattern {pattern!r} matches no parameter"
                + (f"; is {near[0]!r} meant?" if near else "")
            )
        found.update(matches)
    return found


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a shell pattern matches."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _body(model: nn.Module, named: dict[str, nn.Parameter]) -> set[str]:
    """What lies under the prefix of a Hugging Face model; everything where there is none."""
    prefix = getattr(model, "base_model_prefix", "")
    inside = {name for name in named if prefix and name.startswith(f"{prefix}.")}
    return inside or set(named)


def _norms(model: nn.Module, named: dict[str, nn.Parameter]) -> set[str]:
    """Parameters of layer and RMS normalisations, by the class of their module, or by name as LT-SFT's code does."""
    found = {name for name in named if "LayerNorm" in name}
    for path, module in model.named_modules():
        if "LayerNorm" in type(module).__name__ or "RMSNorm" in type(module).__name__:
            own = (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
            found.update(name for name in own if name in named)
    return found


def untie_output_embedding_(model: nn.Module) -> Tensor:
    """Give the model's output embedding a frozen copy of its own, so that tuning moves the input embedding alone.

    Parameters
    ----------
    model : Module
        A Hugging Face model: it has ``get_input_embeddings`` and ``get_output_embeddings``.

    Returns
    -------
    Tensor
        The copy. It does not require a gradient.

    Raises
    ------
    TypeError
        The model has no such methods, or no output embedding.

    Notes
    -----
    LT-SFT's code does so for masked language modelling (``--freeze_decoder``).
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise TypeError(
            f"untie_output_embedding_: {type(model).__name__} has no output embedding that get_output_embeddings finds"
        )
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    config = getattr(model, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
    return head.weight


def entries_of(total: int, k: int | None, density: float | None) -> int:
    """How many weights of `total` to tune: k, or a share of them; exactly one is given."""
    if k is None and density is not None:
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"density must be in [0, 1], got {density}")
        return int(total * density)
    if k is None or density is not None:
        raise ValueError(f"give either k or density, got k={k} and density={density}")
    if not 0 <= k <= total:
        raise ValueError(f"k must be in [0, {total}], the weights that can be tuned, got {k}")
    return k


@torch.no_grad()
def random_indices(
    params: Sequence[Tensor], k: int, taken: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """k of the weights of all tensors together, each set equally likely, none of those already `taken`; sorted."""
    from graftwork.ops.sparse_update import random_support

    numels = torch.tensor([param.numel() for param in params])
    starts = numels.cumsum(0) - numels
    used = torch.cat(
        [index.cpu().long() + start for index, start in zip(taken, starts.tolist(), strict=True)]
    )
    free = int(numels.sum()) - len(used)
    ranks = random_support([free], [k], generator).indices.long()
    # The r-th free place is r plus the taken places before it, of which the j-th has (place - j) free ones before it.
    before = torch.searchsorted(used - torch.arange(len(used)), ranks, right=True)
    places = ranks + before
    cuts = torch.searchsorted(places, torch.cat([starts, numels.sum()[None]]))
    return [
        (places[low:high] - start).to(param.device)
        for low, high, start, param in zip(
            cuts[:-1].tolist(), cuts[1:].tolist(), starts.tolist(), params, strict=True
        )
    ]
