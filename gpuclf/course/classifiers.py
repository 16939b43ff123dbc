"""The assignment's classifiers, and its losses in loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from gpuclf import naive
from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.models.distances import pairwise_distances
from gpuclf.models.linear import SOFTMAX, SVM
from gpuclf.models.model import Model, Params
from gpuclf.models.neighbors import knn_vote
from gpuclf.models.two_layer import TWO_LAYER
from gpuclf.validation import check_labels, check_params, check_penalty, check_samples

__all__ = [
    "KNearestNeighbor",
    "LinearClassifier",
    "LinearSVM",
    "Softmax",
    "TwoLayerNet",
    "softmax_loss_naive",
    "svm_loss_naive",
]

REPORT_EVERY = 100  # steps


def svm_loss_naive(W: Array, X: Array, y: Array, reg: float) -> tuple[float, Array]:
    """Compute :func:`gpuclf.naive.svm_loss_naive`; on the host, wherever the arrays are."""
    return _in_loops(naive.svm_loss_naive, W, X, y, reg)


def softmax_loss_naive(W: Array, X: Array, y: Array, reg: float) -> tuple[float, Array]:
    """Compute :func:`gpuclf.naive.softmax_loss_naive`; on the host, wherever the arrays are."""
    return _in_loops(naive.softmax_loss_naive, W, X, y, reg)


def _in_loops(function: Any, W: Array, X: Array, y: Array, reg: float) -> tuple[float, Array]:
    array_namespace(W=W, X=X, y=y)
    loss, dW = function(to_host(W), to_host(X), to_host(y), reg)
    return loss, to_device(dW, like=W)


class LinearClassifier:
    """A linear classifier without a bias, trained by plain SGD; use one of its two subclasses.

    Attributes
    ----------
    W : array of shape (D, C), or None before training
        Training goes on from one that is there.

    Notes
    -----
    The bias is the course's trick: a column of ones in X. :class:`gpuclf.SoftmaxClassifier` and
    :class:`gpuclf.LinearSVMClassifier` have a bias, standardisation and momentum of their own.
    """

    _model: ClassVar[Model | None] = None

    def __init__(self) -> None:
        self.W: Array = None

    @on_its_device
    def train(
        self,
        X: Array,
        y: Array,
        learning_rate: float = 1e-3,
        reg: float = 1e-5,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> list[float]:
        """Take `num_iters` steps; return the loss of each, before it was taken.

        Parameters
        ----------
        X : array of shape (N, D)
        y : integer array of shape (N,), values in 0..C-1
            C is one more than the largest.
        learning_rate, reg : float
        num_iters, batch_size : int
            A step sees `batch_size` samples, drawn with replacement.
        verbose : bool
            Print the loss every 100 steps.

        Raises
        ------
        TypeError, ValueError
            As :func:`gpuclf.softmax_loss_vectorized`.

        Warns
        -----
        RuntimeWarning
            If the training has diverged.
        """
        _check_rows(X, self.W)
        if self.W is None:
            y = check_labels(y, X, n_classes := _count_classes(y))
            W = 0.001 * np.random.randn(int(X.shape[1]), n_classes)  # noqa: NPY002
            self.W = to_device(W, like=X)
        losses = []
        for X_batch, y_batch in _batches(X, y, num_iters, batch_size):
            loss, dW = self.loss(X_batch, y_batch, reg)
            self.W = _stepped(self.W, dW, learning_rate)
            losses.append(loss)
            _report(verbose, losses, num_iters)
        return _as_floats(losses, learning_rate, reg)

    @on_its_device
    def predict(self, X: Array) -> Array:
        """Return the class with the largest score, (N,), of samples (N, D)."""
        W, model = self._trained()
        _check_rows(X, W)
        return _largest(_scores(model, {"W": W}, X))

    @on_its_device
    def loss(self, X_batch: Array, y_batch: Array, reg: float) -> tuple[Array, Array]:
        """Return the loss and its gradient (D, C) of a mini-batch; NaN where W has diverged."""
        W, model = self._trained()
        _check_rows(X_batch, W)
        loss, grads = _objective(model, {"W": W}, X_batch, y_batch, reg)
        return loss, grads["W"]

    def _trained(self) -> tuple[Array, Model]:
        if self._model is None:
            raise NotImplementedError(
                "LinearClassifier has no loss of its own; use LinearSVM() or Softmax()"
            )
        if self.W is None:
            raise _not_trained(self)
        return self.W, self._model


class LinearSVM(LinearClassifier):
    """A :class:`LinearClassifier` with the loss of :func:`gpuclf.svm_loss_vectorized`."""

    _model = SVM


class Softmax(LinearClassifier):
    """A :class:`LinearClassifier` with the loss of :func:`gpuclf.softmax_loss_vectorized`."""

    _model = SOFTMAX


class TwoLayerNet:
    """Affine, ReLU, affine, softmax: the course's net, trained by plain SGD.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        D features, H hidden units, C classes.
    std : float
        Standard deviation of the weights at the start; biases start at 0.

    Attributes
    ----------
    params : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), float64. They move to the device of the samples
        that `loss`, `train` or `predict` is called with.

    See Also
    --------
    gpuclf.TwoLayerNetClassifier : with standardisation, momentum and dropout.

    Examples
    --------
    >>> net = TwoLayerNet(input_size=2, hidden_size=3, output_size=10)
    >>> loss, grads = net.loss(np.ones((4, 2)), np.arange(4))
    >>> round(float(loss), 3), sorted(grads)  # log(10)
    (2.303, ['W1', 'W2', 'b1', 'b2'])
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, std: float = 1e-4
    ) -> None:
        self.params: Params = {
            "W1": std * np.random.randn(input_size, hidden_size),  # noqa: NPY002
            "b1": np.zeros(hidden_size),
            "W2": std * np.random.randn(hidden_size, output_size),  # noqa: NPY002
            "b2": np.zeros(output_size),
        }

    @on_its_device
    def loss(self, X: Array, y: Array = None, reg: float = 0.0) -> Any:
        """Return the scores (N, C) of samples (N, D); with labels, the loss and its gradients."""
        _check_rows(X, self.params["W1"])
        self.params.update(to_device(self.params, like=X))
        if y is None:
            return _scores(TWO_LAYER, self.params, X)
        return _objective(TWO_LAYER, self.params, X, y, reg)

    @on_its_device
    def train(
        self,
        X: Array,
        y: Array,
        X_val: Array,
        y_val: Array,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 0.95,
        reg: float = 5e-6,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> dict[str, list[float]]:
        """Take `num_iters` steps.

        Parameters
        ----------
        X, y, learning_rate, reg, num_iters, batch_size, verbose
            As for :meth:`LinearClassifier.train`, and so are errors and warning.
        X_val, y_val : array
            The accuracy on them, and on the step's own mini-batch, is taken after the first step
            of each epoch.
        learning_rate_decay : float
            The learning rate is multiplied by it then.

        Returns
        -------
        dict
            ``loss_history``, one a step; ``train_acc_history`` and ``val_acc_history``, one an
            epoch.
        """
        _check_rows(X, self.params["W1"])
        _check_rows(X_val, self.params["W1"], "X_val")
        n_classes = int(self.params["b2"].shape[0])
        y, y_val = check_labels(y, X, n_classes), check_labels(y_val, X_val, n_classes)
        n_steps = max(int(X.shape[0]) // batch_size, 1)
        rate = learning_rate
        losses: list[Array] = []
        accuracies: dict[str, list[float]] = {"train_acc_history": [], "val_acc_history": []}
        for X_batch, y_batch in _batches(X, y, num_iters, batch_size):
            loss, grads = self.loss(X_batch, y_batch, reg)
            for name, gradient in grads.items():
                self.params[name] = _stepped(self.params[name], gradient, rate)
            if len(losses) % n_steps == 0:
                for name, samples, labels in zip(
                    accuracies, (X_batch, X_val), (y_batch, y_val), strict=True
                ):
                    right = to_host(self.predict(samples)) == to_host(labels)
                    accuracies[name].append(float(np.mean(right)))
                rate *= learning_rate_decay
            losses.append(loss)
            _report(verbose, losses, num_iters)
        return {"loss_history": _as_floats(losses, learning_rate, reg), **accuracies}

    @on_its_device
    def predict(self, X: Array) -> Array:
        """Return the class with the largest score, (N,), of samples (N, D)."""
        return _largest(self.loss(X))


class KNearestNeighbor:
    """k nearest neighbours by L2 distance, from the whole matrix of distances.

    See Also
    --------
    gpuclf.KNeighborsClassifier : the same labels from bytes, in bounded memory.

    Examples
    --------
    >>> classifier = KNearestNeighbor()
    >>> classifier.train(np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1]))
    >>> classifier.predict(np.array([[4.0], [0.4]]))
    array([1, 0])
    """

    X_train: Array = None
    y_train: Array = None

    def train(self, X: Array, y: Array) -> None:
        """Keep the samples (N, D) and their integer labels (N,)."""
        _check_rows(X)
        # With as many classes as the largest label says, only its kind and number are looked at.
        self.X_train, self.y_train = X, check_labels(y, X, _count_classes(y))

    def predict(self, X: Array, k: int = 1, num_loops: int = 0) -> Array:
        """Return the labels (N,) of samples (N, D); `num_loops` chooses one of the three ways."""
        if num_loops not in (0, 1, 2):
            raise ValueError(f"num_loops must be 0, 1 or 2, got {num_loops!r}")
        ways = ("no_loops", "one_loop", "two_loops")
        dists = getattr(self, f"compute_distances_{ways[num_loops]}")(X)
        return self.predict_labels(dists, k)

    def compute_distances_two_loops(self, X: Array) -> Array:
        """Return the distances (N, N_train) by loops over both; on the host, wherever X is."""
        return self._in_loops(naive.pairwise_distances_two_loops, X)

    def compute_distances_one_loop(self, X: Array) -> Array:
        """Return the distances (N, N_train) by a loop over X; on the host, wherever X is."""
        return self._in_loops(naive.pairwise_distances_one_loop, X)

    def compute_distances_no_loops(self, X: Array) -> Array:
        """Return the distances (N, N_train): see :func:`gpuclf.pairwise_distances`."""
        return pairwise_distances(X, self._trained_on(X))

    def predict_labels(self, dists: Array, k: int = 1) -> Array:
        """Return the labels (N,) that most of the k nearest have: see :func:`gpuclf.knn_vote`.

        Of equal distances (N, N_train) the earlier training sample is nearer; a tied vote goes to
        the smaller label.
        """
        if self.y_train is None:
            raise _not_trained(self)
        return knn_vote(dists, self.y_train, k)

    def _in_loops(self, function: Callable[..., Array], X: Array) -> Array:
        return to_device(function(to_host(X), to_host(self._trained_on(X))), like=X)

    def _trained_on(self, X: Array) -> Array:
        if self.X_train is None:
            raise _not_trained(self)
        array_namespace(X=X, X_train=self.X_train)
        _check_rows(X, self.X_train.T)
        return self.X_train


def _check_rows(X: Array, W: Array = None, name: str = "X") -> None:
    """Check samples, also against parameters (D, ...), with the course's remedies."""
    if getattr(X, "ndim", 2) != 2:
        raise ValueError(
            f"{name} must have shape (N, D), one sample a row, got {tuple(X.shape)}; flatten "
            f"images with {name}.reshape({name}.shape[0], -1), one sample with "
            f"{name}.reshape(1, -1)"
        )
    check_samples(X, name)
    if W is None or W.shape[0] == X.shape[1]:
        return
    remedy = ""
    if W.shape[0] == X.shape[1] + 1:
        remedy = (
            "; if training had a column of ones (the bias trick), append it here too: "
            f"numpy.hstack([{name}, numpy.ones(({name}.shape[0], 1))])"
        )
    elif W.shape[0] == X.shape[1] - 1:
        remedy = (
            "; if the last column is the ones of the bias trick, which training had not, leave it "
            f"out: {name}[:, :-1]"
        )
    raise ValueError(
        f"{name} must have {W.shape[0]} features, as in training, got {X.shape[1]}{remedy}"
    )


def _not_trained(classifier: Any) -> RuntimeError:
    name = type(classifier).__name__
    return RuntimeError(f"this {name} is not trained yet; call its train(X, y) first")


def _count_classes(y: Array) -> int:
    labels = np.asarray(y if isinstance(y, list | tuple | range) else to_host(y))
    # Of anything but integers, check_labels says what is wrong.
    return int(labels.max(initial=0)) + 1 if labels.dtype.kind in "iu" else 1


def _objective(model: Model, params: Params, X: Array, y: Array, reg: float) -> tuple[Array, Any]:
    """Compute :meth:`Model.loss`, but return NaN where it would raise: training goes on."""
    params, n_classes = check_params(params, model.axes, X, "float32", model.optional)
    y = check_labels(y, X, n_classes)
    check_penalty(reg)
    with np.errstate(over="ignore", invalid="ignore"):
        return model.objective(params, X, y, reg)


def _scores(model: Model, params: Params, X: Array) -> Array:
    params, _ = check_params(params, model.axes, X, "float32", model.optional)
    with np.errstate(over="ignore", invalid="ignore"):
        return model.scores(params, X, precision="float32")


def _largest(scores: Array) -> Array:
    return array_namespace(scores).argmax(scores, axis=1)


def _batches(X: Array, y: Array, num_iters: int, batch_size: int) -> Iterator[tuple[Array, Array]]:
    xp = array_namespace(X=X, y=y)
    for _ in range(num_iters):
        drawn = np.random.choice(int(X.shape[0]), batch_size)  # noqa: NPY002
        rows = to_device(drawn, like=X)
        # numpy.take copies all of X first where it is not contiguous, as X[:, :-1] is not.
        yield X[rows] if xp is np else xp.take(X, rows, axis=0), xp.take(y, rows)


def _stepped(value: Array, gradient: Array, rate: float) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # _as_floats says it better
        return value - float(rate) * gradient


def _report(verbose: bool, losses: list[Array], num_iters: int) -> None:
    i = len(losses) - 1
    if verbose and i % REPORT_EVERY == 0:
        print(f"iteration {i} / {num_iters}: loss {float(to_host(losses[i])):f}")


def _as_floats(losses: list[Array], learning_rate: float, reg: float) -> list[float]:
    """Bring the losses to the host, once; warn if the training has diverged."""
    if not losses:
        return []
    found = np.asarray(to_host(array_namespace(losses[0]).stack(losses)))
    if not np.isfinite(found[-1]):
        step = int(np.argmin(np.isfinite(found)))
        warnings.warn(
            f"training diverged: the loss was {found[step]} at step {step} of {len(found)}. "
            f"learning_rate={learning_rate:g} is too high for these samples and reg={reg:g}; try a "
            "tenth of it, and subtract the mean image from X",
            RuntimeWarning,
            stacklevel=3,
        )
    return [float(loss) for loss in found]
