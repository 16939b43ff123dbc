"""Cases of the benchmark that take no time, and ceilings that no CPU reaches."""

import numpy as np

from gpuclf.bench import Case, Inputs
from gpuclf.bench.measure.cases import LOSS, NET, STEP
from gpuclf.models import SOFTMAX, SVM

# What a case is of: a model, or None for neighbours, and what is done.
OF_SOFTMAX, OF_SVM, OF_NET = (SOFTMAX, LOSS), (SVM, LOSS), (NET, LOSS)
STEPS = (NET, STEP)
CEILINGS = {
    "bytes_per_s": {"copy": 1e12, "read": 2e12, "upload pinned": 1e10, "upload pageable": 5e9},
    "operations_per_s": {"float32": 1e13, "int8": 1e15},
}


def make_inputs(dtype="float32", n=40, cache_bytes=0):
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(n, 12), dtype=np.uint8)
    return Inputs(X, np.arange(n) % 10, dtype, cache_bytes=cache_bytes)


def tiny_case(of=OF_SOFTMAX, rounds=2, calls_a_turn=2, samples=40):
    return Case(*of, samples, 10, rounds, calls_a_turn)
