"""What numba compiles at a first call, compiled ahead (``gpuclf info --warm-up``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

from gpuclf.cli import output
from gpuclf.files import format_seconds

__all__ = ["compile_ahead"]


def compile_ahead() -> None:
    """Train and apply each model once, on samples just large enough to be worth compiling for."""
    from gpuclf.kernels.building.machine_code import numba_is_usable

    if not numba_is_usable():
        output.say("nothing to compile without numba: pip install numba")
        return
    start = time.perf_counter()
    with output.progress() as bar:
        task = bar.add_task("compiling")
        for name, call in _calls():
            bar.update(task, description=f"compiling for {name}")
            call()
    output.say(f"compiled, or found as compiled before, in {format_seconds(_since(start))}")


def _since(start: float) -> float:
    return time.perf_counter() - start


def _calls() -> Iterator[tuple[str, Callable[[], object]]]:
    import numpy as np

    import gpuclf
    from gpuclf.estimators.gradient_classifier import GradientClassifier

    n_samples = 600
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n_samples, 3072), dtype=np.uint8)
    y = np.arange(n_samples) % 10
    # Of few samples, "auto" batches would be too small to be compiled for.
    once: dict[str, Any] = {"max_iter": 1, "batch_size": 200, "random_state": 0}
    for dtype in (np.uint8, np.float32, np.float64):
        X = pixels.astype(dtype)
        for model in (gpuclf.SoftmaxClassifier(**once), gpuclf.TwoLayerNetClassifier(**once)):
            yield f"{type(model).__name__} on {X.dtype}", partial(_fit_and_predict, model, X, y)
        fleet = [gpuclf.SoftmaxClassifier(**once, reg=reg) for reg in (0.1, 0.2)]
        yield f"fleets on {X.dtype}", partial(GradientClassifier.fit_fleet, fleet, X, y)
        yield f"full batches of {X.dtype}", partial(_full_batches, X.dtype)
    for metric in ("l2", "l1"):
        yield f"neighbours of bytes by {metric}", _neighbors(metric, pixels, y)
    # The first stage of a search finds the neighbours of those; of groups far apart, the last one.
    near = rng.standard_normal(pixels.shape)
    far = near + 1e4 * np.eye(10, pixels.shape[1])[y]
    for metric, floats in product(("l2", "l1", "cosine"), ("float16", "float32", "float64")):
        for X in (near, far):
            yield f"neighbours of {floats} by {metric}", _neighbors(metric, X.astype(floats), y)


def _fit_and_predict(model: Any, X: Any, y: Any) -> object:
    return model.fit(X, y).predict(X)


def _full_batches(dtype: Any) -> None:
    """Pass over so many samples as one model, few and several are multiplied together with."""
    import numpy as np

    from gpuclf.models import SOFTMAX
    from gpuclf.samples.standardized import Standardized

    # So many bytes that processors which have dot products of them take those.
    n_samples = 100_000 if dtype == np.uint8 else 10_000
    X, y = np.ones((n_samples, 256), dtype), np.arange(n_samples) % 10
    floats = np.float64 if dtype == np.float64 else np.float32
    for n_models in ((), (2,), (8,)):
        W = np.zeros((*n_models, 256, 10), floats)
        b = np.zeros((*n_models, 10), floats)
        for samples in (X, Standardized(X, np.zeros(256), np.ones(256))):
            SOFTMAX.objective({"W": W, "b": b}, samples, y, np.ones(n_models))


def _neighbors(metric: str, X: Any, y: Any) -> Callable[[], object]:
    from gpuclf import KNeighborsClassifier

    return partial(_fit_and_predict, KNeighborsClassifier(metric=metric), X, y)
