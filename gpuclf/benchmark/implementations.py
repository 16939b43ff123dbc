"""Who is measured: each implementation is one short function that prepares a call.

It receives the case and its inputs and returns the call to be timed, or raises `Unavailable` with
the reason. The call returns (loss, gradients), which are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuclf
from gpuclf.backend import Backend, get_backend
from gpuclf.benchmark import textbook
from gpuclf.benchmark.cases import LEARNING_RATE, MOMENTUM, N_NEIGHBORS, REG, Case, Inputs
from gpuclf.training import momentum_step
from gpuclf.two_layer import two_layer_objective

__all__ = ["IMPLEMENTATIONS", "Implementation", "Unavailable"]

Call = Callable[[], tuple[Any, Any]]


class Unavailable(Exception):  # noqa: N818 - not an error: the row then carries the reason
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """How one implementation is named and prepared.

    Attributes
    ----------
    name : str
    array_library : {"python", "numpy", "cupy"}
    features : {"float", "uint8"}
        What X is stored as.
    prepare : callable
        ``prepare(case, inputs) -> call``.
    extrapolated : bool
        The call runs on `case.naive_samples` only.
    """

    name: str
    array_library: str
    features: str
    prepare: Callable[[Case, Inputs], Call]
    extrapolated: bool = False


NAIVE: dict[str, Callable[..., Any]] = {
    "softmax loss+gradient": gpuclf.softmax_loss_naive,
    "svm loss+gradient": gpuclf.svm_loss_naive,
    "two-layer loss+gradient": gpuclf.two_layer_loss_naive,
}
TEXTBOOK: dict[str, Callable[..., Any]] = {
    "softmax loss+gradient": textbook.softmax_loss,
    "svm loss+gradient": textbook.svm_loss,
    "two-layer loss+gradient": textbook.two_layer_loss,
}
GPUCLF: dict[str, Callable[..., Any]] = {
    "softmax loss+gradient": gpuclf.softmax_loss_vectorized,
    "svm loss+gradient": gpuclf.svm_loss_vectorized,
    "two-layer loss+gradient": gpuclf.two_layer_loss,
}


def _params(case: Case, inputs: Inputs) -> Any:
    if case.operation.startswith("two-layer"):
        return inputs.params(case.hidden_units)
    return inputs.W


def naive_loops(case: Case, inputs: Inputs) -> Call:
    """Call Python loops over samples, classes and features, on a subset."""
    if case.operation not in NAIVE:
        raise Unavailable("the loops would take hours")
    rows = slice(min(case.naive_samples, case.samples))
    X, y = inputs.floats[rows], inputs.y[rows]
    loss, params = NAIVE[case.operation], _params(case, inputs)
    return lambda: loss(params, X, y, REG)


def textbook_numpy(case: Case, inputs: Inputs) -> Call:
    """Call the course's vectorised version."""
    y = inputs.y[: case.samples]
    if case.operation.startswith("k-NN"):
        train, metric = inputs.float_pixels, case.operation.split()[1]
        queries = train[: case.samples]
        return lambda: predicted(
            textbook.knn_predict(train, inputs.y, queries, N_NEIGHBORS, metric), y
        )
    X = inputs.floats[: case.samples]
    params = _params(case, inputs)
    if case.operation == "two-layer training step":
        velocity = {name: np.zeros_like(value) for name, value in params.items()}

        def step() -> tuple[Any, Any]:
            loss, grads = textbook.two_layer_loss(params, X, y, REG)
            textbook.nesterov_step(params, velocity, grads, LEARNING_RATE, MOMENTUM)
            return loss, params

        return step
    loss = TEXTBOOK[case.operation]
    return lambda: loss(params, X, y, REG)


def predicted(labels: Any, y: Any) -> tuple[float, Any]:
    """Return accuracy and labels, in the places of loss and gradient."""
    return float(np.mean(labels == y)), labels


def gpuclf_floats(case: Case, inputs: Inputs, backend: str | Backend = "numpy") -> Call:
    """Call this library on samples written out as floats."""
    return _gpuclf_call(case, inputs, inputs.floats, backend)


def gpuclf_bytes(case: Case, inputs: Inputs, backend: str | Backend = "numpy") -> Call:
    """Call this library on uint8 pixels that are standardised on the fly."""
    return _gpuclf_call(case, inputs, inputs.bytes_, backend)


def gpuclf_cupy_floats(case: Case, inputs: Inputs) -> Call:
    """Call this library on the GPU; upload is not part of the call."""
    return gpuclf_floats(case, inputs, _cupy())


def gpuclf_cupy_bytes(case: Case, inputs: Inputs) -> Call:
    """Call this library on the GPU, on uint8 pixels; upload is not part of the call."""
    return gpuclf_bytes(case, inputs, _cupy())


def _cupy() -> Backend:
    try:
        return get_backend("cupy")
    except gpuclf.BackendUnavailableError as error:
        raise Unavailable(str(error)) from None


def _gpuclf_call(case: Case, inputs: Inputs, samples: Any, backend: str | Backend) -> Call:
    y_host = inputs.y[: case.samples]
    if case.operation.startswith("k-NN"):
        # Neighbours are searched among the pixels as they are.
        samples = inputs.bytes_.X if samples is inputs.bytes_ else inputs.float_pixels
        classifier = gpuclf.KNeighborsClassifier(N_NEIGHBORS, metric=case.operation.split()[1])
        classifier.fit(gpuclf.to_device(samples, backend), gpuclf.to_device(inputs.y, backend))
        queries = gpuclf.to_device(samples[: case.samples], backend)
        return lambda: predicted(gpuclf.to_host(classifier.predict(queries)), y_host)
    X, y = gpuclf.to_device(samples[: case.samples], backend), gpuclf.to_device(y_host, backend)
    params = gpuclf.to_device(_params(case, inputs), backend)
    if case.operation == "two-layer training step":
        velocity = {name: 0 * value for name, value in params.items()}

        def step() -> tuple[Any, Any]:
            loss, grads = two_layer_objective(params, X, y, REG)
            for name, value in params.items():
                momentum_step(value, grads[name], velocity[name], LEARNING_RATE, MOMENTUM, True)
            return loss, params

        return step
    loss = GPUCLF[case.operation]
    return lambda: loss(params, X, y, REG)


IMPLEMENTATIONS = [
    Implementation("naive loops", "python", "float", naive_loops, extrapolated=True),
    Implementation("textbook NumPy", "numpy", "float", textbook_numpy),
    Implementation("gpuclf on NumPy", "numpy", "float", gpuclf_floats),
    Implementation("gpuclf on NumPy, uint8", "numpy", "uint8", gpuclf_bytes),
    Implementation("gpuclf on CuPy", "cupy", "float", gpuclf_cupy_floats),
    Implementation("gpuclf on CuPy, uint8", "cupy", "uint8", gpuclf_cupy_bytes),
]
