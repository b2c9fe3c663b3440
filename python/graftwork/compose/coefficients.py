"""Merges that are linear combinations of their inputs: the coefficients, out of the inputs' inner products.

Every rule takes Gram matrices G_ij = x_i · x_j, float64 ``[..., n, n]`` with any number of leading dimensions (rows of a
tensor, each a vector of its own), and gives coefficients float64 ``[..., n]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["karcher", "model_stock", "multislerp", "nuslerp", "slerp"]

_NO_LENGTH = 1e-8
_ALIGNED = 0.9995


def _lengths(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _cosine(gram: Tensor, lengths: Tensor, one: int, other: int) -> Tensor:
    product = lengths[..., one] * lengths[..., other]
    return torch.where(product > 0, gram[..., one, other] / product, 0.0).clamp(-1, 1)


def _arc(cosine: Tensor, straight: Tensor, t: float) -> Tensor:
    """``[..., 2]``: sin((1−t)θ)/sin θ and sin(tθ)/sin θ; 1 − t and t where the vectors are on one line."""
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    sine = torch.sin(angle)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    second = torch.where(straight, t, torch.sin(t * angle) / sine)
    return torch.stack([first, second], -1)


def slerp(gram: Tensor, t: float) -> Tensor:
    """From the first vector to the second along the great circle; along the line where |cos θ| > 0.9995.

    A vector shorter than 1e-8 has no direction: the angle is taken for a right one.
    """
    lengths = _lengths(gram)
    cosine = torch.where((lengths > _NO_LENGTH).all(-1), _cosine(gram, lengths, 0, 1), 0.0)
    return _arc(cosine, cosine.abs() > _ALIGNED, t)


def nuslerp(gram: Tensor, weights: Sequence[float]) -> Tensor:
    """As `slerp` with t = w_1 / (w_0 + w_1), whose sum is not 0; along the line only where the vectors are on one."""
    total = weights[0] + weights[1]
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    cosine = _cosine(gram, _lengths(gram), 0, 1)
    return _arc(cosine, 1 - cosine.square() <= 1e-12, t)


def multislerp(gram: Tensor, weights: Sequence[float], normalize: bool, eps: float) -> Tensor:
    """Barycentric interpolation: the exponential map, at the normed mean of the unit vectors, of their tangents' mean.

    The result has the weighted mean of the lengths. Vectors whose weighted mean has no direction are combined linearly if
    they are two, or all without length; three and more are refused.

    Raises
    ------
    ZeroDivisionError
        The weights sum to 0 and shall be normalised, or the mean has no direction.
    """
    share = torch.tensor(list(weights), dtype=torch.float64)
    if normalize:
        if abs(float(share.sum())) < eps:
            raise ZeroDivisionError("the weights sum to 0")
        share = share / share.sum()
    lengths = _lengths(gram)
    units = 1 / (lengths + eps)  # of x_i
    unit_gram = gram * units[:, None] * units[None, :]
    mean = share.clone()  # in units
    length = (mean @ unit_gram @ mean).clamp(min=0).sqrt()
    if length < eps:
        if len(share) == 2 or float(lengths.max()) < eps:
            return share
        raise ZeroDivisionError("the weighted mean of the directions is 0")
    mean = mean / length
    cosines = unit_gram @ mean
    tangent = share - (share * cosines).sum() * mean
    bend = (tangent @ unit_gram @ tangent).clamp(min=0).sqrt() + eps
    result = mean * torch.cos(bend) + tangent * (torch.sin(bend) / bend)
    return result * (lengths * share).sum() * units


def karcher(gram: Tensor, max_iter: int, tol: float) -> Tensor:
    """The mean of the directions on the sphere, by gradient descent from their normed mean; with the mean length.

    Vectors shorter than `tol` have no direction and count for the length alone.
    """
    lengths = _lengths(gram)
    valid = lengths > tol
    if not bool(valid.any()):
        return torch.zeros_like(lengths)
    units = torch.where(valid, 1 / lengths.clamp(min=tol), 0.0)
    unit_gram = gram * units[:, None] * units[None, :]
    share = valid.double() / valid.sum()
    mean = share.clone()
    length = _length(mean, unit_gram)
    if length < tol:
        mean = torch.zeros_like(mean)
        mean[int(valid.double().argmax())] = 1.0
    else:
        mean = mean / length
    for _ in range(max_iter):
        cosines = (unit_gram @ mean).clamp(-1, 1)
        angles = torch.acos(cosines)
        pull = torch.where(valid & (angles >= tol), share * angles / torch.sin(angles).clamp(min=1e-300), 0.0)
        tangent = pull - (pull * cosines).sum() * mean
        bend = _length(tangent, unit_gram)
        if bend < tol:
            break
        mean = torch.cos(bend) * mean + torch.sin(bend) * tangent / bend
        length = _length(mean, unit_gram)
        if length > tol:
            mean = mean / length
    return mean * lengths.mean() * units


def _length(vector: Tensor, gram: Tensor) -> Tensor:
    return (vector @ gram @ vector).clamp(min=0).sqrt()


def model_stock(gram: Tensor) -> Tensor:
    """t/k for each of k differences, t = k·cos θ / (1 + (k−1)·cos θ) with the mean cosine of all pairs.

    0 where the denominator is: opposite differences say nothing but the base.
    """
    count, lengths = gram.shape[-1], _lengths(gram)
    pairs = [
        (gram[..., i, j] / (lengths[..., i] * lengths[..., j]).clamp(min=1e-6)).clamp(-1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = torch.stack(pairs).mean(0)
    below = 1 + (count - 1) * cosine
    singular = below.abs() < 1e-6
    t = torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, below))
    return (t / count).unsqueeze(-1).expand(*t.shape, count)
