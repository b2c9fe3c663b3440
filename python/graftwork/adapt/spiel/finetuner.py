"""SpIEL: sparse fine-tuning whose memory goes with the tuned weights, which change places while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.lottery.phase import OPTIMIZERS
from graftwork.adapt.optimizers.arena import Arena, differing, written
from graftwork.adapt.optimizers.collect import collect_delta
from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer
from graftwork.adapt.optimizers.state import Handles, label
from graftwork.adapt.roles import Choice, entries_of
from graftwork.adapt.spiel.linear_targets import Targets, apportion, target_roles, target_weights
from graftwork.adapt.spiel.policies import AccumulatedGradient, Fixed, MomentApproximation, Policy
from graftwork.adapt.spiel.rank_one import largest_products
from graftwork.adapt.spiel.window import GradientWindow
from graftwork.ops.sparse_update import (
    Support,
    gather_values,
    random_support,
    reselect,
    restore_values_,
    swap_values_,
    take_entries,
)

#: The options of SpIEL's own AdamW.
_ADAMW = {
    "eps": 1e-6,
    "eps_mode": "uncorrected",
    "decay_mode": "delta",
    "decay_first": False,
    "per_entry_steps": True,
}


class SpIELFinetuner:
    """Sparse fine-tuning with iterated exchange of the tuned weights (SpIEL).

    Every target matrix has a fixed number of tuned weights, at random places at first. From time to time those that
    moved least go back to where they started, and others are tuned instead. Gradients are read at the places that
    matter as soon as backward has them, and freed: no optimizer state, mask or gradient of a model's size is kept.

    Parameters
    ----------
    model : Module
        The model. Parameters that are neither targets nor `full` require no gradient until :meth:`close`.
    k, density : int or float
        How many weights to tune, or which share of the targets' weights. One of the two.
    targets : choice of modules, optional
        Shell patterns of names of :class:`torch.nn.Linear` modules, or a function of name and module. By default all
        of them, without those that share their weight with another module, as a tied output embedding does.
    full : choice of parameters, optional
        Tuned in full, such as a new head; patterns or a function as in `assign_roles`.
    policy : AccumulatedGradient, MomentApproximation or Fixed
        When and where to exchange weights.
    total_steps : int, optional
        Updates of the whole training, by the end of which no more is exchanged; needed unless the policy is `Fixed`.
    seed : int
        Of the places at the start.

    Attributes
    ----------
    steps : int
        Updates so far.
    ks : dict of str to int
        Tuned weights of each target: its share of k by size, one at least if k allows.

    Raises
    ------
    TypeError, ValueError
        A target is not Linear, a pattern matches nothing, or an argument is not as above.

    Notes
    -----
    Deterministic. One process: under data-parallel training every rank would choose its own weights.

    Paper: Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models, 2024. Differs from the authors' code: the
    weights themselves are written, as round(base + value); `density` is a share of the targets and not of the model;
    every window has `window` updates; candidates' gradients count by updates and not by micro-batches; an exchanged
    weight that had a updates of gradients has age a, and its next update is number a + 1; indices stay sorted.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> finetuner = SpIELFinetuner(model, k=12, total_steps=50)
    >>> optimizer = finetuner.optimizer(lr=0.01)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 8)).square().sum().backward()
    ...     finetuner.step()
    >>> finetuner.delta().entries
    12
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int | None = None,
        density: float | None = None,
        targets: Targets | None = None,
        full: Choice = (),
        policy: Policy | None = None,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.policy: Policy = AccumulatedGradient() if policy is None else policy
        ranks = torch.distributed
        if ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1:
            raise ValueError("SpIELFinetuner: one process only; every rank would choose weights of its own")
        if not isinstance(self.policy, Fixed) and (total_steps is None or total_steps < 1):
            raise ValueError(
                f"SpIELFinetuner: total_steps must be at least 1 for this policy, got {total_steps}"
            )
        self.model, self.total_steps, self.steps = model, total_steps or 1, 0
        weights = target_weights(model, targets)
        self.roles = target_roles(model, weights, full)
        numels = [param.numel() for param in self.roles.maskable.values()]
        shares = apportion(entries_of(sum(numels), k, density), numels)
        self.ks = dict(zip(self.roles.maskable, shares, strict=True))
        self._start = random_support(numels, shares, torch.Generator().manual_seed(seed))
        self._made: SparseOptimizer | None = None
        self._window = GradientWindow()
        self._handles = Handles([])
        self._names: dict[Tensor, str] = {param: name for name, param in self.roles.maskable.items()}
        self._silenced = [param for param in self.roles.frozen.values() if param.requires_grad]
        for param in self._silenced:
            param.requires_grad_(False)

    def optimizer(self, lr: float, *, kind: str | None = None, **options: Any) -> SparseOptimizer:
        """The optimizer, to be made once. Its steps exchange weights when the time has come.

        Parameters
        ----------
        lr : float
            Learning rate.
        kind : str, optional
            "adamw" (by default), "sgd" or "sm3", which `MomentApproximation` needs.
        options :
            Those of the optimizer. SpIEL's defaults for "adamw" are eps=1e-6, eps_mode="uncorrected",
            decay_mode="delta" and decay_first=False.

        Returns
        -------
        SparseOptimizer
            Its first group are the targets, its second what is tuned in full, for a learning rate of its own. It goes
            wherever a torch optimizer does, into ``transformers.Trainer`` too. Gradients of targets are taken
            in backward, so that GradScaler does not find them: train in bfloat16.
        """
        if self._made is not None:
            raise ValueError("SpIELFinetuner: it has an optimizer already")
        moments = isinstance(self.policy, MomentApproximation)
        kind = kind or ("sm3" if moments else "adamw")
        if kind not in OPTIMIZERS or (moments and kind != "sm3"):
            wanted = "'sm3' for MomentApproximation" if moments else f"one of {', '.join(OPTIMIZERS)}"
            raise ValueError(f"SpIELFinetuner.optimizer: kind must be {wanted}, got {kind!r}")
        if kind == "adamw":
            options = {**_ADAMW, **options}
        indices = dict(zip(self.ks, self._start.split(self._start.indices), strict=True))
        groups = [list(role.items()) for role in (self.roles.maskable, self.roles.full) if role]
        made = OPTIMIZERS[kind]([{"params": group} for group in groups], indices, lr=lr, **options)
        hooks = [param.register_post_accumulate_grad_hook(self._observe) for param in self._names]
        self._handles = Handles([*hooks, made.register_step_post_hook(self._after_step)])
        self._made = made
        return made

    def _optimizer(self) -> SparseOptimizer:
        if self._made is None:
            raise ValueError("SpIELFinetuner: make its optimizer first: finetuner.optimizer(lr)")
        return self._made

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimizer; the same as its own."""
        return self._optimizer().step(closure)

    def delta(self) -> SparseDelta:
        """What has been tuned so far; weights that did not move are left out."""
        return collect_delta(self._optimizer(), self.roles.tied_of_trainable)

    def close(self) -> None:
        """Take all hooks off, and let the model's other parameters require gradients again."""
        self._handles.remove()
        for param in self._silenced:
            param.requires_grad_(True)
        self._silenced = []

    # Training.

    def _observe(self, param: Tensor) -> None:
        """Read a fresh dense gradient, and free it."""
        name = self._names[param]
        if self.policy.watches(self.steps) and self.ks[name] and param.grad is not None:
            self._window.observe(name, param.grad, self.ks[name])
        self._optimizer().take_gradient_(param)

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        optimizer = self._optimizer()
        self._window.close_update(optimizer.applied_scale)
        if optimizer.applied_scale is None:
            return
        self.steps += 1
        if self.policy.exchanges(self.steps):
            share = self.policy.share(self.steps, self.total_steps)
            for group, arena in optimizer.placed():
                self._exchange(group, arena, share)
            self._window.clear()

    def _exchange(self, group: Mapping[str, Any], arena: Arena, share: float) -> None:
        """Drop the weights of an arena that moved least, and grow others in their place."""
        names = [self._names[param] for param in arena.params]
        drops = [int(self.ks[name] * share) for name in names]
        grow = self._from_moments if isinstance(self.policy, MomentApproximation) else self._from_window
        found = [grow(group, arena, place, drops[place]) for place in range(len(names))]
        candidates = Support(
            [indices.to(arena.support.indices.dtype) for indices, _, _ in found], arena.support.numels
        )
        growth = torch.cat([scores for _, scores, _ in found])
        fresh = {key: torch.cat([extra[key] for _, _, extra in found]) for key in found[0][2]}
        values = arena.arrays["values"]
        support, source = reselect(arena.support, values, candidates, growth, drops)
        base = swap_values_(
            *(
                arena.weights(),
                arena.support,
                arena.arrays["base"],
                support,
                take_entries(source, values, 0.0),
            )
        )
        arena.reselect(support, source, fresh, base)

    def _from_window(
        self, group: Mapping[str, Any], arena: Arena, place: int, drop: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Candidates, their summed gradients, and the moments and ages that these make."""
        held = self._window.held.get(self._names[arena.params[place]])
        adamw = "betas" in group
        if held is None:
            none = arena.arrays["values"][:0]
            return arena.support.indices[:0], none, _seeds(none, none, 0, group) if adamw else {}
        sound = held.sums.isfinite() & held.squares.isfinite()
        indices, sums, squares = (array[sound] for array in (held.indices, held.sums, held.squares))
        return indices, sums, _seeds(sums, squares, held.updates, group) if adamw else {}

    def _from_moments(
        self, group: Mapping[str, Any], arena: Arena, place: int, drop: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Candidates by the product of accumulators: enough of them even if all tuned weights are among them."""
        state = arena.states[place]
        count = len(state["values"]) + drop if drop else 0
        return *largest_products(state["row_max"], state["column_max"], count), {}

    # State.

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with a model at its first weights, or at those of now; between two updates."""
        return {
            "steps": self.steps,
            "policy": repr(self.policy),
            "optimizer": self._optimizer().state_dict(),
            "window": self._window.state_dict(),
            "full": {name: param.detach().clone() for name, param in self.roles.full.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, exactly: the model's tuned weights become those of then.

        Raises
        ------
        ValueError
            The state is of another policy or model, or the model has other weights. Nothing has changed then.
        """
        optimizer = self._optimizer()
        if state["policy"] != repr(self.policy):
            raise ValueError(
                f"SpIELFinetuner.load_state_dict: the state is of {state['policy']}, here it is {self.policy!r}"
            )
        before = optimizer.state_dict()
        _set_back(optimizer)
        try:
            optimizer.load_state_dict(state["optimizer"])
            _check_bases(optimizer)
        except ValueError:
            optimizer.load_state_dict(before)
            optimizer.write_()
            raise
        optimizer.write_()
        self._window.load_state_dict(state["window"], self.roles.maskable)
        for name, weight in state["full"].items():
            self.roles.full[name].copy_(weight)
        self.steps = state["steps"]


def _seeds(sums: Tensor, squares: Tensor, updates: int, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """AdamW's moments after `updates` updates with the mean gradient and the mean square, and its age."""
    beta1, beta2 = group["betas"]
    count = max(1, updates)
    return {
        "exp_avg": sums / count * (1 - beta1**updates),
        "exp_avg_sq": squares / count * (1 - beta2**updates),
        "age": torch.full(sums.shape, updates, dtype=torch.int32, device=sums.device),
    }


def _set_back(optimizer: SparseOptimizer) -> None:
    for arena in optimizer.arenas():
        restore_values_(arena.support, arena.weights(), arena.arrays["base"])


def _check_bases(optimizer: SparseOptimizer) -> None:
    """Require that tuned weights are at their base, or where the state has them."""
    for arena in optimizer.arenas():
        words, base = gather_values(arena.support, arena.weights()), arena.arrays["base"]
        wrong = differing(words, base) & differing(words, written(base, arena.arrays["values"]))
        for param, part in zip(arena.params, arena.support.split(wrong), strict=True):
            if part.any():
                raise ValueError(
                    f"SpIELFinetuner.load_state_dict: the state is of a model with other weights: "
                    f"{int(part.sum())} of {len(part)} differ in {label(optimizer, param)}"
                )
