"""What the sparse optimizers share: which weights they tune, their gradients, their state, and how a step goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftwork.adapt.optimizers import state as optimizer_state
from graftwork.adapt.optimizers.arena import SNAPSHOT, Arena, Span, pack
from graftwork.adapt.optimizers.gradients import (
    Tally,
    dense_gradients,
    gather_dense,
    measure,
    measure_full,
    scaled,
    take_gradient,
)
from graftwork.ops.sparse_update import write_values_

if TYPE_CHECKING:
    from graftwork.adapt.deltas.sparse_delta import SparseDelta

#: How parameters, or groups of them, are given: as torch.optim.Optimizer takes them.
Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
NONFINITE = ("raise", "skip", "ignore")


class SparseOptimizer(torch.optim.Optimizer):
    """Base of the optimizers that tune some weights of a parameter and leave the others as they are, bit for bit.

    A parameter with indices has, for each of its tuned weights, a float32 value: how far it is from the weight's word
    at the start, its base. A step updates the values and writes base + value, rounded to the parameter's dtype: nothing
    is lost to rounding from step to step. A parameter without indices is tuned in full, by torch's own arithmetic.

    Attributes
    ----------
    skipped : int
        Steps that were left out because gradients were not finite.
    applied_scale : float or None
        By what the last step multiplied gradients; None if it was skipped.
    """

    #: GradScaler then leaves unscaling and skipping to `step`, through the attributes grad_scale and found_inf.
    _step_supports_amp_scaling = True
    #: Arrays with one entry for each tuned weight, and those of the state of a parameter that is tuned in full.
    entry_names: tuple[str, ...] = ("values", "base")
    full_names: tuple[str, ...] = ()

    def __init__(
        self,
        params: Parameters,
        indices: Mapping[Any, Tensor] | None,
        defaults: dict[str, Any],
        *,
        bases: Mapping[Any, Tensor] | None,
        nonfinite: str,
        max_norm: float | None,
    ) -> None:
        if nonfinite not in NONFINITE:
            raise ValueError(f"{self._name}: nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"{self._name}: max_norm must be above 0, or None, got {max_norm}")
        self.nonfinite, self.max_norm = nonfinite, max_norm
        self.skipped = 0
        self.applied_scale: float | None = None
        self._pending_scale, self._unchecked = 1.0, False
        self._arenas: list[list[Arena]] = []
        self._places: dict[Tensor, tuple[Arena, int]] = {}
        self._given = dict(indices or {}), dict(bases or {})
        super().__init__(params, defaults)
        self._refuse_unknown(self._given)
        self._given = {}, {}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _refuse_unknown(self, given: Iterable[Mapping[Any, Tensor]]) -> None:
        for name, left in zip(("indices", "bases"), given, strict=True):
            if left:
                raise ValueError(
                    f"{self._name}: {name} has keys that are none of the parameters: {optimizer_state.shown(left)}; "
                    f"keys are parameters, or their names where parameters are given with names"
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as :meth:`torch.optim.Optimizer.add_param_group` does.

        The group may have ``indices`` and ``bases``, as the optimizer itself takes them.
        """
        if not isinstance(param_group, dict):
            raise TypeError(
                f"{self._name}: a parameter group must be a dict, got {type(param_group).__name__}"
            )
        group = dict(param_group)
        own = dict(group.pop("indices", {})), dict(group.pop("bases", {}))
        super().add_param_group(group)
        try:
            self._check_options(group)
            optimizer_state.start(self, group, own if any(own) else self._given)
            self._refuse_unknown(own)
        except BaseException:
            for param in self.param_groups.pop()["params"]:
                self.state.pop(param, None)
            raise
        self._pack()

    def _pack(self) -> None:
        """Lay the tuned weights of groups that are not yet side by side."""
        for group in self.param_groups[len(self._arenas) :]:
            arenas = pack(group, self.state, self.entry_names, tuple(self.other_lengths(group["params"][0])))
            self._arenas.append(arenas)
            for arena in arenas:
                self._places.update({param: (arena, place) for place, param in enumerate(arena.params)})

    def arenas(self) -> list[Arena]:
        """Every arena, those of the first parameter group first."""
        return [arena for arenas in self._arenas for arena in arenas]

    def placed(self) -> list[tuple[dict[str, Any], Arena]]:
        """Every arena with its parameter group."""
        pairs = zip(self.param_groups, self._arenas, strict=True)
        return [(group, arena) for group, arenas in pairs for arena in arenas]

    def named(self) -> list[tuple[Any, Tensor]]:
        """Every parameter with its name; or with itself for a name, if parameters were given without names."""
        return [
            pair
            for group in self.param_groups
            for pair in zip(group.get("param_names", group["params"]), group["params"], strict=True)
        ]

    @torch.no_grad()
    def start_from_(self, values: Mapping[Any, Tensor]) -> None:
        """Set the values of parameters, by name or parameter, and write all tuned weights.

        Parameters
        ----------
        values : mapping
            float32 ``[entries of the parameter]`` each. What it leaves out keeps its values.
        """
        for name, param in self.named():
            given = values.get(name, values.get(param))
            if given is not None:
                self.state[param]["values"].copy_(given)
        self.write_()

    def write_(self) -> None:
        """Write all tuned weights: base + value, rounded. It undoes what others wrote there."""
        for arena in self.arenas():
            write_values_(arena.support, arena.weights(), arena.arrays["base"], arena.arrays["values"])

    def has(self, name: str) -> bool:
        """Whether each tuned weight has this in its state."""
        return name in self.entry_names

    # What a subclass says.

    def other_lengths(self, param: Tensor) -> dict[str, int]:
        """The arrays of a parameter's state that are not one entry for each tuned weight, and their lengths."""
        return {}

    def needs_base(self, group: Mapping[str, Any]) -> bool:
        """Whether parameters that are tuned in full need a copy of where they started."""
        return bool(group.get("l1") or (group.get("weight_decay") and group.get("decay_mode") == "delta"))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _check_momentum(self, group: Mapping[str, Any]) -> None:
        """Its buffer is there for all of an optimizer's parameters or for none."""
        if bool(group["momentum"]) != self.has("momentum_buffer"):
            raise ValueError(
                f"{self._name}: momentum must be above 0 in all parameter groups or in none, got {group['momentum']}"
            )

    def _mark(self, state: Mapping[str, Any]) -> object:
        """Parameters of one mark, side by side, are updated by one operation."""
        return state["step"]

    def _step_span(self, group: Mapping[str, Any], span: Span) -> None:
        raise NotImplementedError

    def _step_full(self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError

    # Gradients.

    def take_gradient_(self, param: Tensor) -> None:
        """Keep the gradient of `param` at its tuned weights, added to what is kept already, and free ``param.grad``."""
        with torch.no_grad():
            take_gradient(*self._places[param])

    def gather_in_backward(self) -> optimizer_state.Handles:
        """From now on take the gradient of each parameter as soon as backward has it, so that no dense one survives.

        Returns
        -------
        Handles
            ``remove()`` ends it. Afterwards ``.grad`` is read again.

        Notes
        -----
        GradScaler finds no ``.grad`` of such parameters and refuses: train in bfloat16, which needs no scaler.
        """
        take = self.take_gradient_
        return optimizer_state.Handles(
            [param.register_post_accumulate_grad_hook(take) for param in self._places]
        )

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradients of the next step so that the norm of what it uses is at most `max_norm`.

        Parameters
        ----------
        max_norm : float
            Above 0. The norm is over the gradients at tuned weights and those of parameters that are tuned in full.

        Returns
        -------
        Tensor
            The norm before, float64, of no dimension.

        Notes
        -----
        Call it right before :meth:`step`, where :func:`torch.nn.utils.clip_grad_norm_` would be called, which counts
        gradients of frozen weights too. With GradScaler call ``scaler.unscale_(optimizer)`` first, as there. Where a
        trainer has no place for the call, give the optimizer ``max_norm`` and switch the trainer's own clipping off.
        """
        if not max_norm > 0:
            raise ValueError(f"{self._name}.clip_grad_norm_: max_norm must be above 0, got {max_norm}")
        norm = math.sqrt(self._collect().squares)
        self._pending_scale = _clip(norm, max_norm)
        return torch.tensor(norm, dtype=torch.float64)

    def _collect(self) -> Tally:
        """Gather what is not yet, and measure it and the gradients of parameters that are tuned in full."""
        tally = Tally()
        for arena in self.arenas():
            tally += measure(arena)
        for group in self.param_groups:
            tally += measure_full(self._full(group))
        return tally

    def _full(self, group: Mapping[str, Any]) -> list[Tensor]:
        """The parameters of a group that are tuned in full and have a gradient."""
        return [p for p in group["params"] if p not in self._places and p.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those too that were taken."""
        super().zero_grad(set_to_none)
        for arena in self.arenas():
            arena.release()
        self._pending_scale = 1.0

    # The step.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the tuned weights, and no others.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss, which is returned, and its gradients anew.

        Raises
        ------
        FloatingPointError
            A gradient that would be used is NaN or infinite, and ``nonfinite`` is "raise". Nothing has changed.
        ValueError
            A state was loaded that is not of these weights.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._unchecked:
            optimizer_state.check_resumed(self)
            self._unchecked = False
        scale = self._scale()
        if scale is None:
            self.skipped += 1
        else:
            for group, arenas in zip(self.param_groups, self._arenas, strict=True):
                for arena in arenas:
                    self._step_arena(group, arena, scale)
                if full := self._full(group):
                    self._step_full(group, full, scaled(dense_gradients(full), scale))
        for arena in self.arenas():
            arena.release(SNAPSHOT)
        self.applied_scale, self._pending_scale = scale, 1.0
        return loss

    def _scale(self) -> float | None:
        """By what gradients are multiplied; None if this step is skipped."""
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and float(found_inf):
            return None
        scale = self._pending_scale / (1.0 if grad_scale is None else float(grad_scale))
        if self.nonfinite == "ignore" and self.max_norm is None:
            return scale
        tally = self._collect()
        if tally.nonfinite and self.nonfinite == "skip":
            return None
        if tally.nonfinite and self.nonfinite == "raise":
            raise FloatingPointError(
                f"{self._name}.step: {tally.nonfinite} of the gradients are NaN or infinite, the first in "
                f"{optimizer_state.label(self, tally.first)}; nothing was changed. Lower the learning rate, clip "
                f'gradients, look at the batch; or leave such steps out with nonfinite="skip"'
            )
        if self.max_norm is not None:
            scale *= _clip(math.sqrt(tally.squares) * scale, self.max_norm)
        return scale

    def _step_arena(self, group: Mapping[str, Any], arena: Arena, scale: float) -> None:
        """One operation for each run of parameters that have a gradient and as many updates behind them."""
        compact = any(arena.held)
        if compact:
            gather_dense(arena)
        marks = [
            self._mark(state) if held or param.grad is not None else None
            for param, state, held in zip(arena.params, arena.states, arena.held, strict=True)
        ]
        for first, last in arena.spans(marks):
            params = arena.params[first:last]
            grads = arena.buffer()[arena.entries(first, last)] if compact else dense_gradients(params)
            self._step_span(group, Span(arena, first, last, grads, scale))
            torch.autograd.graph.increment_version(params)
            for state in arena.states[first:last]:
                state["step"] += 1

    # State.

    def delta(self) -> SparseDelta:
        """What has been tuned, as a delta: of the weights that moved, their values; of parameters in full, copies.

        Where weights were replaced since, by the best checkpoint for example, it is of those that the model has now.

        Raises
        ------
        ValueError
            Parameters were given without names, or none is tuned in part.
        """
        from graftwork.adapt.optimizers.collect import collect_delta

        return collect_delta(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a saved state left off, exactly.

        The weights are not part of the state: load those that were saved with it into the model, before or after. The
        first step checks that they are the ones. Load hooks see the groups alone.

        Raises
        ------
        ValueError
            The state is of another model, or of an optimizer that was built otherwise.
        """
        loaded = optimizer_state.load(self, state_dict)
        # The base class would cast float32 states to the parameters' dtype.
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self.state.update(loaded)
        self._unchecked = True
        self._repack()

    def _repack(self) -> None:
        self._arenas, self._places = [], {}
        self._pack()

    def __getstate__(self) -> dict[str, Any]:
        own: tuple[str, ...] = ("entry_names", "nonfinite", "max_norm", "skipped", "applied_scale")
        own += ("_pending_scale", "_unchecked", "_given")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._repack()


def _clip(norm: float, max_norm: float) -> float:
    return min(1.0, max_norm / (norm + 1e-6))
