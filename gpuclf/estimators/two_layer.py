"""The two-layer net as a scikit-learn classifier."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any

from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.models import TWO_LAYER, Model, TwoLayerNet

__all__ = ["TwoLayerNetClassifier"]


class TwoLayerNetClassifier(GradientClassifier):
    r"""A net of affine, ReLU, affine and softmax, on the array library of the samples.

    Parameters
    ----------
    hidden_size : int, default 100
    max_iter : int, default 20
        Epochs.
    learning_rate : float, default 0.05
        The largest learning rate, if the schedule varies it.
    learning_rate_decay : float, default 0.95
        Factor of the learning rate from one epoch to the next ("exponential" schedule).
    schedule : {"one_cycle", "exponential"}, default "one_cycle"
        One-cycle rises in a line over the first fifth of the steps, and falls to 0.
    momentum : float, default 0.9
    nesterov : bool, default True
    batch_size : int, default 200
    reg : float, default 1e-4
        The penalty :math:`\lambda` on both W; a source that writes ``0.5 * reg`` means half of
        this one.
    dropout : float, default 0.0
        Probability that a hidden unit is left out of a step; the others are scaled up.
    standardize : bool, default True
        Bring each feature to mean 0 and standard deviation 1 over the training set, without
        writing the standardised samples out. Samples passed as Standardized stay as they are.
    augment : callable, optional
        ``augment(X_batch, rng)`` returns the mini-batch to train on, for example
        :func:`gpuclf.augment.horizontal_flip`.
    precision : {"float32", "tf32", "float64"}, optional
        Floats to compute in; by default as `fit` says. "tf32" is "float32" whose products a GPU may
        do in its faster units, which keep 10 bits behind the point.
    random_state : int, RandomState, Generator or None
        Initial parameters (normal, :math:`\sqrt{2 / \text{inputs}}`; He et al. 2015), order of the
        samples, dropout and augmentation.
    n_iter_no_change : int, optional
        Stop when the validation accuracy has had no new best for so many epochs. It is taken on
        `X_val` of `fit`, or else on a stratified share of the training samples, which then do not
        train. The parameters are those of the last epoch.
    validation_fraction : float, default 0.1
        That share, where there is an `n_iter_no_change`.

    Attributes
    ----------
    classes_ : NumPy array of shape (C,)
    params_ : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), in the array library of the training samples.
    mean_, scale_ : NumPy array of shape (D,), or None
        The standardisation.
    loss_history_ : list of float
        One value a step.
    val_accuracy_history_, train_accuracy_history_ : list of float
        One value an epoch, if there were validation samples; the second on about as many
        training samples.
    n_iter_, n_features_in_ : int

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

    def __init__(
        self,
        *,
        hidden_size: int = 100,
        max_iter: int = 20,
        learning_rate: float = 0.05,
        learning_rate_decay: float = 0.95,
        schedule: str = "one_cycle",
        momentum: float = 0.9,
        nesterov: bool = True,
        batch_size: int = 200,
        reg: float = 1e-4,
        dropout: float = 0.0,
        standardize: bool = True,
        augment: Any = None,
        precision: str | None = None,
        random_state: Any = None,
        n_iter_no_change: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.hidden_size = hidden_size
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.momentum = momentum
        self.nesterov = nesterov
        self.batch_size = batch_size
        self.reg = reg
        self.dropout = dropout
        self.standardize = standardize
        self.augment = augment
        self.precision = precision
        self.random_state = random_state
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction

    net: TwoLayerNet = TWO_LAYER  # a subclass gives its own, for another loss

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

    def check_hyperparameters(self) -> None:  # noqa: D102 - the base class's
        super().check_hyperparameters()
        if not isinstance(self.hidden_size, Integral) or self.hidden_size < 1:
            raise ValueError(
                f"hidden_size must be an integer, at least 1, got {self.hidden_size!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
