"""The two-layer net as a scikit-learn classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import ClassVar

from gpuclf.estimators.gradient_classifier import Check, GradientClassifier
from gpuclf.models import TWO_LAYER, Model, TwoLayerNet

__all__ = ["TwoLayerNetClassifier"]


@dataclass(kw_only=True, eq=False, repr=False)
class TwoLayerNetClassifier(GradientClassifier):
    r"""A net of affine, ReLU, affine and softmax, on the array library of the samples.

    Parameters
    ----------
    hidden_size : int, default 100
    solver : {"sgd", "lbfgs"}, default "sgd"
        Mini-batch SGD, or SciPy's L-BFGS on all samples at once, without dropout and augmentation.
        `max_iter` counts its iterations then, and it warns when it stops there.
    learning_rate : float or "auto", default "auto"
        The largest learning rate, if the schedule varies it. "auto" is 0.05.
    reg : float, default 1e-4
        The penalty :math:`\lambda` on both W; a source that writes ``0.5 * reg`` means half of
        this one.
    dropout : float, default 0.0
        Probability that a hidden unit is left out of a step; the others are scaled up.
    tol : float, default 1e-5
        L-BFGS stops when no component of the gradient is larger.
    **others : as for GradientClassifier

    Attributes
    ----------
    params_ : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), in the array library of the training samples. W
        start normal, of standard deviation :math:`\sqrt{2 / \text{inputs}}` (He et al. 2015).
    **others : as for GradientClassifier

    See Also
    --------
    gpuclf.two_layer_loss : the objective.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 50) * 1.0, np.array([0, 0, 1, 1] * 50)
    >>> net = TwoLayerNetClassifier(hidden_size=16, batch_size=20, random_state=0).fit(X, y)
    >>> net.score(X, y)  # not linearly separable
    1.0
    """

    hidden_size: int = 100
    solver: str = "sgd"
    learning_rate: float | str = "auto"
    reg: float = 1e-4
    dropout: float = 0.0
    tol: float = 1e-5

    CHECKS: ClassVar[tuple[Check, ...]] = (
        *GradientClassifier.CHECKS,
        ("hidden_size", Integral, lambda v: v >= 1, "an integer, at least 1"),
        ("dropout", Real, lambda v: 0 <= v < 1, "in [0, 1)"),
    )
    auto_rate = 0.05
    auto_rate_power = 0.0
    net: ClassVar[TwoLayerNet] = TWO_LAYER  # a subclass gives its own, for another loss

    def check_hyperparameters(self) -> None:
        """Raise a ValueError that names the first hyper-parameter out of range."""
        super().check_hyperparameters()
        if self.dropout and self.solver == "lbfgs":
            raise ValueError(
                f"dropout={self.dropout} draws anew for each step, and solver='lbfgs' needs a loss "
                "that stays the same: use solver='sgd', or a larger reg instead of dropout"
            )

    @property
    def model(self) -> Model:  # type: ignore[override]
        """The net of these hyper-parameters."""
        return replace(self.net, hidden_size=self.hidden_size, dropout=self.dropout)

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if isinstance(cls.__dict__.get("model"), TwoLayerNet):
            raise TypeError(
                f"{cls.__name__}.model would hide hidden_size and dropout: call it net instead"
            )
