"""Votes of neighbours, counted or weighed."""

from __future__ import annotations

from gpuclf.arrays import Array, array_namespace
from gpuclf.dispatch import fusable

__all__ = ["count_votes", "inverse_distances"]


@fusable(numpy="nearest.on_cpu:binned_votes")
def count_votes(labels: Array, classes: Array, weights: Array | None = None) -> Array:
    """Count how often each class occurs in each row, or sum the weights of where it does.

    Parameters
    ----------
    labels : integer array of shape (N, k)
    classes : integer array of shape (C,)
        In ascending order; all labels are among them.
    weights : array of shape (N, k), float64, optional

    Returns
    -------
    array of shape (N, C)
        int64, or float64 of weights; added from the nearest to the farthest.
    """
    xp = array_namespace(labels, classes, weights)
    dtype = xp.int64 if weights is None else xp.float64
    votes = xp.zeros((labels.shape[0], classes.shape[0]), dtype=dtype, device=labels.device)
    nothing = xp.zeros_like(votes)
    for j in range(int(labels.shape[1])):
        column = slice(j, j + 1)
        of_class = labels[:, column] == classes
        if weights is None:
            votes += xp.astype(of_class, dtype)
        else:  # not a product: weights may be infinite
            votes += xp.where(of_class, weights[:, column], nothing)
    return votes


def inverse_distances(distances: Array) -> Array:
    """Return the weights 1 / distance of neighbours (N, k); where some have distance 0, they alone.

    As scikit-learn's ``weights="distance"``: a sample at distance 0 would outweigh all others.
    """
    xp = array_namespace(distances)
    zero = distances == 0
    weights = 1 / xp.where(zero, xp.ones_like(distances), distances)
    return xp.where(xp.any(zero, axis=1)[:, None], xp.astype(zero, xp.float64), weights)
