"""What training goes through, and how it fails."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gpuclf.arrays import Array, array_namespace
from gpuclf.models.model import Params

__all__ = [
    "DivergedError",
    "History",
    "divergence",
    "normalized_weights",
    "one_cycle",
    "quietly",
    "still_falls",
]


ENOUGH_STEPS = 200  # to end without a word


class DivergedError(FloatingPointError):
    """The loss or the parameters became NaN or infinite during training."""


# Divergence is reported by DivergedError; NumPy's warnings on the way there would say it twice.
quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass(repr=False)
class History:
    """What training went through.

    Attributes
    ----------
    loss : list of float
        One value a step: the loss of the mini-batch (SGD), or of all samples after each iteration
        and once more at the end (L-BFGS).
    learning_rate : list of float
        One value a step (SGD).
    val_accuracy : list of float
        One value an epoch, where validation samples were given.
    train_accuracy : list of float
        Beside it the accuracy on about as many training samples: the gap shows overfitting.
    reached_max_iter : bool
        Whether `max_iter` ended L-BFGS before its tolerance was met.

    Examples
    --------
    >>> History([2.3, 1.9, 1.6, 1.5], [0.1, 0.2, 0.2, 0.1], [0.31, 0.42], train_accuracy=[0.3, 0.5])
    History(4 steps, last loss 1.5, val accuracy 0.42, train accuracy 0.5 after 2 epochs)
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    reached_max_iter: bool = False
    train_accuracy: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        # Thousands of losses tell a reader nothing, and fill a notebook.
        n_steps, unit = len(self.loss), "step" if self.learning_rate else "iteration"
        parts = [f"{n_steps:,} {unit}{'' if n_steps == 1 else 's'}"]
        if self.loss:
            parts.append(f"last loss {self.loss[-1]:.4g}")
        for name, values in (("val", self.val_accuracy), ("train", self.train_accuracy)):
            if values:
                parts.append(f"{name} accuracy {values[-1]:.4g}")
        if self.val_accuracy:
            parts[-1] += f" after {len(self.val_accuracy)} epochs"
        return f"History({', '.join(parts)})"


def one_cycle(step: int, total_steps: int, warmup: float = 0.2) -> float:
    """Return the factor of the learning rate: a linear rise from 0 to 1, then a linear fall to 0.

    Source: Smith and Topin, "Super-convergence" (2017), with straight lines.

    Parameters
    ----------
    step, total_steps : int
    warmup : float
        The share of the steps that rise.

    Examples
    --------
    >>> [round(one_cycle(step, 10), 2) for step in (0, 1, 5, 9)]
    [0.5, 1.0, 0.56, 0.06]
    """
    done = (step + 0.5) / total_steps
    peak = max(warmup, 1e-9)
    return min(1.0, (step + 1) / (peak * total_steps)) if done < peak else (1 - done) / (1 - peak)


def divergence(history: History, n_new: int | None = None) -> DivergedError | None:
    """Return the error if one of the last `n_new` losses is not finite.

    Without `n_new` it is that of parameters which no later loss could betray.
    """
    what = "the parameters became NaN or infinite"
    if n_new is not None:
        wrong = [loss for loss in history.loss[-n_new:] if not math.isfinite(loss)]
        if not wrong:
            return None
        what = f"the loss became {wrong[0]}"
    rate = f" (it was {history.learning_rate[-1]:g})" if history.learning_rate else ""
    return DivergedError(
        f"{what} within {len(history.loss)} steps: use a smaller learning_rate{rate}, a smaller "
        "reg, or standardised features (gpuclf.Standardized.fit), and see that X holds no NaN"
    )


def still_falls(history: History) -> bool:
    """Tell whether few steps have ended while the loss was falling as it had been before.

    Over equal stretches of summed learning rates, the fall from the middle to the end is held
    against the whole; large sets, where 20 epochs are thousands of steps, are never accused.
    """
    losses, rates = np.asarray(history.loss), np.asarray(history.learning_rate)
    if len(losses) >= ENOUGH_STEPS:
        return False
    done = (np.cumsum(rates) - rates / 2) / np.sum(rates)
    middle, end = (
        np.mean(losses[np.argsort(abs(done - place))[: max(1, len(losses) // 5)]])
        for place in (0.5, 1.0)
    )
    return bool(middle - end > 0.1 * abs(losses[0] - end) or len(losses) < 5)


def normalized_weights(sample_weight: Array | None, params: Params) -> Array | None:
    """Scale weights (..., N) to sum 1, in the dtype that the losses are computed in."""
    if sample_weight is None:
        return None
    xp = array_namespace(sample_weight)
    dtype = next(iter(params.values())).dtype
    wide = xp.astype(sample_weight, xp.float64)
    return xp.astype(wide / xp.sum(wide, axis=-1, keepdims=True), dtype)
