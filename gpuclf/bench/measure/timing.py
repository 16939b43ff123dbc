"""One timer for every implementation on every device: checked, interleaved, medians, judged."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gpuclf.bench.measure.agreement import DisagreementError, Reference, check_in_float64
from gpuclf.bench.measure.cases import LOSS, Case, Inputs
from gpuclf.bench.measure.devices import HOLD_S, Device, HostDevice
from gpuclf.bench.measure.implementations import Call, Implementation, Unavailable
from gpuclf.bench.measure.roofline import SLACK, reject_too_fast, set_floor

__all__ = ["Row", "TimeLimitError", "new_row", "run_case", "time_limit"]

WARM_UPS = 3
MIN_ROUNDS, STEADY_ROUNDS = 5, 10
SLOW_ROUNDS = 3  # of the loops: they take seconds, and nobody asks for their third digit
STEADY = 0.02  # of a median: what its uncertainty may be when rounds end early
LAST_CHECK_S = 1.0  # though the deadline has passed: without it, nothing counts
LONGEST_HOLD_S = 32e-3  # a call that takes longer to queue waits for the GPU, or is not fed by us
HOLD_TRIES = 3  # a busy machine may take this process away for as long as a hold

# What a row takes over as it is.
OF_CASE = ("group", "operation", "samples", "models", "hidden_units")
OF_IMPLEMENTATION = ("array_library", "device", "stored", "uploads")

Result = TypeVar("Result")
Seconds = dict[str, list[float]]


class TimeLimitError(BaseException):
    """Something took too long. No `Exception`, so that no library takes it for one of its own."""


class DishonestClockError(RuntimeError):
    """A device's clock would count the host's time as the device's."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitError` in the block after that time (in the main thread; nowhere else)."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or math.isinf(seconds):
        yield
        return

    def interrupt(*_: object) -> None:
        compiler: Any = sys.modules.get("numba.core.compiler_lock")
        if compiler is not None and compiler.global_compiler_lock.is_locked():
            # An exception in the middle of compiling would leave LLVM's lock held for ever.
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        raise TimeLimitError(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class Row:
    """One implementation of one case.

    Attributes
    ----------
    case, group, operation, implementation, array_library, device, stored, dtype, precision : str
        `case` is the title, the same for all rows that were timed by turns.
    samples, measured_samples : int
        Samples that the times stand for, and that a call ran on: fewer where `extrapolated`.
    extrapolated : bool
    classes, models : int
    hidden_units : int or None
    uploads : bool
        X came from the host's memory in each call.
    status : {"timed", "unavailable", "wrong", "failed", "rejected"}
        "rejected": faster than the machine can be, so the timer must be wrong.
    reason : str or None
    errors : dict
        Relative differences from the reference.
    cold_s : float or None
        Handing the arrays over, compilation and the first calls.
    transfer_s : float or None
        Handing the samples to a GPU once.
    median_s, p20_s, p80_s : float or None
        Seconds a call by the clock, until the result is there.
    times_s : list of float
        All of them, in the order measured: turns of `calls_a_turn` calls.
    device_s, queued_s : dict or None
        Median, p20, p80, n and samples, in seconds a call, of a GPU: by events around each call,
        which the GPU is held from until the host has queued all of it; by the clock for calls
        queued one after another, divided by their number. ``device_s["with_host"]`` says that some
        of the host's time is in it nevertheless: a call waits for the GPU in the middle, or its
        library has a queue of its own, and is waited for before the second event.
    host_s : dict or None
        The same of the host's part: until a call returns, which has then been queued.
    bytes, operations : int
        The least work.
    floor_s, share_of_floor : float or None
        Where ceilings were measured: the time that no call can beat, and how near this one is.
    limited_by : {"memory", "arithmetic", "upload"} or None
    """

    case: str
    group: str
    operation: str
    implementation: str
    array_library: str
    device: str
    stored: str
    dtype: str
    precision: str
    samples: int
    measured_samples: int
    extrapolated: bool
    classes: int
    models: int
    hidden_units: int | None
    uploads: bool
    bytes: int
    operations: int
    calls_a_turn: int
    floor_s: float | None = None
    limited_by: str | None = None
    share_of_floor: float | None = None
    status: str = "timed"
    reason: str | None = None
    errors: dict[str, float] = field(default_factory=dict)
    cold_s: float | None = None
    transfer_s: float | None = None
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    n: int = 0
    times_s: list[float] = field(default_factory=list)
    device_s: dict[str, Any] | None = None
    queued_s: dict[str, Any] | None = None
    host_s: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def run_case(
    case: Case,
    inputs: Inputs,
    implementations: Iterable[Implementation],
    *,
    devices: Mapping[str, Device] | None = None,
    ceilings: Mapping[str, dict[str, Any]] | None = None,
    reference: Reference | None = None,
    advance: Callable[[str], None] = lambda _: None,
    time_budget_s: float = 10.0,
    prepare_limit_s: float = math.inf,
    compile_limit_s: float = math.inf,
    deadline_s: float = math.inf,
    seed: int = 0,
    slack: float = SLACK,
) -> list[Row]:
    """Check and time the implementations of one case.

    Parameters
    ----------
    case : Case
    inputs : Inputs
    implementations : iterable of Implementation
    devices : dict of Device, optional
        By the name that implementations give: "cpu", "cuda". By default the CPU alone.
    ceilings : dict, optional
        For a device's name what :func:`gpuclf.bench.measure.roofline.measure_ceilings` found: then
        floors are known, and what is faster is rejected.
    reference : Reference, optional
        In float64. By default results are compared with the textbook's in the dtype of the inputs,
        and in float64 on a few samples.
    advance : callable
        Called with what is done next, for a progress bar.
    time_budget_s : float
        Rounds end when they have taken this long (on a CPU, when there are 5 as well), when there
        are 10 and the medians are steady, or when there are `case.rounds`.
    prepare_limit_s, compile_limit_s : float
        What takes longer until its first results is "unavailable"; the second is for what
        compiles, and that is prepared last.
    deadline_s : float
        Return within this time, as far as calls can be interrupted: preparation ends
        `time_budget_s` before it, and what had no turn until then is "unavailable".
    seed : int
        Draws the order in each round.
    slack : float
        A median that times this is still less than the floor is "rejected".

    Returns
    -------
    list of Row
        Nothing is raised: what went wrong is in the rows.
    """
    entered = time.perf_counter()

    def left() -> float:
        return deadline_s - (time.perf_counter() - entered)

    implementations, inputs = list(implementations), inputs.of(case)
    devices = {"cpu": HostDevice()} if devices is None else devices
    strict = reference is None
    reference = Reference(case, inputs) if reference is None else reference
    rows = {i.name: new_row(case, inputs, i, ceilings or {}) for i in implementations}
    runs: dict[str, Run] = {}
    for implementation in sorted(implementations, key=lambda i: i.compiles):
        row = rows[implementation.name]
        if implementation.uploads and (case.kind != LOSS or case.hidden_units):
            row.status, row.reason = "unavailable", "uploads are timed with the linear models"
            continue
        advance(f"{case.title}: {implementation.name}")
        limit = compile_limit_s if implementation.compiles else prepare_limit_s
        prepared = _attempt(
            row,
            min(limit, left() - time_budget_s),
            partial(_prepared, case, inputs, implementation, reference, devices, row, strict),
        )
        if prepared is not None:
            runs[implementation.name] = prepared
    advance(f"{case.title}: timing")

    def attempt(name: str, turn: Callable[[], Seconds]) -> Seconds | None:
        return _attempt(rows[name], min(prepare_limit_s, left()), turn, "while timed: ")

    for name, seconds in _time_shuffled(runs, case, time_budget_s, seed, attempt).items():
        # Once more: copies of the samples and graphs have had their turns.
        checked = _attempt(
            rows[name],
            min(prepare_limit_s, max(left(), LAST_CHECK_S)),
            partial(reference.check_again, runs[name].implementation, runs[name].call),
            "after the timing: ",
        )
        if checked is not None:
            _judge(rows[name], seconds, slack, with_host=not runs[name].hold_s)
    return list(rows.values())


@dataclass
class Run:
    """A call that is ready to be timed.

    Attributes
    ----------
    implementation : Implementation
    call : callable
    device : Device
    hold_s : float
        How long the device is held while the host queues the call; 0 where that is of no use.
    """

    implementation: Implementation
    call: Call
    device: Device
    hold_s: float = HOLD_S

    def __post_init__(self) -> None:
        if self.implementation.wait is not None:
            self.hold_s = 0.0  # its queue is not the one that would be held

    def finish(self, result: Any) -> None:
        """Return when the result is there."""
        if self.implementation.wait is not None:
            self.implementation.wait(result)


def _attempt(
    row: Row, limit_s: float, action: Callable[[], Result], when: str = ""
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
    except DishonestClockError as error:
        row.status, row.reason = "rejected", f"{when}{error}"
    except Exception as error:
        row.status, row.reason = "failed", f"{when}{type(error).__name__}: {error}"
    return None


def _prepared(
    case: Case,
    inputs: Inputs,
    implementation: Implementation,
    reference: Reference,
    devices: Mapping[str, Device],
    row: Row,
    strict: bool,
) -> Run:
    # Results of the reference are computed once for all, and are nobody's cold start.
    reference.results(row.measured_samples)
    began = time.perf_counter()
    run = Run(
        implementation,
        implementation.prepare(case, inputs),
        devices.get(implementation.device, devices["cpu"]),
    )
    row.errors = reference.check(implementation, run.call)
    row.cold_s = time.perf_counter() - began
    if strict:
        check_in_float64(case, inputs, implementation)
    if not (implementation.extrapolated or case.is_epoch):
        for _ in range(WARM_UPS if run.device.queues else min(1, WARM_UPS)):
            run.finish(run.call())
    run.device.synchronize()
    samples = inputs.bytes_.X if implementation.stored == "uint8" else inputs.floats
    row.transfer_s = run.device.transfer_seconds(samples[: case.samples])
    return run


def new_row(
    case: Case,
    inputs: Inputs,
    implementation: Implementation,
    ceilings: Mapping[str, dict[str, Any]],
) -> Row:
    """Return a row without times; with a floor where there are ceilings for its device."""
    work = case.work(inputs, implementation.stored)
    measured = case.measured_samples(implementation.loops)
    row = Row(
        case=case.title,
        implementation=implementation.name,
        dtype=inputs.dtype.name,
        precision=implementation.precision_on(inputs),
        measured_samples=measured,
        extrapolated=measured < case.samples,
        classes=inputs.n_classes,
        bytes=work.bytes,
        operations=work.operations,
        calls_a_turn=1 if implementation.extrapolated else case.calls_a_turn,
        **{name: getattr(case, name) for name in OF_CASE},
        **{name: getattr(implementation, name) for name in OF_IMPLEMENTATION},
    )
    set_floor(row, ceilings, inputs.n_features)
    return row


def _time_shuffled(
    runs: dict[str, Run],
    case: Case,
    time_budget_s: float,
    seed: int,
    attempt: Callable[[str, Callable[[], Seconds]], Seconds | None],
) -> dict[str, Seconds]:
    """Return the seconds of each call; what fails in a turn is dropped, with what it holds.

    Turns spread a noisy neighbour over all implementations instead of over one.
    """
    samples: dict[str, Seconds] = {name: {} for name in runs}
    rng, began = np.random.default_rng(seed), time.perf_counter()
    for round_number in range(case.rounds):
        spent = time.perf_counter() - began > time_budget_s
        for name in rng.permutation(list(samples)).tolist():
            run, taken = runs[name], samples[name]
            slow = run.implementation.extrapolated
            enough = 1 if run.device.queues else MIN_ROUNDS
            if slow and round_number >= SLOW_ROUNDS:
                continue
            spent = spent or time.perf_counter() - began > time_budget_s
            if spent and round_number >= (SLOW_ROUNDS if slow else enough):
                continue
            n_calls = 1 if slow else case.calls_a_turn
            turn = attempt(name, partial(_turn, run, n_calls))
            if turn is None:
                del samples[name]
                continue
            for kind, seconds in turn.items():
                taken.setdefault(kind, []).extend(seconds)
        fast = [samples[n] for n in samples if not runs[n].implementation.extrapolated]
        if _steady(fast, case.calls_a_turn):
            break
    return samples


def _steady(samples: list[Seconds], calls_a_turn: int) -> bool:
    """Whether more rounds would move no median by more than a little."""
    for taken in samples:
        turns = np.array(taken["wall_s"])
        n_turns = len(turns) // calls_a_turn
        if n_turns < STEADY_ROUNDS:
            return False
        turns = np.median(turns[: n_turns * calls_a_turn].reshape(n_turns, -1), axis=1)
        low, median, high = np.percentile(turns, [25, 50, 75])
        # Half of the median's 95 % interval: McGill, Tukey and Larsen (1978), "Variations of box
        # plots".
        if 1.57 * (high - low) / math.sqrt(n_turns) > STEADY * median:
            return False
    return True


def _turn(run: Run, n_calls: int) -> Seconds:
    """Time calls one by one by the clock; on a GPU also by events, and without a pause between."""
    call, device = run.call, run.device
    device.settle()
    found: Seconds = {}
    if device.queues:
        timed = [_by_marks(run) for _ in range(n_calls)]
        found["device_s"], found["host_s"] = ([*times] for times in zip(*timed, strict=True))
        began = time.perf_counter()
        for _ in range(n_calls):
            result = call()
        run.finish(result)
        device.synchronize()
        found["queued_s"] = [(time.perf_counter() - began) / n_calls]
    found["wall_s"] = []
    for _ in range(n_calls):
        device.synchronize()
        began = time.perf_counter()
        run.finish(call())
        device.synchronize()
        found["wall_s"].append(time.perf_counter() - began)
    return found


def _by_marks(run: Run) -> tuple[float, float]:
    """Return the device's time of a call, and the host's.

    Between two marks an idle device waits for the host, whose time would count as its own: it is
    held before the first one until all is queued. Where the host takes longer, once more.
    """
    device = run.device
    while True:
        start = _held_mark(run)
        began = time.perf_counter()
        result = run.call()
        host_s = time.perf_counter() - began
        is_late = run.hold_s > 0 and device.reached(start)
        run.finish(result)
        end = device.mark()
        device.synchronize()
        if not is_late:
            return device.seconds_between(start, end), host_s
        run.hold_s = 4 * run.hold_s if 4 * run.hold_s <= LONGEST_HOLD_S else 0.0


def _held_mark(run: Run) -> Any:
    """Return a mark that the device comes to when it is no longer held."""
    for _ in range(HOLD_TRIES):
        run.device.synchronize()
        if run.hold_s:
            run.device.hold(run.hold_s)
        start = run.device.mark()
        if not (run.hold_s and run.device.reached(start)):
            return start
    raise DishonestClockError(
        f"the device was not held for {run.hold_s:g} s: its time would have the host's in it"
    )


def _judge(row: Row, samples: Seconds, slack: float, with_host: bool) -> None:
    for kind, measured in samples.items():
        seconds = [t * row.samples / row.measured_samples for t in measured]
        p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
        if kind == "wall_s":
            row.median_s, row.p20_s, row.p80_s = median, p20, p80
            row.n, row.times_s = len(seconds), seconds
        else:
            found = {"median": median, "p20": p20, "p80": p80, "n": len(seconds)}
            found |= {"with_host": with_host} if kind == "device_s" else {}
            setattr(row, kind, found | {"samples": seconds})
    reject_too_fast(row, slack)
