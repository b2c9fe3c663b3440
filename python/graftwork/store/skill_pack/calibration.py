"""What the inputs of a model's linear layers are like, layer after layer, while the layers before are being replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.ops.quantized_delta import accumulate_hessian

__all__ = ["LinearInputs", "run_batch"]

_LEAST_SHARE = 1e-3


class _Reached(Exception):
    """The last layer that is looked at has been called: ends a forward pass that has served its purpose."""


def run_batch(model: nn.Module, batch: Any) -> Any:
    """``model`` on a batch: a mapping gives keyword arguments, a tuple or list positional ones, all else is the one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


class LinearInputs:
    """Second moments of the inputs of linear layers, with the weights that the model has by then.

    The model is copied and is the caller's to change through `model`: what is written to the layers of one group is seen
    by all that come later. Within a chain of blocks (a ModuleList, each entry fed by the one before) only the block that a
    layer is in is run; otherwise the model from its start.

    Parameters
    ----------
    model : Module
        Runs forward on every batch.
    batches : sequence
        See `run_batch`; kept, and used again for every group.
    wanted : collection of str
        Names of weights; those that are of an ``nn.Linear`` which the first batch calls are in `groups`.

    Raises
    ------
    DataError
        There are no batches.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], wanted: Collection[str]) -> None:
        if not len(batches):
            raise DataError("there are no batches to calibrate with", got=0, wanted="at least one")
        self.model = copy.deepcopy(model).eval()
        self._batches = batches
        self._layers = {
            f"{name}.weight" if name else "weight": module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and (f"{name}.weight" if name else "weight") in wanted
        }
        self._blocks = _Chain(self.model, batches)
        self.groups = self._find_groups()

    def _find_groups(self) -> list[list[str]]:
        """Layers in the order of their first calls; those called in a row with one and the same input are a group."""
        groups: list[list[str]] = []
        seen: set[str] = set()
        last: list[Tensor] = []

        def note(name: str, given: Tensor) -> None:
            if name in seen:
                return
            seen.add(name)
            if last and last[0] is given:
                groups[-1].append(name)
            else:
                groups.append([name])
            last[:] = [given]

        with self._watching(self._layers, note):
            run_batch(self.model, self._batches[0])
        return groups

    def hessian(self, group: Sequence[str]) -> Tensor | None:
        """2/n Σ x·xᵀ over all inputs x of the group's layers, float32 [I, I]; None if there was no input.

        Its diagonal is at least a thousandth of its mean: an input that the batches happen not to have is no reason to
        forget the weights that it meets.

        Raises
        ------
        DataError
            An input is not finite.
        """
        columns = self._layers[group[0]].in_features
        total = torch.zeros(columns, columns, device=self._layers[group[0]].weight.device)
        count, left = 0, set(group)

        def add(name: str, given: Tensor) -> None:
            nonlocal count
            if name == group[0]:
                count = _accumulated(total, given, count, name)
            left.discard(name)
            if not left:
                raise _Reached

        for number in range(len(self._batches)):
            left.update(group)
            with self._watching({name: self._layers[name] for name in group}, add):
                self._blocks.run(number, group)
        if not count:
            return None
        diagonal = total.diagonal()
        diagonal.clamp_(min=_LEAST_SHARE * float(diagonal.mean()))
        return total

    @contextmanager
    def _watching(
        self, layers: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]
    ) -> Iterator[None]:
        """Call ``note`` with a layer's name and input before it runs; a pass that it ends by `_Reached` ends quietly."""

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, given: note(name, given[0])

        with ExitStack() as stack, torch.no_grad():
            for name, layer in layers.items():
                stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
            try:
                yield
            except _Reached:
                return


def _accumulated(total: Tensor, given: Tensor, count: int, name: str) -> int:
    try:
        return accumulate_hessian(total, given, count)
    except ValueError as error:
        raise DataError(
            "the inputs of a layer are not finite on the calibration batches",
            tensor=name,
            remedy="look for NaN in the batches, and for overflow in the model",
        ) from error


class _Chain:
    """The blocks of a model, and what each batch gives the block that is at work."""

    def __init__(self, model: nn.Module, batches: Sequence[Any]) -> None:
        self._model = model
        self._batches = batches
        self._prefix, self._blocks = _find_blocks(model, batches[0])
        self._at = -1
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def run(self, number: int, group: Sequence[str]) -> None:
        """Run a batch at least through the layers of ``group``."""
        block = self._block_of(group)
        if block is None:
            run_batch(self._model, self._batches[number])
            return
        if number == 0:
            self._advance(block)
        args, kwargs = self._given[number]
        self._blocks[block](*args, **kwargs)

    def _block_of(self, group: Sequence[str]) -> int | None:
        found = set()
        for name in group:
            rest = name.removeprefix(self._prefix)
            found.add(int(rest.split(".")[0]) if self._blocks and rest != name else None)
        return found.pop() if len(found) == 1 else None

    def _advance(self, block: int) -> None:
        """Go on to the inputs of a block: those of the first by running the model, others by running the one before."""
        if self._at < 0 or block < self._at:
            self._given = [self._capture(batch) for batch in self._batches]
            self._at = 0
        while self._at < block:
            self._given = [
                ((_first(self._quietly(args, kwargs)), *args[1:]), kwargs) for args, kwargs in self._given
            ]
            self._at += 1

    def _quietly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the block at work, without the hooks of whoever watches."""
        layers = [module for module in self._blocks[self._at].modules() if module._forward_pre_hooks]
        hooks = [(layer, layer._forward_pre_hooks.copy()) for layer in layers]
        for layer in layers:
            layer._forward_pre_hooks.clear()
        try:
            return self._blocks[self._at](*args, **kwargs)
        finally:
            for layer, held in hooks:
                layer._forward_pre_hooks.update(held)

    def _capture(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the first block is given when the model runs on a batch."""
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))
            raise _Reached

        handle = self._blocks[0].register_forward_pre_hook(take, with_kwargs=True)
        try:
            run_batch(self._model, batch)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _find_blocks(model: nn.Module, batch: Any) -> tuple[str, list[nn.Module]]:
    """The largest ModuleList whose entries are called once each, in order, each fed by the one before."""
    lists = [
        (sum(p.numel() for p in module.parameters()), f"{name}.", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    for _, prefix, blocks in sorted(lists, key=lambda row: -row[0]):
        if _is_chain(model, list(blocks), batch):
            return prefix, list(blocks)
    return "", []


def _is_chain(model: nn.Module, blocks: list[nn.Module], batch: Any) -> bool:
    calls: list[tuple[int, Any, Any]] = []
    with ExitStack() as stack, torch.no_grad():
        for number, block in enumerate(blocks):
            hook = _recorder(calls, number)
            stack.callback(block.register_forward_hook(hook).remove)
        run_batch(model, batch)
    if [number for number, _, _ in calls] != list(range(len(blocks))):
        return False
    return all(after[1] is _first(before[2]) for before, after in pairwise(calls)) and isinstance(
        calls[0][1], Tensor
    )


def _recorder(calls: list[tuple[int, Any, Any]], number: int) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append((number, args[0] if args else None, output))

    return note
