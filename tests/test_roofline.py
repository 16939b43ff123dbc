"""Bytes and operations of the cases, ceilings and floors."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_cases import CEILINGS, OF_SOFTMAX, OF_SVM, STEPS, make_inputs, tiny_case

from gpuclf.bench import Inputs, device_cases
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.measure.implementations import IMPLEMENTATIONS
from gpuclf.bench.measure.roofline import (
    Floor,
    best_of,
    fastest,
    judge_rows,
    measure_ceilings,
    too_fast,
)
from gpuclf.bench.measure.timing import new_row


@pytest.mark.parametrize(
    ("of", "stored", "moved", "operations"),
    [
        (OF_SOFTMAX, "uint8", 40 * (12 + 8) + 2 * 4 * 120, 4 * 40 * 120),
        (OF_SVM, "float", 40 * (48 + 8) + 2 * 4 * 120, 4 * 40 * 120),
        (STEPS, "float", 40 * 56 + 4 * 4 * (13 * 50 + 510), 2 * 40 * (2 * 600 + 3 * 500)),
        ((None, "l2"), "uint8", 80 * 12 + 80 * 8, 2 * 40 * 40 * 12),
    ],
)
def test_bytes_and_operations_are_counted(of, stored, moved, operations):
    work = tiny_case(of).work(make_inputs(), stored)
    assert (work.bytes, work.operations) == (moved, operations)


def test_the_full_pass_has_the_floors_that_are_known_for_it():
    inputs = Inputs(np.zeros((50_000, 3072), np.uint8), np.arange(50_000) % 10)
    work = device_cases(50_000)[0].work(inputs, "uint8")
    assert work.operations == pytest.approx(6.14e9, rel=1e-3)
    ceilings = {"bytes_per_s": {"copy": 4.3e12}, "operations_per_s": {"bfloat16": 7.8e14}}
    floor = Floor.of(work, ceilings)
    assert (floor.seconds, floor.limited_by) == (pytest.approx(36e-6, rel=0.01), "memory")


def test_the_slowest_of_memory_arithmetic_and_upload_is_the_floor():
    work = tiny_case().work(make_inputs())
    assert Floor.of(work, CEILINGS).seconds == work.bytes / 2e12
    slow = CEILINGS | {"operations_per_s": {"float32": 1.0}}
    assert Floor.of(work, slow) == Floor(work.operations, "arithmetic")
    assert Floor.of(work, CEILINGS, 10**9) == Floor(0.1, "upload")


def test_copies_of_samples_together_exceed_the_cache():
    inputs = make_inputs(cache_bytes=1000)
    assert inputs.copies(500) == 5
    assert inputs.copies(10**6) == 2
    assert make_inputs().copies(500) == 1


# ---------------------------------------------------------------------------- a busy machine


def ceilings(rate, cpu_share=1.0, **left_out):
    rates = {"read": rate, "copy": rate / 2}
    return {
        "cpu": {
            "bytes_per_s": rates,
            "operations_per_s": {"float32": 100 * rate},
            "cached": {"1000": 2 * rate},
            "left_out": left_out,
            "cpu_share": cpu_share,
        }
    }


def made_up_row(seconds):
    textbook = next(i for i in IMPLEMENTATIONS if i.name == "textbook NumPy")
    row = new_row(tiny_case(), make_inputs(), textbook, {})
    row.median_s = row.p20_s = row.p80_s = seconds
    row.times_s = [seconds] * 9
    return row


def test_the_best_of_two_measurements_counts_rate_by_rate():
    one, other = ceilings(1e9, 0.5, int8="no memory"), ceilings(2e9, 0.4)
    one["cpu"]["bytes_per_s"]["copy"] = 9e9
    other["cpu"]["operations_per_s"]["int8"] = 1.0
    best = best_of(one, other)["cpu"]
    assert best["bytes_per_s"] == {"read": 2e9, "copy": 9e9}
    assert best["operations_per_s"] == {"float32": 2e11, "int8": 1.0}
    assert best["cached"] == {"1000": 4e9}
    assert best["cpu_share"] == 0.5
    assert best["left_out"] == {}
    assert best_of(other, one)["cpu"] == best
    assert best_of({}, one)["cpu"] == one["cpu"]


def test_a_row_is_rejected_by_the_best_ceilings_only():
    floor = Floor.of(tiny_case().work(make_inputs(), "float"), ceilings(1e9)["cpu"]).seconds
    low, high = ceilings(1e8), ceilings(1e9)  # the first in a busy moment
    honest, wrong = made_up_row(1.05 * floor), made_up_row(0.5 * floor)
    assert too_fast(honest, low, 12)
    assert honest.status == "timed"
    assert judge_rows([honest, wrong], best_of(low, high), 12) == 0
    assert (honest.status, wrong.status) == ("timed", "rejected")
    assert honest.floor_s == pytest.approx(floor)
    assert honest.share_of_floor == pytest.approx(1 / 1.05)
    assert "less than the floor" in wrong.reason


def test_ceilings_of_a_machine_that_was_busy_all_the_time_accuse_nobody():
    busy = best_of(ceilings(1e8, 0.3), ceilings(1.1e8, 0.5))
    floor = Floor.of(tiny_case().work(make_inputs(), "float"), busy["cpu"]).seconds
    fast, slow = made_up_row(0.2 * floor), made_up_row(2 * floor)
    assert judge_rows([fast, slow], busy, 12) == 1
    assert (fast.status, fast.floor_s, fast.share_of_floor) == ("timed", None, None)
    assert (slow.status, slow.share_of_floor) == ("timed", pytest.approx(0.5))


def test_how_much_of_the_processors_was_there_is_measured_with_the_ceilings():
    found = measure_ceilings(HostDevice(), nbytes=8000, side=8)
    assert 0 <= found["cpu_share"] <= 1
    assert {"float32", "float32, 8 rows"} <= found["operations_per_s"].keys()


class Clock(HostDevice):
    """A device on which calls take what the test says."""

    def __init__(self, seconds):
        self.seconds, self.now = iter(seconds), 0.0

    def call(self):
        self.now += next(self.seconds, 1.0)

    def mark(self):
        return self.now


def test_short_calls_are_repeated_until_one_had_the_machine_for_itself(monkeypatch):
    device = Clock([1.0] * 60 + [0.25])  # a neighbour for the first 60 calls
    monkeypatch.setattr("gpuclf.bench.measure.roofline.time.perf_counter", lambda: 0.0)
    assert fastest(device.call, device) == 0.25
    long = Clock([5.0, 4.0, 3.0, 2.0, 1.0])
    clock = SimpleNamespace(perf_counter=lambda: long.now)
    monkeypatch.setattr("gpuclf.bench.measure.roofline.time", clock)
    assert fastest(long.call, long) == 2.0  # the first is not counted, then three
