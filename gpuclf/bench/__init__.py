"""The benchmark: cases, the implementations of each, one timer, and the report.

The command line, ``benchmarks/`` (pytest-benchmark), the acceptance on a GPU and the recorded runs
all use what is here.
"""

from gpuclf.bench.measure.agreement import DisagreementError, Reference
from gpuclf.bench.measure.cases import (
    Case,
    Inputs,
    default_cases,
    device_cases,
    peer_cases,
    probe_cases,
    scaling_cases,
)
from gpuclf.bench.measure.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    Unavailable,
    device_implementations,
)
from gpuclf.bench.measure.peers import PEERS, device_peers
from gpuclf.bench.measure.timing import Row, run_case

__all__ = [
    "IMPLEMENTATIONS",
    "PEERS",
    "Case",
    "DisagreementError",
    "Implementation",
    "Inputs",
    "Reference",
    "Row",
    "Unavailable",
    "default_cases",
    "device_cases",
    "device_implementations",
    "device_peers",
    "peer_cases",
    "probe_cases",
    "run_case",
    "scaling_cases",
]
