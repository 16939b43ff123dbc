"""The one timer: what is checked, timed, judged, and what becomes of what goes wrong."""

import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_cases import CEILINGS, OF_NET, OF_SOFTMAX, OF_SVM, STEPS, make_inputs, tiny_case

from gpuclf.bench import (
    Implementation,
    Reference,
    Unavailable,
    device_implementations,
    device_peers,
)
from gpuclf.bench.measure import roofline, timing
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.measure.implementations import gpuclf_floats
from gpuclf.bench.measure.roofline import Floor
from gpuclf.bench.measure.timing import TimeLimitError, time_limit


class Queued(HostDevice):
    """The CPU, timed in all the ways that a GPU is."""

    queues = True

    def settle(self):
        pass


class MadeUpTime:
    """A clock that only sleeping moves, and limits that interrupt sleep."""

    def __init__(self):
        self.now, self.limits = 0.0, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        ends, limit = self.limits[-1]
        if self.now + seconds > ends:
            self.now = ends
            raise TimeLimitError(f"took longer than {limit:g} s")
        self.now += seconds

    @contextmanager
    def limit(self, seconds):
        self.limits.append((self.now + seconds, seconds))
        yield
        self.limits.pop()


@pytest.fixture
def made_up(monkeypatch):
    clock = MadeUpTime()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "time_limit", clock.limit)
    return clock


def run_case(case, implementations, device=None, **options):
    inputs = make_inputs()
    options = {"ceilings": {"cpu": CEILINGS}} | options
    reference = Reference(case, inputs, make_inputs("float64"))
    where = {"cpu": device or Queued()}
    return timing.run_case(
        case, inputs, implementations, devices=where, reference=reference, **options
    )


class QueueDevice(Queued):
    """A device whose calls take a second each, later: only waiting for them moves the clock."""

    def __init__(self, waits=True):
        super().__init__()
        self.now = self.end_of_queue = 0.0
        self.waits = waits

    def perf_counter(self):
        return self.now

    def queue(self, seconds):
        self.end_of_queue = max(self.now, self.end_of_queue) + seconds

    def synchronize(self):
        if self.waits:
            self.now = max(self.now, self.end_of_queue)

    def mark(self):
        return max(self.now, self.end_of_queue) if self.waits else self.now

    def hold(self, seconds):
        self.queue(seconds)

    def reached(self, mark):
        return self.waits and self.now >= mark


def queued(device, implementation, seconds=1.0, host_s=1e-9):
    """Take `host_s` to launch a kernel, and half as much after it."""

    def prepare(case, inputs):
        call = implementation.prepare(case, inputs)

        def queue_call():
            device.now += host_s
            device.queue(seconds)
            device.now += host_s / 2
            return call()

        return queue_call

    return replace(implementation, prepare=prepare)


PLAIN, FLOATS, TF32, BYTES = device_implementations("cpu")[:4]


@pytest.fixture
def queue_device(monkeypatch):
    def make(waits):
        device = QueueDevice(waits)
        monkeypatch.setattr(timing, "time", device)
        return device

    return make


def test_what_a_device_does_is_timed_to_its_end(queue_device):
    device = queue_device(waits=True)
    (row,) = run_case(tiny_case(), [queued(device, FLOATS)], device)
    for found in (row.device_s, row.queued_s):
        assert found["median"] == pytest.approx(1.0)
        assert found["n"] == len(found["samples"])
    assert (row.device_s["n"], row.n, row.queued_s["n"]) == (4, 4, 2)
    assert row.median_s == pytest.approx(1.0)
    assert row.status == "timed"
    assert row.share_of_floor == pytest.approx(row.floor_s)


@pytest.mark.parametrize("host_s", [1e-3, 6e-3])  # within the first hold, and beyond it
def test_the_time_of_a_slow_host_is_not_the_devices(queue_device, host_s):
    device = queue_device(waits=True)
    slow = queued(device, FLOATS, seconds=1e-4, host_s=host_s)
    (row,) = run_case(tiny_case(), [slow], device)
    assert row.status == "timed"
    assert row.device_s["median"] == pytest.approx(1e-4)
    assert row.device_s["with_host"] is False
    assert row.host_s["median"] == pytest.approx(1.5 * host_s)
    assert row.as_dict()["host_s"]["n"] == row.device_s["n"]


def test_ceilings_have_nothing_of_the_hosts_time_either(queue_device):
    device = queue_device(waits=True)

    def call():
        device.now += 1e-4  # in which a device that nobody holds has nothing to do
        device.queue(1e-5)

    assert roofline.fastest(call, device) == pytest.approx(1e-5)


def test_what_no_hold_outlasts_says_that_the_host_is_in_its_time(queue_device):
    device = queue_device(waits=True)
    (row,) = run_case(tiny_case(), [queued(device, FLOATS, 1e-4, 1.0)], device)
    assert row.device_s["with_host"] is True
    assert row.device_s["median"] > 1.0


def test_a_timer_that_does_not_hold_the_device_is_refused(queue_device):
    device = queue_device(waits=True)
    device.hold = lambda seconds: None
    (row,) = run_case(tiny_case(), [queued(device, FLOATS)], device)
    assert (row.status, row.device_s) == ("rejected", None)
    assert "was not held" in row.reason


def test_a_timer_that_does_not_wait_is_rejected(queue_device):
    device = queue_device(waits=False)
    (row,) = run_case(tiny_case(), [queued(device, FLOATS)], device)
    assert row.status == "rejected"
    assert "did not wait" in row.reason
    assert row.share_of_floor is None
    assert row.device_s["median"] < row.floor_s  # recorded all the same


def test_a_result_just_above_a_ceiling_is_not_rejected(queue_device):
    device = queue_device(waits=True)
    floor = Floor.of(tiny_case().work(make_inputs()), CEILINGS, stored="float").seconds
    for share, status in ((0.95, "timed"), (0.85, "rejected")):
        (row,) = run_case(tiny_case(), [queued(device, FLOATS, floor * share)], device)
        assert row.status == status


def test_a_library_with_its_own_queue_is_waited_for(queue_device):
    device, waited = queue_device(waits=True), []
    ours = replace(queued(device, FLOATS), wait=waited.append)
    run_case(tiny_case(), [ours], device)
    assert len(waited) == 3 + 2 * (2 + 1 + 2)  # warm-ups, rounds: events, a queue, the clock
    assert all(len(result) == 2 for result in waited)


def spoiled(spoil, implementation=FLOATS, name="the wrong one"):
    def prepare(case, inputs):
        call = implementation.prepare(case, inputs)
        return lambda: spoil(*call())

    return replace(implementation, name=name, prepare=prepare)


@pytest.mark.parametrize("of", [OF_SOFTMAX, OF_SVM], ids=["softmax", "svm"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda loss, grads: (loss * 1.001, grads), "loss"),
        (lambda loss, grads: (loss, {"W": grads["W"] * 1.001}), "gradient"),
        (lambda loss, grads: (np.float64(np.nan), grads), "loss"),
    ],
)
def test_a_wrong_implementation_is_recorded_and_not_timed(of, spoil, what):
    wrong, right = run_case(tiny_case(of), [spoiled(spoil), FLOATS])
    assert wrong.status == "wrong"
    assert f"disagree on the {what}" in wrong.reason
    assert wrong.device_s is None
    assert right.status == "timed"
    assert max(right.errors.values()) < 1e-4


def test_a_step_that_does_not_move_the_parameters_is_wrong():
    def stand_still(case, inputs):
        loss = gpuclf_floats(tiny_case(OF_NET), inputs)
        params = inputs.start(case)
        return lambda: (loss()[0], params)

    wrong = Implementation("still", "numpy", "float", stand_still)
    rows = run_case(tiny_case(STEPS), [wrong, FLOATS, TF32, PLAIN, BYTES])
    assert [row.status for row in rows] == ["wrong"] + ["timed"] * 4


def test_what_goes_wrong_later_is_found_after_the_timing():
    calls = []

    def drift(loss, dW):
        calls.append(None)
        return loss * (1 + 1e-2 * (len(calls) > 4)), dW

    (row,) = run_case(tiny_case(), [spoiled(drift)])
    assert row.status == "wrong"
    assert row.reason.startswith("after the timing")


def test_what_fails_or_is_missing_does_not_stop_the_others(made_up):
    def fail(case, inputs):
        raise ValueError("no such thing")

    def decline(case, inputs):
        raise Unavailable("not here")

    def hang(case, inputs):
        made_up.sleep(5)

    others = [Implementation(f.__name__, "numpy", "float", f) for f in (fail, decline, hang)]
    rows = run_case(tiny_case(), [*others, FLOATS], prepare_limit_s=0.1, ceilings={})
    assert [(row.status, row.reason) for row in rows] == [
        ("failed", "ValueError: no such thing"),
        ("unavailable", "not here"),
        ("unavailable", "took longer than 0.1 s"),
        ("timed", None),
    ]


def failing_after(n_calls, error, name="late", prepare=gpuclf_floats):
    """The check and the warm-ups take 4 calls, a turn of tiny_case() takes 6."""

    def prepare_it(case, inputs):
        call, calls = prepare(case, inputs), []

        def fail_later():
            calls.append(None)
            if len(calls) > n_calls:
                raise error
            return call()

        return fail_later

    return Implementation(name, "numpy", "float", prepare_it)


@pytest.mark.parametrize(
    ("n_calls", "when"), [(5, "while timed"), (11, "while timed"), (16, "after the timing")]
)
def test_what_fails_late_costs_its_own_row_only(n_calls, when):
    late = failing_after(n_calls, RuntimeError("out of memory"))
    rows = run_case(tiny_case(), [late, FLOATS, BYTES])
    assert [row.status for row in rows] == ["failed", "timed", "timed"]
    assert rows[0].reason == f"{when}: RuntimeError: out of memory"
    assert rows[0].device_s is None
    assert [row.device_s["n"] for row in rows[1:]] == [4, 4]
    (row,) = run_case(tiny_case(), [late])
    assert row.status == "failed"


def test_what_hangs_while_timed_costs_its_own_row_only(made_up):
    late = stalling(made_up, after=5)
    rows = run_case(tiny_case(), [late, FLOATS], prepare_limit_s=0.2, ceilings={})
    assert [row.status for row in rows] == ["unavailable", "timed"]
    assert rows[0].reason == "while timed: took longer than 0.2 s"


def stalling(clock, after, seconds=5):
    def prepare(case, inputs):
        call, calls = gpuclf_floats(case, inputs), []

        def stall():
            calls.append(None)
            if len(calls) > after:
                clock.sleep(seconds)
            return call()

        return stall

    return Implementation("stalling", "numpy", "float", prepare)


def test_what_is_prepared_before_the_deadline_is_timed(made_up):
    options = {"time_budget_s": 0.1, "deadline_s": 0.5, "ceilings": {}}
    rows = run_case(tiny_case(), [FLOATS, stalling(made_up, after=0), BYTES], **options)
    assert made_up.now == pytest.approx(0.4)
    assert [row.status for row in rows] == ["timed", "unavailable", "unavailable"]
    assert "took longer" in rows[1].reason
    assert rows[2].reason == "out of time"


def test_what_compiles_is_prepared_last_and_has_a_limit_of_its_own(made_up):
    order = []

    def prepare(case, inputs, name, seconds):
        order.append(name)
        made_up.sleep(seconds)
        return gpuclf_floats(case, inputs)

    slow = Implementation("slow", "numpy", "float", partial(prepare, name="slow", seconds=0.5))
    compiled = replace(slow, compiles=True)
    other = replace(slow, name="other", prepare=partial(prepare, name="other", seconds=0))
    rows = run_case(
        tiny_case(), [compiled, other], prepare_limit_s=0.3, compile_limit_s=30.0, ceilings={}
    )
    assert [(row.implementation, row.status) for row in rows] == [
        ("slow", "timed"),
        ("other", "timed"),
    ]
    assert order == ["other", "slow"]
    assert [peer.name for peer in device_peers() if peer.compiles] == ["PyTorch compiled"]
    (row,) = run_case(tiny_case(), [slow], prepare_limit_s=0.3, ceilings={})
    assert row.status == "unavailable"


def test_the_time_limit_waits_while_numba_compiles(monkeypatch):
    # An exception in the middle of compiling would leave LLVM's lock held for ever.
    left = [True, True, False]
    lock = SimpleNamespace(is_locked=lambda: left.pop(0))
    module = SimpleNamespace(global_compiler_lock=lock)
    monkeypatch.setitem(sys.modules, "numba.core.compiler_lock", module)
    with pytest.raises(TimeLimitError), time_limit(0.001):
        time.sleep(60)  # ended by the signal
    assert left == []


def test_the_time_limit_passes_through_a_librarys_net_and_ends_with_its_block():
    def stubborn():
        try:
            time.sleep(600)
        except Exception:
            pytest.fail("caught by the library")

    with pytest.raises(TimeLimitError), time_limit(0.02):
        stubborn()
    with time_limit(600):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_rounds_end_with_the_time_budget():
    (row,) = run_case(tiny_case(rounds=1000), [FLOATS], time_budget_s=0.0)
    assert row.device_s["n"] == 2


def test_the_order_changes_from_round_to_round():
    order = []
    listed = [
        spoiled(lambda *result, n=n: (order.append(n), result)[1], name=n) for n in ("a", "b", "c")
    ]
    run_case(tiny_case(rounds=12, calls_a_turn=1), listed)
    timed = order[12:-3]  # after check and warm-ups, before the last check
    rounds = [tuple(timed[i : i + 9 : 3]) for i in range(0, len(timed), 9)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 1
