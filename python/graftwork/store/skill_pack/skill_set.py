"""Several packs of one base, and which of them an input or a task gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from graftwork.errors import BaseMismatch, DataError
from graftwork.store.skill_pack.mount import Model, Mounted, mount
from graftwork.store.skill_pack.pack import SkillPack
from graftwork.store.skill_pack.router import Selection, SkillRouter

__all__ = ["SkillSet"]


class SkillSet:
    """Packs by name, chosen by a router, by task, by hand, or all of them in sum.

    Every choice is a `Selection`, which says how it was made: a result with known tasks is another claim than one where a
    router had to tell them apart.

    Parameters
    ----------
    packs : mapping of str to SkillPack
        All of one base.
    tasks : mapping of str to sequence of str, optional
        The packs S_t of each task t of a continual sequence.
    router : SkillRouter, optional
        Its names are those of packs.

    Raises
    ------
    BaseMismatch
        Two packs are of different bases.
    DataError
        A task or the router names a pack that is not there.
    """

    def __init__(
        self,
        packs: Mapping[str, SkillPack],
        *,
        tasks: Mapping[str, Sequence[str]] | None = None,
        router: SkillRouter | None = None,
    ) -> None:
        self.packs = dict(packs)
        self.tasks = {task: tuple(names) for task, names in (tasks or {}).items()}
        self.router = router
        first, *others = self.packs or [""]
        for name in others:
            if self.packs[name].base_digest != self.packs[first].base_digest:
                raise BaseMismatch(
                    "two packs are of different bases",
                    got=f"{first} and {name}",
                    remedy="make a set of each base's",
                )
        named = {name for names in self.tasks.values() for name in names} | set(
            router.names if router else ()
        )
        if unknown := sorted(named.difference(self.packs)):
            raise DataError("there are no such packs", got=", ".join(unknown), wanted=", ".join(self.packs))

    def all(self, scale: float = 1.0) -> Selection:
        """All packs in sum (the paper's implicit fusion), each with ``scale``."""
        return Selection("sum", tuple(self.packs), (scale,) * len(self.packs))

    def route(self, features: Tensor) -> Selection:
        """The pack that the router chooses for an input with these features [n, d] (explicit fusion).

        Raises
        ------
        DataError
            There is no router.
        """
        if self.router is None:
            raise DataError("the set has no router", remedy="pass router=SkillRouter.fit(...)")
        return self.router.choose(features)

    def for_task(self, task: str) -> Selection:
        """The packs of a task, in sum.

        Raises
        ------
        DataError
            There is no such task.
        """
        if task not in self.tasks:
            raise DataError("there is no such task", got=task, wanted=", ".join(self.tasks) or "tasks=")
        names = self.tasks[task]
        return Selection("task", names, (1.0,) * len(names))

    def choose(self, names: Mapping[str, float] | Sequence[str]) -> Selection:
        """Packs by hand, with their scales or 1."""
        scales = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
        return Selection("manual", tuple(scales), tuple(scales.values()))

    def mount(self, model: Model, selection: Selection, *, check_base: bool = True) -> Mounted:
        """Put the selected packs on a model; see `mount`.

        Raises
        ------
        DataError
            The selection names a pack that is not there.
        """
        if unknown := sorted(set(selection.names).difference(self.packs)):
            raise DataError("there are no such packs", got=", ".join(unknown), wanted=", ".join(self.packs))
        pairs = [
            (self.packs[name], scale) for name, scale in zip(selection.names, selection.scales, strict=True)
        ]
        return mount(model, pairs, check_base=check_base)
