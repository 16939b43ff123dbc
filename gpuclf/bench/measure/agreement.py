"""Whether implementations compute the same: nothing is timed before that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpuclf.arrays import to_host
from gpuclf.bench.measure.cases import Case, Inputs
from gpuclf.bench.measure.implementations import Call, Implementation, gpuclf_bytes, textbook_numpy

__all__ = [
    "DisagreementError",
    "Reference",
    "arrays_of",
    "check_in_float64",
    "compare",
    "on_host",
    "share_of_allowed",
]

# Loss and gradient of a full pass in float32 agree with each other to a few 1e-6.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "float64": 1e-10}
# Rounding can put a hidden unit's input on the other side of ReLU's kink: seen once in 50,000 x 50
# inputs, where it moved the gradient by 2e-4; in a mini-batch one sample counts for more. The
# strict comparison is that in float64.
KINK_TOLERANCES = {"float32": 2e-2, "tf32": 5e-2, "float64": 1e-10}
# Of float32 distances, rounding decides between neighbours that are almost equally near.
OTHER_LABELS = {"float32": 0.01, "float64": 0.0}
PROBES_OTHER_LABELS = 0.02  # other line searches are elsewhere after as many iterations
ERRORS_ALLOWED = 2.0  # times that of the shared body in the same precision
# In the last place of the largest value. Against float64 itself nothing is measured: other orders
# of summation must fit in here.
UNITS_ALLOWED = {"float32": 16, "float64": 4096}
TRAINING_UNITS_ALLOWED = 2048  # every step of a training adds its own
CHECKED_CALLS = 3  # of a training step, the third has all that momentum brings


class DisagreementError(AssertionError):
    """An implementation computed something else than the others; its time would mean nothing."""


class Reference:
    """What implementations of a case must give: textbook NumPy; for k-NN, whole numbers.

    Parameters
    ----------
    case : Case
    inputs : Inputs
        What the implementations run on.
    precise : Inputs, optional
        What the reference is computed on: the same in float64. By default `inputs`.
    """

    def __init__(self, case: Case, inputs: Inputs, precise: Inputs | None = None) -> None:
        self.case, self.inputs = case, inputs
        self._precise = inputs if precise is None else precise
        self._known: dict[int, list[Any]] = {}

    def results(self, n_samples: int) -> list[Any]:
        """Return the results of the first calls on that many samples, computed when first asked.

        Parameters
        ----------
        n_samples : int
        """
        if n_samples not in self._known:
            case = replace(self.case, samples=n_samples)
            by_pixels = case.is_prediction and not case.is_probe
            prepare = gpuclf_bytes if by_pixels else textbook_numpy
            call = prepare(case, self._precise)
            self._known[n_samples] = first_results(case, self._precise, call)
        return self._known[n_samples]

    def check(self, implementation: Implementation, call: Call) -> dict[str, float]:
        """Compare an implementation's first calls; return the worst relative differences.

        Raises
        ------
        DisagreementError
            If a difference is more than rounding.
        """
        return self._compared(implementation, first_results(self.case, self.inputs, call))

    def check_again(self, implementation: Implementation, call: Call) -> dict[str, float]:
        """Compare one more call, after others: of a step, whose parameters have moved, nothing."""
        if self.case.is_training:
            return {}
        return self._compared(implementation, [call()])

    def _compared(self, implementation: Implementation, results: list[Any]) -> dict[str, float]:
        expected = self.results(self.case.measured_samples(implementation.loops))
        precision = implementation.precision_on(self.inputs)
        errors = [
            compare(implementation.name, result, wanted, precision, self.case)
            for result, wanted in zip(results, expected, strict=True)
        ]
        return {what: max(error[what] for error in errors) for what in errors[0]}


def first_results(case: Case, inputs: Inputs, call: Call) -> list[Any]:
    """Return the first result; of a training step what the first three add to the parameters."""
    if not case.is_training:
        return [call()]
    # Beside the parameters themselves, what a step adds to them would be lost in any tolerance.
    before, results = inputs.start(case), []
    for _ in range(CHECKED_CALLS):
        loss, params = call()
        moved = {name: on_host(params[name]) - before[name] for name in before}
        results.append((on_host(loss), moved))
    return results


def check_in_float64(case: Case, inputs: Inputs, implementation: Implementation) -> None:
    """Compare an implementation, the loops too, strictly on a few samples.

    Raises
    ------
    DisagreementError
        If a difference is more than rounding in float64.
    """
    if implementation.precision == "tf32":
        return  # the same as in float32 would be called
    n_samples = min(case.naive_samples, case.samples)
    few = inputs.first(n_samples, "float64")
    small = replace(case, samples=n_samples, naive_samples=n_samples)
    expected = first_results(small, few, textbook_numpy(small, few))
    found = first_results(small, few, implementation.prepare(small, few))
    for result, wanted in zip(found, expected, strict=True):
        compare(implementation.name, result, wanted, "float64", small)


def compare(name: str, result: Any, reference: Any, precision: str, case: Case) -> dict[str, float]:
    """Compare a result with the reference's.

    Parameters
    ----------
    name : str
        The implementation, for the message.
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
    if case.model is None:
        found, expected = _flat(result[1]), _flat(reference[1])
        others = float(np.mean(found != expected)) if found.shape == expected.shape else 1.0
        if not others <= (PROBES_OTHER_LABELS if case.is_probe else OTHER_LABELS[precision]):
            raise DisagreementError(
                f"{name} and the reference disagree on {others:.1%} of the labels in {precision}"
            )
        return {"labels": others}
    errors = {}
    for what, found, expected in zip(
        ("loss", "gradient"), map(_flat, result), map(_flat, reference), strict=True
    ):
        # Rounded to ten bits, many margins of the hinge change sides too.
        jumps = precision == "tf32" and not case.model.is_smooth
        has_kinks = what == "gradient" and (case.hidden_units is not None or jumps)
        tolerance = (KINK_TOLERANCES if has_kinks else TOLERANCES)[precision]
        if found.shape != expected.shape:
            raise DisagreementError(
                f"{name} and the reference disagree on the {what}: {found.size} numbers against "
                f"{expected.size}"
            )
        error = float(np.linalg.norm(found - expected)) / max(
            float(np.linalg.norm(expected)), 1e-30
        )
        if not error <= tolerance:
            raise DisagreementError(
                f"{name} and the reference disagree on the {what}: relative difference "
                f"{error:.2e}, allowed {tolerance:.0e} in {precision}"
            )
        errors[what] = error
    return errors


def share_of_allowed(found: Any, unfused: Any, truth: Any, trained: bool = False) -> float:
    """Return the worst error as a share of what is allowed, array by array.

    Allowed is twice the error that the shared body makes on NumPy, and a few units in the last
    place of the largest value.

    Parameters
    ----------
    found, unfused, truth : nested arrays
        Of the device; of NumPy in the same precision; of NumPy in float64.
    trained : bool
        They come from many steps, each of which rounds.

    Raises
    ------
    DisagreementError
        If shapes, dtypes or whole numbers differ, or a value is not finite.
    """
    of_unfused, worst = arrays_of(unfused), 0.0
    # The loss is float64, but computed from scores in the precision of W.
    precision = "float32" if any(u.dtype == np.float32 for u in of_unfused) else "float64"
    units = TRAINING_UNITS_ALLOWED if trained else UNITS_ALLOWED[precision]
    for f, u, t in zip(arrays_of(found), of_unfused, arrays_of(truth), strict=True):
        if f.shape != t.shape or f.dtype != u.dtype:
            raise DisagreementError(f"{f.dtype}{f.shape} instead of {u.dtype}{t.shape}")
        if f.dtype.kind != "f":
            if not np.array_equal(f, u):
                raise DisagreementError(f"{np.mean(f != u):.1%} of the whole numbers differ")
        elif not np.isfinite(f).all():
            raise DisagreementError("not all values are finite")
        else:
            unit = np.finfo(precision).eps * np.max(np.abs(t), initial=1e-30)
            allowed = ERRORS_ALLOWED * np.max(np.abs(u - t), initial=0) + units * unit
            worst = max(worst, float(np.max(np.abs(f - t), initial=0) / allowed))
    return worst


def _flat(value: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part).astype(np.float64) for part in arrays_of(value)])


def arrays_of(result: Any) -> list[np.ndarray]:
    """Return the arrays of a nested result as NumPy arrays, those of a dict by their names."""
    if isinstance(result, dict):
        result = [result[key] for key in sorted(result)]
    if isinstance(result, list | tuple):
        return [array for part in result for array in arrays_of(part)]
    return [on_host(result)]


def on_host(value: Any) -> np.ndarray:
    """Return a NumPy array of any library's result, JAX's too."""
    if hasattr(value, "block_until_ready"):
        return np.asarray(value)
    return np.asarray(to_host(value))
