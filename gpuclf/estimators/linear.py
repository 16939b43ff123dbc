"""The linear models as scikit-learn classifiers: softmax regression and the SVM."""

from __future__ import annotations

from typing import Any

from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.models import SOFTMAX, SVM

__all__ = ["LinearSVMClassifier", "SoftmaxClassifier"]


class SoftmaxClassifier(GradientClassifier):
    r"""Softmax regression (multinomial logistic regression), on the array library of the samples.

    Minimises :math:`\frac{1}{N} \sum_i -\log p_{i y_i} + \lambda \sum W^2`; the bias is not
    penalised.

    Parameters
    ----------
    solver : {"sgd", "lbfgs"}, default "sgd"
        Mini-batch SGD, or SciPy's L-BFGS on all samples at once.
    max_iter : int, default 20
        Epochs of SGD, or iterations of L-BFGS, which warns when it stops there.
    learning_rate : float, default 0.003
        The largest learning rate, if the schedule varies it.
    learning_rate_decay : float, default 0.95
        Factor of the learning rate from one epoch to the next ("exponential" schedule).
    schedule : {"one_cycle", "exponential"}, default "one_cycle"
        One-cycle rises in a line over the first fifth of the steps, and falls to 0.
    momentum : float, default 0.9
    nesterov : bool, default True
    batch_size : int, default 200
    reg : float, default 1e-3
        The penalty :math:`\lambda`; a source that writes ``0.5 * reg`` means half of this one.
    tol : float, default 1e-5
        L-BFGS stops when no component of the gradient is larger.
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
        W (D, C) and b (C,), in the array library of the training samples; they act on the
        standardised features.
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
    gpuclf.softmax_loss_vectorized : the objective.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> SoftmaxClassifier(random_state=0).fit(X, y).predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """

    model = SOFTMAX

    def __init__(
        self,
        *,
        solver: str = "sgd",
        max_iter: int = 20,
        learning_rate: float = 0.003,
        learning_rate_decay: float = 0.95,
        schedule: str = "one_cycle",
        momentum: float = 0.9,
        nesterov: bool = True,
        batch_size: int = 200,
        reg: float = 1e-3,
        tol: float = 1e-5,
        standardize: bool = True,
        augment: Any = None,
        precision: str | None = None,
        random_state: Any = None,
        n_iter_no_change: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.solver = solver
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.momentum = momentum
        self.nesterov = nesterov
        self.batch_size = batch_size
        self.reg = reg
        self.tol = tol
        self.standardize = standardize
        self.augment = augment
        self.precision = precision
        self.random_state = random_state
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction


class LinearSVMClassifier(GradientClassifier):
    r"""Linear multiclass SVM, on the array library of the samples.

    Minimises :math:`\frac{1}{N} \sum_i \sum_{j \ne y_i} \max(0, s_{ij} - s_{i y_i} + 1)
    + \lambda \sum W^2` (Weston and Watkins) by mini-batch SGD; the bias is not penalised.

    Parameters
    ----------
    max_iter : int, default 20
        Epochs.
    learning_rate : float, default 0.0003
        The largest learning rate, if the schedule varies it.
    learning_rate_decay : float, default 0.95
        Factor of the learning rate from one epoch to the next ("exponential" schedule).
    schedule : {"one_cycle", "exponential"}, default "one_cycle"
        One-cycle rises in a line over the first fifth of the steps, and falls to 0.
    momentum : float, default 0.9
    nesterov : bool, default True
    batch_size : int, default 200
    reg : float, default 0.03
        The penalty :math:`\lambda`; a source that writes ``0.5 * reg`` means half of this one.
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
        W (D, C) and b (C,), in the array library of the training samples; they act on the
        standardised features.
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
    gpuclf.svm_loss_vectorized : the objective.

    Notes
    -----
    There is no L-BFGS here as :class:`gpuclf.SoftmaxClassifier` has it: that builds on gradients
    which change smoothly and stops at a small one, but the hinge has kinks, where its subgradient
    need not be small even at the minimum. The learning rate and penalty were chosen on CIFAR-10's
    validation images. There is no `predict_proba` either: the scores are not logits.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> LinearSVMClassifier(random_state=0).fit(X, y).predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """

    model = SVM

    def __init__(
        self,
        *,
        max_iter: int = 20,
        learning_rate: float = 0.0003,
        learning_rate_decay: float = 0.95,
        schedule: str = "one_cycle",
        momentum: float = 0.9,
        nesterov: bool = True,
        batch_size: int = 200,
        reg: float = 0.03,
        standardize: bool = True,
        augment: Any = None,
        precision: str | None = None,
        random_state: Any = None,
        n_iter_no_change: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.schedule = schedule
        self.momentum = momentum
        self.nesterov = nesterov
        self.batch_size = batch_size
        self.reg = reg
        self.standardize = standardize
        self.augment = augment
        self.precision = precision
        self.random_state = random_state
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
