"""The linear models as scikit-learn classifiers: softmax regression and the SVM."""

from __future__ import annotations

from dataclasses import dataclass

from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.estimators.surface import LinearCoefficients
from gpuclf.models import SOFTMAX, SVM

__all__ = ["LinearSVMClassifier", "SoftmaxClassifier"]


@dataclass(kw_only=True, eq=False, repr=False)
class SoftmaxClassifier(LinearCoefficients, GradientClassifier):
    r"""Softmax regression (multinomial logistic regression), on the array library of the samples.

    Minimises :math:`\frac{1}{N} \sum_i -\log p_{i y_i} + \lambda \sum W^2`; the bias is not
    penalised.

    Parameters
    ----------
    solver : {"sgd", "lbfgs"}, default "sgd"
        Mini-batch SGD, or SciPy's L-BFGS on all samples at once. `max_iter` counts its iterations
        then, and it warns when it stops there.
    learning_rate : float or "auto", default "auto"
        The largest learning rate, if the schedule varies it. "auto" is 0.003, and more for
        standardised samples of fewer features than 3,072, times
        :math:`(3072 / D)^{3/4}`.
    reg : float, default 1e-3
        The penalty :math:`\lambda`; a source that writes ``0.5 * reg`` means half of this one.
    tol : float, default 1e-5
        L-BFGS stops when no component of the gradient is larger.
    **others : as for GradientClassifier

    Attributes
    ----------
    params_ : dict
        W (D, C) and b (C,), in the array library of the training samples; they act on the
        standardised features.
    coef_, intercept_ : array of shape (C, D) and (C,); for two classes (1, D) and (1,)
        The same for the features as they come: ``X @ coef_.T + intercept_`` is the decision
        function.
    **others : as for GradientClassifier

    See Also
    --------
    gpuclf.softmax_loss_vectorized : the objective.

    Notes
    -----
    :class:`sklearn.linear_model.LogisticRegression` minimises a sum over the samples,
    :math:`\sum_i w_i \ell_i + \frac{1}{2C} \sum \mathrm{coef}^2`, with weights :math:`w_i` (1
    without any, times those of the classes). Here it is their mean, the sum divided by
    :math:`\Omega = \sum_i w_i`: its coefficients are those of ``solver="lbfgs",
    standardize=False`` with :math:`\lambda = 1 / (2 C \Omega)`. Of two classes it penalises one
    vector, the difference of the two here, which at the minimum are plus and minus half of it:
    there :math:`\lambda = 1 / (C \Omega)`. With ``standardize=True`` the penalty is on the
    coefficients of standardised features, as in a pipeline after StandardScaler. `tol` is on the
    gradient of the mean.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> SoftmaxClassifier(random_state=0).fit(X, y).predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """

    solver: str = "sgd"
    learning_rate: float | str = "auto"
    reg: float = 1e-3
    tol: float = 1e-5

    model = SOFTMAX


@dataclass(kw_only=True, eq=False, repr=False)
class LinearSVMClassifier(LinearCoefficients, GradientClassifier):
    r"""Linear multiclass SVM, on the array library of the samples.

    Minimises :math:`\frac{1}{N} \sum_i \sum_{j \ne y_i} \max(0, s_{ij} - s_{i y_i} + 1)
    + \lambda \sum W^2` (Weston and Watkins) by mini-batch SGD; the bias is not penalised.

    Parameters
    ----------
    learning_rate : float or "auto", default "auto"
        The largest learning rate, if the schedule varies it. "auto" is 0.0003, and more for
        standardised samples of fewer features than 3,072, times
        :math:`(3072 / D)^{3/4}`.
    reg : float, default 0.03
        The penalty :math:`\lambda`; a source that writes ``0.5 * reg`` means half of this one.
    **others : as for GradientClassifier

    Attributes
    ----------
    params_ : dict
        W (D, C) and b (C,), in the array library of the training samples; they act on the
        standardised features.
    coef_, intercept_ : array of shape (C, D) and (C,); for two classes (1, D) and (1,)
        The same for the features as they come: ``X @ coef_.T + intercept_`` is the decision
        function.
    **others : as for GradientClassifier

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

    learning_rate: float | str = "auto"
    reg: float = 0.03

    model = SVM
    auto_rate = 0.0003
