"""How each method merges one tensor: a setting of the operations in `graftwork.ops.merge`.

Every function takes a `TensorTask`, fills its output, and returns what it met that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from graftwork.compose.task import Outcome, TensorTask

if TYPE_CHECKING:
    from torch import Tensor

    from graftwork.ops.merge import MergeCounts, Sparsify

__all__ = [
    "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear", "karcher", "linear",
    "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "sce", "slerp", "task_arithmetic", "ties",
]  # fmt: skip

Consensus = Literal["none", "sum"]


# ---- sums of models and of differences


def linear(task: TensorTask) -> Outcome:
    """Σ w·x, divided by Σ w if `normalize`."""
    from graftwork.ops.merge import combine

    weights = task.numbers("weight")
    total = sum(weights) if task.switch("normalize") else 1.0
    return Outcome.of(combine(task.donors, [weight / total for weight in weights], **task.writing)[1])


def task_arithmetic(task: TensorTask) -> Outcome:
    """base + λ·Σ w·(x − base)."""
    return _arithmetic(task, "none", None)


def ties(task: TensorTask) -> Outcome:
    """The largest differences of each, of those the ones that agree with the sign of their weighted sum."""
    return _arithmetic(task, "sum", _largest(task))


def dare_linear(task: TensorTask) -> Outcome:
    """Differences dropped at random, the others made up for."""
    return _arithmetic(task, "none", _random(task))


def dare_ties(task: TensorTask) -> Outcome:
    """`dare_linear` with the sign of the weighted sum."""
    return _arithmetic(task, "sum", _random(task))


def della(task: TensorTask) -> Outcome:
    """`della_linear` with the sign of the weighted sum."""
    return _arithmetic(task, "sum", _ranked(task))


def della_linear(task: TensorTask) -> Outcome:
    """Differences dropped at random, the smaller ones of a row more often."""
    return _arithmetic(task, "none", _ranked(task))


def breadcrumbs(task: TensorTask) -> Outcome:
    """The differences between the largest and the small ones."""
    return _arithmetic(task, "none", _band(task))


def breadcrumbs_ties(task: TensorTask) -> Outcome:
    """`breadcrumbs` with the sign of the weighted sum."""
    return _arithmetic(task, "sum", _band(task))


def _arithmetic(task: TensorTask, consensus: Consensus, sparsify: Sparsify | None) -> Outcome:
    from graftwork.ops.merge import merge_many

    counts = merge_many(
        task.base, task.donors, task.numbers("weight"), sparsify=sparsify, consensus=consensus,
        normalize=task.switch("normalize"), scale=task.number("lambda"), **task.writing,
    )[1]  # fmt: skip
    return Outcome.of(counts)


def _largest(task: TensorTask) -> Sparsify:
    from graftwork.ops.merge import Sparsify, keep_count

    kept = [keep_count(density, task.out.numel()) for density in task.numbers("density")]
    return Sparsify.magnitude(kept, rescale="l1" if task.shared["rescale"] else None)


def _band(task: TensorTask) -> Sparsify:
    from graftwork.ops.merge import Sparsify

    rescale: Literal["l1"] | None = "l1" if task.shared["rescale"] else None
    return Sparsify.band(task.numbers("density"), _unless_all(task, "gamma"), rescale=rescale)


def _random(task: TensorTask) -> Sparsify:
    from graftwork.ops.merge import Sparsify

    return Sparsify.random(task.numbers("density"), task.keys, rescale=_rescaled(task))


def _ranked(task: TensorTask) -> Sparsify:
    from graftwork.ops.merge import Sparsify

    spread = _unless_all(task, "epsilon")
    return Sparsify.ranked(task.numbers("density"), spread, task.keys, rescale=_rescaled(task))


def _unless_all(task: TensorTask, name: str) -> list[float]:
    """A parameter that has no effect on a donor of which all is kept, or nothing."""
    pairs = zip(task.numbers(name), task.numbers("density"), strict=True)
    return [value if 0 < density < 1 else 0.0 for value, density in pairs]


def _rescaled(task: TensorTask) -> Literal["probability", "l1"] | None:
    rescale = task.shared["rescale"]
    if rescale is False:
        return None
    return "l1" if rescale == "l1" else "probability"


# ---- selections


def sce(task: TensorTask) -> Outcome:
    """Where the differences vary most, weighted by their energy there, without those of the minority's sign."""
    from graftwork.ops.merge import sce as operation

    found = operation(task.start, task.donors, select=task.number("select_topk"), **task.writing)
    return Outcome.of(found.counts)


def nearswap(task: TensorTask) -> Outcome:
    """The other model's weights where they are near the base's."""
    from graftwork.ops.merge import nearswap as operation

    return Outcome.of(operation(task.start, task.donors[0], task.number("t"), **task.writing)[1])


def passthrough(task: TensorTask) -> Outcome:
    """The model's own weights, perhaps scaled."""
    from graftwork.ops.merge import combine

    scale = task.own[0]["scale"]
    return Outcome.of(combine(task.donors, [1.0 if scale is None else float(scale)], **task.writing)[1])


# ---- combinations on the sphere


def slerp(task: TensorTask) -> Outcome:
    """From the base to the other model."""
    from graftwork.compose import coefficients

    t = task.number("t")
    return Outcome.base_first(
        _combined(task, [task.start, *task.donors], None, lambda gram: coefficients.slerp(gram, t))
    )


def nuslerp(task: TensorTask) -> Outcome:
    """From one model to the other, or from one difference to the other, by their weights."""
    from graftwork.compose import coefficients

    weights = task.numbers("weight")
    rule = lambda gram: coefficients.nuslerp(gram, weights)  # noqa: E731
    if task.switch("nuslerp_flatten"):
        return Outcome.of(_combined(task, task.donors, task.base, rule))
    if task.switch("nuslerp_row_wise") and task.out.dim() > 1:
        return _by_columns(task, rule)
    return Outcome.of(_combined(task, task.donors, task.base, rule, rowwise=True))


def multislerp(task: TensorTask) -> Outcome:
    """Barycentric interpolation of models, or of differences."""
    from graftwork.compose import coefficients

    if len(task.donors) == 1:
        return Outcome.of(_combined(task, task.donors, None, lambda gram: [1.0]))
    weights, normalize, eps = task.numbers("weight"), task.switch("normalize_weights"), task.number("eps")
    return Outcome.of(
        _combined(
            task, task.donors, task.base, lambda gram: coefficients.multislerp(gram, weights, normalize, eps)
        )
    )


def karcher(task: TensorTask) -> Outcome:
    """The mean on the sphere."""
    from graftwork.compose import coefficients

    if len(task.donors) == 1:
        return Outcome.of(_combined(task, task.donors, None, lambda gram: [1.0]))
    steps, tol = int(task.number("max_iter")), task.number("tol")
    return Outcome.of(_combined(task, task.donors, None, lambda gram: coefficients.karcher(gram, steps, tol)))


def model_stock(task: TensorTask) -> Outcome:
    """Between the base and the mean, by the angle between the differences."""
    from graftwork.compose import coefficients

    rowwise = task.switch("filter_wise") and task.out.dim() > 1
    return Outcome.of(_combined(task, task.donors, task.base, coefficients.model_stock, rowwise=rowwise))


Rule = Callable[["Tensor"], Any]


def _combined(
    task: TensorTask, tensors: list[Tensor], base: Tensor | None, rule: Rule, *, rowwise: bool = False
) -> MergeCounts:
    """Combine by a rule on the inner products; with `rowwise` for every vector along the last dimension.

    Elements that are not finite have no part in the inner products: a NaN spoils its own place only.
    """
    from graftwork.ops.merge import combine, merge_gram

    rowwise = rowwise and task.out.dim() > 1 and task.out.numel() > 0
    views = [tensor.reshape(-1, tensor.shape[-1]) if rowwise else tensor.reshape(-1) for tensor in tensors]
    under = None if base is None else base.reshape(views[0].shape)
    gram = merge_gram(views, under, rowwise)
    if not bool(gram.isfinite().all()):
        gram = merge_gram([_cleaned(view, under) for view in views], None, rowwise)
    writing = task.writing | {"out": task.out.view(views[0].shape)}
    if task.residual is not None:
        writing["residual_out"] = task.residual.view(views[0].shape)
    return combine(views, rule(gram), under, **writing)[1]


def _cleaned(view: Tensor, under: Tensor | None) -> Tensor:
    """A difference (or a tensor) in float32, 0 where it is not finite."""
    values = view.float() if under is None else view.float() - under.float()
    return values.nan_to_num(0.0, 0.0, 0.0)


def _by_columns(task: TensorTask, rule: Rule) -> Outcome:
    """`_combined` for the vectors along the first dimension: on transposed copies."""
    import torch

    turned = [tensor.transpose(0, -1).contiguous() for tensor in task.donors]
    inner = TensorTask(
        task.name,
        None if task.base is None else task.base.transpose(0, -1).contiguous(),
        turned,
        task.own,
        task.shared,
        torch.empty(turned[0].shape, dtype=task.out.dtype),
        nonfinite=task.nonfinite,
        rounding=task.rounding,
        rounding_key=task.rounding_key,
        residual=None if task.residual is None else torch.empty(turned[0].shape, dtype=task.residual.dtype),
    )
    found = Outcome.of(_combined(inner, inner.donors, inner.base, rule, rowwise=True))
    task.out.copy_(inner.out.transpose(0, -1))
    if task.residual is not None and inner.residual is not None:
        task.residual.copy_(inner.residual.transpose(0, -1))
    return found
