"""Who is measured: each implementation is one short function that prepares a call.

It receives the case and its inputs and returns the call to be timed, or raises `Unavailable` with
the reason. The call returns (loss, gradients), which are compared before anything is timed. On a
device it may return before they are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import gpuclf
from gpuclf import textbook
from gpuclf.bench.measure import probes, pure_python
from gpuclf.bench.measure.cases import (
    EPOCH,
    LEARNING_RATE,
    LOSS,
    MOMENTUM,
    N_NEIGHBORS,
    REG,
    STEP,
    Case,
    Inputs,
)
from gpuclf.devices.backends import Backend, get_backend
from gpuclf.models import Model
from gpuclf.samples.walk import row_slices
from gpuclf.training import epoch_runner, momentum_step

__all__ = ["IMPLEMENTATIONS", "Implementation", "Unavailable", "device_implementations"]

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
    stored : {"float", "uint8"}
        What X is stored as.
    prepare : callable
        ``prepare(case, inputs) -> call``.
    loops : int
        The call runs on so many times `case.naive_samples`, and its time is scaled; 0: on all.
    precision : {"float32", "tf32"}
        Of the products, where X and W are float32.
    uploads : bool
        The call takes X from the host's memory.
    wait : callable, optional
        ``wait(result)`` returns when the result is there; for a library with a queue of its own.
    compiles : bool
        The first calls compile for long.
    device : {"cpu", "cuda"}
        Whose clock the calls are timed by.
    """

    name: str
    array_library: str
    stored: str
    prepare: Callable[[Case, Inputs], Call]
    loops: int = 0
    precision: str = "float32"
    uploads: bool = False
    wait: Callable[[Any], object] | None = None
    compiles: bool = False
    device: str = "cpu"

    @property
    def extrapolated(self) -> bool:
        """Whether the call may run on fewer samples than the case has."""
        return self.loops > 0

    def precision_on(self, inputs: Inputs) -> str:
        """Return the precision of the products: that of the inputs, if they are float64."""
        return "float64" if inputs.dtype == np.float64 else self.precision


def loops(twin_of: Callable[[Model], Any], n_times: int, case: Case, inputs: Inputs) -> Call:
    """Call Python loops on a subset; `twin_of` is None for a model that has none."""
    if case.model is None or case.kind != LOSS:
        raise Unavailable("the loops would take hours")
    if case.models > 1:
        raise Unavailable("the loops know one model")
    loss = twin_of(case.model)
    if loss is None:
        raise Unavailable("nobody has written its loops")
    rows = slice(case.measured_samples(n_times))
    X, y, params = inputs.floats[rows], inputs.y[rows], inputs.start(case)
    return lambda: loss(params, X, y, REG)


def textbook_numpy(case: Case, inputs: Inputs, backend: str | Backend = "numpy") -> Call:
    """Call the course's vectorised version."""
    backend = get_backend(backend)
    if case.is_probe:
        if backend.name != "numpy":
            raise Unavailable("the textbook's probes are NumPy's and SciPy's")
        return probes.textbook_probe(case, inputs)
    put, xp = partial(gpuclf.to_device, backend=backend), backend.xp
    if case.model is None:
        train, labels = put(inputs.float_pixels), put(inputs.y)
        queries, predict = train[: case.samples], textbook.knn_predict
        return lambda: predicted(predict(train, labels, queries, N_NEIGHBORS, case.kind, xp))
    if case.model.textbook is None:
        raise Unavailable("nobody has written its textbook version")
    objective = partial(case.model.textbook, xp=xp)
    batches = itertools.cycle(copied(inputs.floats[: case.samples], inputs, put))
    y, params = put(inputs.y[: case.samples]), put(inputs.start(case))
    if case.models > 1:  # as the textbook has it, one after another
        return lambda: _of_each(objective, params["W"], next(batches), y)
    if case.kind == LOSS:
        return lambda: objective(params, next(batches), y, REG)
    refuse_other_kinds(case)
    velocity = {name: xp.zeros_like(value) for name, value in params.items()}

    def step(X: Any, y: Any) -> Any:
        loss, grads = objective(params, X, y, REG)
        textbook.nesterov_step(params, velocity, grads, LEARNING_RATE, MOMENTUM)
        return loss

    if not case.is_epoch:
        return lambda: (step(next(batches), y), params)
    orders = inputs.orders(case.samples)

    def epoch() -> tuple[Any, Any]:
        order, X = put(next(orders)), next(batches)
        rows = (order[part] for part in row_slices(case.samples, case.batch_size))
        return xp.stack([step(X[batch], y[batch]) for batch in rows]), params

    return epoch


def refuse_other_kinds(case: Case) -> None:
    """Raise for a kind that `KINDS` has and nobody has written here: it is no training step."""
    if case.model is not None and case.kind not in (LOSS, STEP, EPOCH):
        raise Unavailable(f"nobody has written its {case.kind}")


def _of_each(objective: Callable[..., Any], models: Any, X: Any, y: Any) -> tuple[Any, Any]:
    losses, gradients = zip(*(objective({"W": W}, X, y, REG) for W in models), strict=True)
    return list(losses), list(gradients)


def predicted(labels: Any) -> tuple[float, Any]:
    """Return labels in the place of the gradient; a prediction has no loss."""
    return 0.0, labels


def copied(samples: Any, inputs: Inputs, put: Callable[[Any], Any]) -> list[Any]:
    """Return copies to be taken by turns, so that no call finds its samples in the cache."""
    return [put(samples) for _ in range(inputs.copies(getattr(samples, "X", samples).nbytes))]


def _on_cupy(prepare: Callable[..., Call]) -> Callable[..., Call]:
    """Let a preparation put its arrays on the GPU, or tell why there is none."""

    def prepare_on_cupy(case: Case, inputs: Inputs, **options: Any) -> Call:
        try:
            backend = get_backend("cupy")
        except gpuclf.BackendUnavailableError as error:
            raise Unavailable(str(error)) from None
        return prepare(case, inputs, backend, **options)

    return prepare_on_cupy


def _gpuclf_call(
    case: Case,
    inputs: Inputs,
    backend: str | Backend = "numpy",
    *,
    stored: str,
    precision: str = "float32",
    uploads: str = "",
) -> Call:
    """Call this library on floats, or on uint8 pixels that are standardised on the fly."""
    put = partial(gpuclf.to_device, backend=backend)
    decline_tf32_neighbors(case, precision)
    if case.is_probe:
        if stored == "uint8":
            raise Unavailable("embeddings are floats")
        return probes.gpuclf_probe(case, inputs, put)
    model = case.model
    if model is None:
        # Neighbours are searched among the pixels as they are.
        samples = inputs.bytes_.X if stored == "uint8" else inputs.float_pixels
        classifier = gpuclf.KNeighborsClassifier(N_NEIGHBORS, metric=case.kind)
        classifier.fit(put(samples), put(inputs.y))
        queries = put(samples[: case.samples])
        return lambda: predicted(classifier.predict(queries))
    samples = (inputs.bytes_ if stored == "uint8" else inputs.floats)[: case.samples]
    batches: Iterator[Any]
    if uploads == "before":
        batches = map(put, itertools.repeat(samples))
    elif uploads == "streamed":
        passing = gpuclf.Streamed(samples.X, backend)
        batches = itertools.repeat(gpuclf.Standardized(passing, samples.mean, samples.scale))
    else:
        batches = itertools.cycle(copied(samples, inputs, put))
    y, params = put(inputs.y[: case.samples]), put(inputs.start(case))
    if case.kind == LOSS:
        return lambda: model.loss(params, next(batches), y, REG, precision=precision)
    refuse_other_kinds(case)
    velocity = {name: 0 * value for name, value in params.items()}
    if case.is_epoch:
        orders = inputs.orders(case.samples)
        rates = [LEARNING_RATE] * len(row_slices(case.samples, case.batch_size))
        run = epoch_runner(
            model, params, velocity, next(batches), y, batch_size=case.batch_size, reg=REG,
            momentum=MOMENTUM, nesterov=True, precision=precision,
        )  # fmt: skip
        return lambda: (run(next(orders), rates), params)

    def step() -> tuple[Any, Any]:
        loss, grads = model.objective(params, next(batches), y, REG, precision=precision)
        for name, value in params.items():
            momentum_step(value, grads[name], velocity[name], LEARNING_RATE, MOMENTUM, True)
        return loss, params

    return step


gpuclf_floats = partial(_gpuclf_call, stored="float")
gpuclf_bytes = partial(_gpuclf_call, stored="uint8")


def decline_tf32_neighbors(case: Case, precision: str) -> None:
    """Raise `Unavailable` for distances in TF32."""
    if precision == "tf32" and case.is_prediction:
        raise Unavailable("distances in TF32 would give other neighbours")


def device_implementations(device: str = "cuda") -> list[Implementation]:
    """Return what a GPU's acceptance times of this library and of plain CuPy.

    Parameters
    ----------
    device : {"cuda", "cpu"}
        "cpu" puts NumPy in CuPy's place: for a rehearsal without a GPU.
    """
    library = {"cuda": "cupy", "cpu": "numpy"}[device]
    prepared: list[Callable[..., Call]] = [textbook_numpy, gpuclf_floats, gpuclf_bytes]
    textbook_, floats, bytes_ = map(_on_cupy, prepared) if device == "cuda" else prepared

    def listed(name: str, prepare: Callable[..., Call], **options: Any) -> Implementation:
        return Implementation(
            name,
            library,
            "uint8" if prepare is bytes_ else "float",
            partial(prepare, **options),
            precision=options.get("precision", "float32"),
            uploads="uploads" in options,
            device=device,
        )

    return [
        listed("plain CuPy", textbook_),
        listed("gpuclf", floats),
        listed("gpuclf TF32", floats, precision="tf32"),
        listed("gpuclf uint8", bytes_),
        listed("gpuclf +upload", floats, uploads="before"),
        listed("gpuclf uint8 +upload", bytes_, uploads="before"),
        listed("gpuclf uint8 streamed", bytes_, uploads="streamed"),
    ]


def _loops(name: str, twin_of: Callable[[Model], Any], n_times: int) -> Implementation:
    return Implementation(name, "python", "float", partial(loops, twin_of, n_times), loops=n_times)


IMPLEMENTATIONS = [
    _loops("pure Python loops", pure_python.twin_of, 1),
    _loops("naive loops", lambda model: model.naive, 16),
    Implementation("textbook NumPy", "numpy", "float", textbook_numpy),
    Implementation("gpuclf on NumPy", "numpy", "float", gpuclf_floats),
    Implementation("gpuclf on NumPy, uint8", "numpy", "uint8", gpuclf_bytes),
    Implementation("textbook CuPy", "cupy", "float", _on_cupy(textbook_numpy), device="cuda"),
    Implementation("gpuclf on CuPy", "cupy", "float", _on_cupy(gpuclf_floats), device="cuda"),
    Implementation("gpuclf on CuPy, uint8", "cupy", "uint8", _on_cupy(gpuclf_bytes), device="cuda"),
]
