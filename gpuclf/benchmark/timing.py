"""One timer for every implementation: checked first, warmed up, interleaved, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpuclf.backend import synchronize, to_host
from gpuclf.benchmark.cases import Case, Inputs
from gpuclf.benchmark.implementations import Implementation, Unavailable

__all__ = ["DisagreementError", "Row", "compare", "on_host", "run_case", "settle"]

# Loss and gradient of a full pass in float32 agree with each other to a few 1e-6.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "float64": 1e-10}
MIN_ROUNDS = 5
SETTLE_STEP_S, SETTLE_STEPS = 0.01, 30
SLOW_ROUNDS = 3  # of the naive loops: they take seconds, and nobody asks for their third digit
# Rounding can put a hidden unit's input on the other side of ReLU's kink: seen once in 50,000 x 50
# inputs, where it moved the gradient by 2e-4; in a mini-batch one sample counts for more. The
# strict comparison is that in float64.
# Of float32 distances, rounding decides between neighbours that are almost equally near.
OTHER_LABELS = {"float32": 0.01, "float64": 0.0}
KINK_TOLERANCES = {"float32": 2e-2, "tf32": 5e-2, "float64": 1e-10}


class DisagreementError(AssertionError):
    """An implementation computed something else than the others; its time would mean nothing."""


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes
    ----------
    operation, implementation, array_library, features, dtype : str
    samples : int
        Samples that the times stand for.
    measured_samples : int
        Samples that the call ran on; fewer where extrapolated.
    extrapolated : bool
        The times were scaled up from `measured_samples` to `samples`.
    median_s, p20_s, p80_s : float or None
        Seconds a call; None where it could not run.
    times_s : list of float
        All of them, in the order measured.
    unavailable : str or None
        Why it could not run.
    """

    operation: str
    implementation: str
    array_library: str
    features: str
    dtype: str
    samples: int
    measured_samples: int
    extrapolated: bool
    median_s: float | None
    p20_s: float | None
    p80_s: float | None
    times_s: list[float]
    unavailable: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def run_case(
    case: Case,
    inputs: Inputs,
    implementations: Iterable[Implementation],
    advance: Callable[[str], None] = lambda _: None,
    time_budget_s: float = 10.0,
) -> list[Row]:
    """Check and time the implementations of one case.

    Parameters
    ----------
    case : Case
    inputs : Inputs
    implementations : iterable of Implementation
    advance : callable
        Called with the name of what is done next, for a progress bar.
    time_budget_s : float
        Rounds end early when the case has 5 of them and has taken this long.

    Returns
    -------
    list of Row

    Raises
    ------
    DisagreementError
        If an implementation's loss or gradient differs from the first one's.
    """
    calls: dict[str, Callable[[], tuple[Any, Any]]] = {}
    reasons: dict[str, str] = {}
    listed = list(implementations)
    reference: dict[int, tuple[str, Any]] = {}
    for implementation in listed:
        advance(f"{case.title}: {implementation.name}")
        try:
            call = implementation.prepare(case, inputs)
        except Unavailable as reason:
            reasons[implementation.name] = str(reason)
            continue
        result = call()  # also the warm-up
        size = case.naive_samples if implementation.extrapolated else case.samples
        if size in reference:
            compare(implementation.name, result, *reference[size], inputs.dtype.name, case)
        else:
            reference[size] = (implementation.name, result)
        calls[implementation.name] = call
    _check_in_float64(case, inputs, [i for i in listed if i.name in calls])
    waits = {i.name: i.wait for i in listed if i.wait is not None}
    slow = {i.name for i in listed if i.extrapolated}
    times = _time_interleaved(calls, slow, waits, case, time_budget_s)
    return [_row(case, inputs, i, times.get(i.name), reasons.get(i.name)) for i in listed]


def _check_in_float64(case: Case, inputs: Inputs, implementations: list[Implementation]) -> None:
    """Compare all implementations, the loops too, strictly on a few samples."""
    n_samples = min(case.naive_samples, case.samples)
    few = Inputs(inputs.bytes_.X[:n_samples], inputs.y[:n_samples], "float64")
    small = replace(case, samples=n_samples, naive_samples=n_samples)
    reference: tuple[str, Any] | None = None
    for implementation in implementations:
        result = implementation.prepare(small, few)()
        if reference is None:
            reference = (implementation.name, result)
        else:
            compare(implementation.name, result, *reference, "float64", small)


def _time_interleaved(
    calls: dict[str, Callable[[], tuple[Any, Any]]],
    slow: set[str],
    waits: dict[str, Callable[[Any], object]],
    case: Case,
    time_budget_s: float,
) -> dict[str, list[float]]:
    # Interleaving spreads a noisy neighbour over all implementations instead of over one.
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for round_number in range(case.rounds):
        for name, call in calls.items():
            if name in slow and round_number >= SLOW_ROUNDS:
                continue
            settle()
            for _ in range(1 if name in slow else case.calls_a_turn):
                synchronize()
                start = time.perf_counter()
                result = call()
                if name in waits:
                    waits[name](result)
                else:
                    synchronize(result[0] if hasattr(result[0], "dtype") else None)
                times[name].append(time.perf_counter() - start)
        if round_number + 1 >= MIN_ROUNDS and time.perf_counter() - began > time_budget_s:
            break
    return times


def settle() -> None:
    """Wait until no thread of this process is busy.

    After a threaded product BLAS's threads keep a core busy for a while, waiting for the next one:
    that is time of the implementation before, not of the one that is timed.
    """
    for _ in range(SETTLE_STEPS):
        before = time.process_time()
        time.sleep(SETTLE_STEP_S)
        if time.process_time() - before < SETTLE_STEP_S / 10:
            return


def _row(
    case: Case,
    inputs: Inputs,
    implementation: Implementation,
    measured: list[float] | None,
    reason: str | None,
) -> Row:
    size = case.naive_samples if implementation.extrapolated else case.samples
    size = min(size, case.samples)
    scaled = [t * case.samples / size for t in measured or []]
    p20, median, p80 = np.percentile(scaled, [20, 50, 80]).tolist() if scaled else [None] * 3
    return Row(
        operation=case.operation,
        implementation=implementation.name,
        array_library=implementation.array_library,
        features=implementation.features,
        dtype=inputs.dtype.name,
        samples=case.samples,
        measured_samples=size,
        extrapolated=implementation.extrapolated and size < case.samples,
        median_s=median,
        p20_s=p20,
        p80_s=p80,
        times_s=scaled,
        unavailable=reason,
    )


def compare(
    name: str, result: Any, reference_name: str, reference: Any, precision: str, case: Case
) -> dict[str, float]:
    """Compare a result with that of another implementation.

    Parameters
    ----------
    name, reference_name : str
        The implementations, for the message.
    result, reference : tuple
        Loss and gradients, or 0 and the labels of a prediction.
    precision : {"float32", "tf32", "float64"}
        Decides what rounding explains.
    case : Case

    Returns
    -------
    dict
        The relative difference of "loss" and "gradient", or the share of other "labels".

    Raises
    ------
    DisagreementError
        If a difference is more than rounding.
    """
    if case.operation.startswith("k-NN"):
        found, expected = _flat(result[1]), _flat(reference[1])
        others = float(np.mean(found != expected)) if found.shape == expected.shape else 1.0
        if not others <= OTHER_LABELS[precision]:
            raise DisagreementError(
                f"{name} and {reference_name} disagree on {others:.1%} of the labels in {precision}"
            )
        return {"labels": others}
    errors = {}
    for what, found, expected in zip(
        ("loss", "gradient"), map(_flat, result), map(_flat, reference), strict=True
    ):
        # Rounded to ten bits, many margins of the hinge change sides too.
        kinks = ("two-layer", "svm") if precision == "tf32" else "two-layer"
        has_kinks = what == "gradient" and case.operation.startswith(kinks)
        tolerance = (KINK_TOLERANCES if has_kinks else TOLERANCES)[precision]
        if found.shape != expected.shape:
            raise DisagreementError(
                f"{name} and {reference_name} disagree on the {what}: {found.size} numbers against "
                f"{expected.size}"
            )
        error = float(np.linalg.norm(found - expected)) / max(
            float(np.linalg.norm(expected)), 1e-30
        )
        if not error <= tolerance:
            raise DisagreementError(
                f"{name} and {reference_name} disagree on the {what}: relative difference "
                f"{error:.2e}, allowed {tolerance:.0e} in {precision}"
            )
        errors[what] = error
    return errors


def _flat(value: Any) -> np.ndarray:
    parts = [value[key] for key in sorted(value)] if isinstance(value, dict) else [value]
    return np.concatenate([np.ravel(on_host(part)).astype(np.float64) for part in parts])


def on_host(value: Any) -> np.ndarray:
    """Return a NumPy array of any library's result, JAX's too."""
    if hasattr(value, "block_until_ready"):
        return np.asarray(value)
    return np.asarray(to_host(value))
