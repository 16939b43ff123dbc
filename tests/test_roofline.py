"""Bytes and operations of the cases, ceilings and floors."""

import numpy as np
import pytest
from tiny_cases import CEILINGS, OF_SOFTMAX, OF_SVM, STEPS, make_inputs, tiny_case

from gpuclf.bench import Inputs, device_cases
from gpuclf.bench.measure.roofline import Floor


@pytest.mark.parametrize(
    ("of", "features", "moved", "operations"),
    [
        (OF_SOFTMAX, "uint8", 40 * (12 + 8) + 2 * 4 * 120, 4 * 40 * 120),
        (OF_SVM, "float", 40 * (48 + 8) + 2 * 4 * 120, 4 * 40 * 120),
        (STEPS, "float", 40 * 56 + 4 * 4 * (13 * 50 + 510), 2 * 40 * (2 * 600 + 3 * 500)),
        ((None, "l2"), "uint8", 80 * 12 + 80 * 8, 2 * 40 * 40 * 12),
    ],
)
def test_bytes_and_operations_are_counted(of, features, moved, operations):
    work = tiny_case(of).work(make_inputs(), features)
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
