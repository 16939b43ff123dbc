"""Cases on a device: checked first, timed by events and by the clock, judged by the ceilings."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gpuclf.benchmark.cases import Case, Inputs, Work
from gpuclf.benchmark.devices import Device
from gpuclf.benchmark.implementations import (
    Call,
    Implementation,
    Unavailable,
    gpuclf_bytes,
    textbook_numpy,
)
from gpuclf.benchmark.timing import DisagreementError, compare, on_host

__all__ = ["DeviceRow", "Floor", "TimeLimitError", "run_device_case", "time_limit", "true_results"]

CHECKED_CALLS = 3  # of a training step, the third has all that momentum brings
WARM_UPS = 3
# Clocks and ceilings are good to a few percent, and a ceiling is itself a measurement.
SLACK = 1.1
LAST_CHECK_S = 1.0  # though the deadline has passed: without it, nothing counts

Result = TypeVar("Result")
Seconds = dict[str, list[float]]


class TimeLimitError(BaseException):
    """Something took too long. No `Exception`, so that no library takes it for one of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitError` in the block after that time (in the main thread; nowhere else)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise TimeLimitError(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass(frozen=True)
class Floor:
    """The time that no call can beat on this device.

    Attributes
    ----------
    seconds : float
    limited_by : {"memory", "arithmetic", "upload"}
    """

    seconds: float
    limited_by: str

    @classmethod
    def of(cls, work: Work, ceilings: dict[str, Any], uploaded_bytes: int = 0) -> Floor:
        """Divide the work by the fastest rates measured, whatever their precision."""
        rates = ceilings["bytes_per_s"]
        memory = max(rate for name, rate in rates.items() if not name.startswith("upload"))
        times = {
            "memory": work.bytes / memory,
            "arithmetic": work.operations / max(ceilings["operations_per_s"].values()),
        }
        if uploaded_bytes:
            upload = max(rate for name, rate in rates.items() if name.startswith("upload"))
            times["upload"] = uploaded_bytes / upload
        limit = max(times, key=lambda name: times[name])
        return cls(times[limit], limit)


@dataclass
class DeviceRow:
    """One implementation of one case.

    Attributes
    ----------
    operation, implementation, array_library, features, precision : str
    samples : int
    hidden_units : int or None
    uploads : bool
        X came from the host's memory in each call.
    status : {"timed", "unavailable", "wrong", "failed", "rejected"}
        "rejected": faster than the machine can be, so the timer must be wrong.
    reason : str or None
    errors : dict
        Relative differences from NumPy in float64.
    prepare_s : float or None
        Upload, compilation and the first calls.
    device_s, wall_s, queued_s : dict or None
        Median, p20, p80, n and samples, in seconds a call: by events around each call (a library
        with a queue of its own is waited for before the second event); by the clock until the
        result is there; by the clock for calls queued one after another, divided by their number.
    bytes, operations : int
    floor_s, share_of_floor : float
    limited_by : str
    """

    operation: str
    implementation: str
    array_library: str
    features: str
    precision: str
    samples: int
    hidden_units: int | None
    uploads: bool
    bytes: int
    operations: int
    floor_s: float
    limited_by: str
    status: str = "timed"
    reason: str | None = None
    errors: dict[str, float] = field(default_factory=dict)
    prepare_s: float | None = None
    device_s: dict[str, Any] | None = None
    wall_s: dict[str, Any] | None = None
    queued_s: dict[str, Any] | None = None
    share_of_floor: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def true_results(case: Case, inputs: Inputs) -> list[Any]:
    """Return what the first calls must give: textbook NumPy in float64; for k-NN, whole numbers.

    Parameters
    ----------
    case : Case
    inputs : Inputs
        In float64.
    """
    if case.operation.startswith("k-NN"):
        return [gpuclf_bytes(case, inputs)()]
    return _first_results(case, inputs, textbook_numpy(case, inputs))


def _first_results(case: Case, inputs: Inputs, call: Call) -> list[Any]:
    if not case.operation.endswith("step"):
        return [call()]
    # Beside the parameters themselves, what a step adds to them would be lost in any tolerance.
    before, results = inputs.params(case.hidden_units), []
    for _ in range(CHECKED_CALLS):
        loss, params = call()
        moved = {name: on_host(params[name]) - before[name] for name in before}
        results.append((on_host(loss), moved))
    return results


def run_device_case(
    case: Case,
    inputs: Inputs,
    truth: list[Any],
    implementations: Iterable[Implementation],
    device: Device,
    ceilings: dict[str, Any],
    advance: Callable[[str], None] = lambda _: None,
    time_budget_s: float = 15.0,
    prepare_limit_s: float = 30.0,
    seed: int = 0,
    slack: float = SLACK,
    compile_limit_s: float = 100.0,
    deadline_s: float = math.inf,
) -> list[DeviceRow]:
    """Check and time the implementations of one case on a device.

    Parameters
    ----------
    case : Case
    inputs : Inputs
    truth : list
        From :func:`true_results`.
    implementations : iterable of Implementation
    device : Device
    ceilings : dict
        From :func:`gpuclf.benchmark.devices.measure_ceilings`.
    advance : callable
        Called with what is done next.
    time_budget_s : float
        Turns end when the timing has taken this long, but each has a first.
    prepare_limit_s : float
        What takes longer until its first results is "unavailable".
    seed : int
        Draws the order in each round.
    slack : float
        A median that times this is still less than the floor is "rejected".
    compile_limit_s : float
        In the place of `prepare_limit_s` for what compiles; that is prepared last.
    deadline_s : float
        Return within this time, as far as calls can be interrupted: preparation ends
        `time_budget_s` before it, and what had no turn until then is "unavailable".

    Returns
    -------
    list of DeviceRow
        Nothing is raised: what went wrong is in the rows.
    """
    entered = time.perf_counter()

    def left() -> float:
        return deadline_s - (time.perf_counter() - entered)

    implementations = list(implementations)
    rows = {i.name: _new_row(case, inputs, i, ceilings) for i in implementations}
    calls: dict[str, tuple[Call, Callable[[Any], object] | None]] = {}
    for implementation in sorted(implementations, key=lambda i: i.compiles):
        row = rows[implementation.name]
        if implementation.uploads and not case.operation.startswith(("softmax", "svm")):
            row.status, row.reason = "unavailable", "uploads are timed with the linear models"
            continue
        advance(implementation.name)
        began = time.perf_counter()
        limit = compile_limit_s if implementation.compiles else prepare_limit_s
        prepared = _attempt(
            row,
            min(limit, left() - time_budget_s),
            partial(_prepared, case, inputs, implementation, truth, device, row),
        )
        row.prepare_s = time.perf_counter() - began
        if prepared is not None:
            calls[row.implementation] = (prepared, implementation.wait)
    advance("timing")

    def attempt(name: str, turn: Callable[[], Seconds]) -> Seconds | None:
        return _attempt(rows[name], min(prepare_limit_s, left()), turn, "while timed: ")

    samples = _time_shuffled(calls, case, device, time_budget_s, seed, attempt)
    for name, seconds in samples.items():
        row = rows[name]
        if not case.operation.endswith("step"):
            # Once more: copies of the samples and graphs have had their turns.
            checked = _attempt(
                row,
                min(prepare_limit_s, max(left(), LAST_CHECK_S)),
                partial(_compared, case, row, calls[name][0], truth),
                "after the timing: ",
            )
            if checked is None:
                continue
        _judge(row, seconds, slack)
    return list(rows.values())


def _attempt(
    row: DeviceRow, limit_s: float, action: Callable[[], Result], when: str = ""
) -> Result | None:
    """Return what the action returns; or None, and the row says why."""
    try:
        if limit_s <= 0:
            raise TimeLimitError("out of time")
        with time_limit(limit_s):
            return action()
    except (Unavailable, TimeLimitError) as reason:
        row.status, row.reason = "unavailable", f"{when}{reason}"
    except DisagreementError as error:
        row.status, row.reason = "wrong", f"{when}{error}"
    except Exception as error:
        row.status, row.reason = "failed", f"{when}{type(error).__name__}: {error}"
    return None


def _prepared(
    case: Case,
    inputs: Inputs,
    implementation: Implementation,
    truth: list[Any],
    device: Device,
    row: DeviceRow,
) -> Call:
    call = implementation.prepare(case, inputs)
    row.errors = _check(case, inputs, implementation, call, truth)
    for _ in range(WARM_UPS):
        call()
    device.synchronize()
    return call


def _compared(case: Case, row: DeviceRow, call: Call, truth: list[Any]) -> dict[str, float]:
    return compare(row.implementation, call(), "NumPy", truth[0], row.precision, case)


def _new_row(
    case: Case, inputs: Inputs, implementation: Implementation, ceilings: dict[str, Any]
) -> DeviceRow:
    work = case.work(inputs, implementation.features)
    width = 1 if implementation.features == "uint8" else inputs.dtype.itemsize
    uploaded = case.samples * inputs.bytes_.shape[1] * width if implementation.uploads else 0
    floor = Floor.of(work, ceilings, uploaded)
    return DeviceRow(
        operation=case.operation,
        implementation=implementation.name,
        array_library=implementation.array_library,
        features=implementation.features,
        precision=implementation.precision,
        samples=case.samples,
        hidden_units=case.hidden_units if case.operation.startswith("two-layer") else None,
        uploads=implementation.uploads,
        bytes=work.bytes,
        operations=work.operations,
        floor_s=floor.seconds,
        limited_by=floor.limited_by,
    )


def _check(
    case: Case, inputs: Inputs, implementation: Implementation, call: Call, truth: list[Any]
) -> dict[str, float]:
    worst: dict[str, float] = {}
    found = _first_results(case, inputs, call)
    for result, expected in zip(found, truth, strict=True):
        errors = compare(
            implementation.name, result, "NumPy", expected, implementation.precision, case
        )
        worst = {name: max(error, worst.get(name, 0.0)) for name, error in errors.items()}
    return worst


def _time_shuffled(
    calls: dict[str, tuple[Call, Callable[[Any], object] | None]],
    case: Case,
    device: Device,
    time_budget_s: float,
    seed: int,
    attempt: Callable[[str, Callable[[], Seconds]], Seconds | None],
) -> dict[str, Seconds]:
    """Return the seconds of each call; what fails in a turn is dropped, with what it holds."""
    samples: dict[str, Seconds] = {
        name: {"device_s": [], "wall_s": [], "queued_s": []} for name in calls
    }
    rng, began = np.random.default_rng(seed), time.perf_counter()
    for _ in range(case.rounds):
        for name in rng.permutation(list(calls)).tolist():
            if samples[name]["queued_s"] and time.perf_counter() - began > time_budget_s:
                continue
            turn = attempt(name, partial(_turn, *calls[name], case.calls_a_turn, device))
            if turn is None:
                del calls[name], samples[name]
                continue
            for kind, seconds in turn.items():
                samples[name][kind] += seconds
    return samples


def _turn(
    call: Call, wait: Callable[[Any], object] | None, n_calls: int, device: Device
) -> Seconds:
    """Time a few calls by events, then queued without a pause, then one by one by the clock."""
    finish = wait or (lambda _: None)
    device.synchronize()
    marks = []
    for _ in range(n_calls):
        start = device.mark()
        finish(call())
        marks.append((start, device.mark()))
    device.synchronize()
    events = [device.seconds_between(*pair) for pair in marks]
    began = time.perf_counter()
    for _ in range(n_calls):
        result = call()
    finish(result)
    device.synchronize()
    queued = (time.perf_counter() - began) / n_calls
    walls = []
    for _ in range(n_calls):
        began = time.perf_counter()
        finish(call())
        device.synchronize()
        walls.append(time.perf_counter() - began)
    return {"device_s": events, "wall_s": walls, "queued_s": [queued]}


def _judge(row: DeviceRow, samples: Seconds, slack: float) -> None:
    for kind, seconds in samples.items():
        p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
        summary = {"median": median, "p20": p20, "p80": p80, "n": len(seconds), "samples": seconds}
        setattr(row, kind, summary)
        if median * slack < row.floor_s:
            row.status = "rejected"
            row.reason = (
                f"{kind} {median:.3g} is less than the floor of {row.floor_s:.3g} s "
                f"({row.limited_by}): the timer did not wait, or the work was not done"
            )
    if row.status == "timed" and row.device_s is not None:
        row.share_of_floor = row.floor_s / row.device_s["median"]
