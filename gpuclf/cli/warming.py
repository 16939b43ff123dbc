"""What numba compiles at a first call, compiled ahead (``gpuclf info --warm-up``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
    pixels = np.random.default_rng(0).integers(0, 256, (n_samples, 3072), dtype=np.uint8)
    y = np.arange(n_samples) % 10
    once: dict[str, Any] = {"max_iter": 1, "random_state": 0}
    for dtype in (np.uint8, np.float32, np.float64):
        X = pixels.astype(dtype)
        for model in (gpuclf.SoftmaxClassifier(**once), gpuclf.TwoLayerNetClassifier(**once)):
            fitted = model.fit
            yield (
                f"{type(model).__name__} on {X.dtype}",
                lambda fit=fitted, X=X: fit(X, y).predict(X),  # type: ignore[misc]
            )
        fleet = [gpuclf.SoftmaxClassifier(**once, reg=reg) for reg in (0.1, 0.2)]
        yield (
            f"fleets on {X.dtype}",
            lambda fleet=fleet, X=X: GradientClassifier.fit_fleet(fleet, X, y),  # type: ignore[misc]
        )
    for metric in ("l2", "l1"):
        neighbors = gpuclf.KNeighborsClassifier(metric=metric).fit(pixels, y)
        yield f"neighbours by {metric}", lambda model=neighbors: model.predict(pixels)  # type: ignore[misc]
