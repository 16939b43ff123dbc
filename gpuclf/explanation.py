"""What of a sample spoke for and against a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.datasets.rows import as_rows
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.losses import one_hot
from gpuclf.samples.standardized import Standardized

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What each feature adds to the lead of one class over another.

    Attributes
    ----------
    label, against
        The two classes.
    lead : float
        The score of `label` less that of `against`.
    contributions : ndarray of float64, shape (D,)
        Above 0 what speaks for `label`, below 0 what speaks against it.
    offset : float
        What no feature adds, the biases: ``lead == contributions.sum() + offset``.
    x : ndarray of shape (D,)
        The sample, as it came.
    image_shape : (channels, height, width) or None
        How the features lie in the image, where that is known.
    """

    label: Any
    against: Any
    lead: float
    contributions: npt.NDArray[np.float64]
    offset: float
    x: npt.NDArray[Any]
    image_shape: tuple[int, int, int] | None

    def __repr__(self) -> str:
        return (
            f"Explanation({self.label!r} leads {self.against!r} by {self.lead:.4g}, "
            f"{len(self.contributions):,} features)"
        )


@on_its_device
def explain(model: Any, x: Any, label: Any = None, against: Any = None) -> Explanation:
    r"""Say what of a sample spoke for a class, and what spoke against it.

    .. math:: c_d = z_d \, \frac{\partial (s_i - s_j)}{\partial z_d}, \qquad
              s_i - s_j = \sum_d c_d + \text{offset}

    with the scores s of the classes i (`label`) and j (`against`), and the sample z as the model
    sees it: standardised, so that a feature at its mean adds nothing. Of a linear classifier the
    gradient is the difference of two templates, :math:`W_{di} - W_{dj}`.

    Parameters
    ----------
    model : SoftmaxClassifier, LinearSVMClassifier or TwoLayerNetClassifier
        Fitted.
    x : array of shape (D,) or (1, D), or one image
        An image has two or three axes, as in :func:`gpuclf.datasets.to_rows`; numbers as those
        that the model was trained on.
    label : optional
        The class to speak for; by default the predicted one.
    against : optional
        The class it is compared with; by default the one of the highest score among the others.

    Returns
    -------
    Explanation
        With NumPy arrays; :func:`gpuclf.plots.plot_explanation` draws it.

    Raises
    ------
    TypeError
        If the classifier is not trained by gradients.
    ValueError
        If x is not one sample, or a label is none of the classes.

    Notes
    -----
    The scores of all these models are linear around almost every sample (ReLUs switch only where
    their input is 0), which is why the sum is exact: the offset is what biases add. What a feature
    "adds" is a statement about the model, not about the world: pixels that hang together share
    what one of them could add alone. Sources: Simonyan, Vedaldi and Zisserman, "Deep inside
    convolutional networks" (2013), for the gradient; Shrikumar, Greenside, Shcherbina and Kundaje,
    "Not just a black box" (2016), for its product with the input.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = np.array([[0.0, 1], [1, 0], [9, 1], [10, 0]]), ["low", "low", "high", "high"]
    >>> model = gpuclf.SoftmaxClassifier(random_state=0).fit(X, y)
    >>> found = gpuclf.explain(model, X[3])
    >>> found.label, found.against, int(found.contributions.argmax())
    ('high', 'low', 0)
    """
    if not isinstance(model, GradientClassifier):
        raise TypeError(
            f"{type(model).__name__} has no gradient to explain by: pass a SoftmaxClassifier, "
            "LinearSVMClassifier or TwoLayerNetClassifier (of an ensemble, one of its estimators_; "
            "of nearest neighbours, look at those that kneighbors finds)"
        )
    row = _one_row(model, x)
    scores = np.asarray(to_host(model.class_scores(row)), np.float64)[0]
    first = int(scores.argmax()) if label is None else _number(model, label, "label")
    others = np.delete(np.arange(len(scores)), first)
    if not len(others):
        raise ValueError("the model has one class only: there is nothing to speak against")
    second = int(others[scores[others].argmax()])
    if against is not None:
        second = _number(model, against, "against")
    if second == first:
        raise ValueError(f"label and against must differ, got {against!r} twice")

    xp = array_namespace(row)
    params = to_device(model.params_, like=row)
    dtype = next(iter(params.values())).dtype
    if model.mean_ is None:
        z = xp.astype(row, dtype)
    else:
        z = Standardized(row, model.mean_, model.scale_).to_array(dtype)

    def lead(scores: Array, labels: Array, _: Any) -> tuple[Array, Array]:
        one, other = (one_hot(k, int(scores.shape[-1]), dtype=dtype) for k in (labels, against_))
        return xp.sum(scores * (one - other)), one - other

    labels, against_ = (to_device(np.array([k]), like=row) for k in (first, second))
    gradient = replace(model.model, data_loss=lead).sample_gradients(params, z, labels)
    contributions = np.asarray(to_host(z), np.float64)[0] * np.asarray(to_host(gradient))[0]
    difference = float(scores[first] - scores[second])
    names = model.classes_.tolist()
    return Explanation(
        *(names[first], names[second], difference, contributions),
        offset=difference - float(contributions.sum()),
        x=np.asarray(to_host(row))[0],
        image_shape=_image_shape(model, x),
    )


def _one_row(model: Any, x: Any) -> Array:
    """Return the sample as an array of shape (1, D)."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    shape, n_features = tuple(map(int, x.shape)), model.n_features_in_
    if shape in ((n_features,), (1, n_features)):
        return array_namespace(x).reshape(x, (1, n_features))
    if len(shape) in (2, 3) and np.prod(shape) == n_features:
        return as_rows(x[None, ...], _layout(model, x), "x")[0]
    raise ValueError(
        f"x must be one sample, of shape ({n_features},) or an image of {n_features} values, got "
        f"{shape}; of several samples, explain one at a time: explain(model, X[0])"
    )


def _image_shape(model: Any, x: Any) -> tuple[int, int, int] | None:
    shape = tuple(np.shape(x))
    if len(shape) in (2, 3) and shape != (1, model.n_features_in_):
        return as_rows(x[None, ...], _layout(model, x), "x")[1]
    return getattr(model, "image_shape_", None)


def _layout(model: Any, x: Any) -> str | None:
    """Return the layout that the model was trained on, where a batch of x can have it."""
    layout = getattr(model, "layout_", None)
    return layout if layout is not None and len(layout) == x.ndim + 1 else None


def _number(model: Any, label: Any, name: str) -> int:
    found = np.flatnonzero(model.classes_ == label)
    if len(found) != 1:
        raise ValueError(f"{name}={label!r} is none of the classes {model.classes_.tolist()}")
    return int(found[0])
