"""The benchmark: cases, the implementations of each, one timer, and the report.

The command line, ``benchmarks/`` (pytest-benchmark) and the recorded runs all use what is here.
"""

from gpuclf.benchmark.cases import Case, Inputs, default_cases, device_cases, peer_cases
from gpuclf.benchmark.implementations import IMPLEMENTATIONS, Implementation, Unavailable
from gpuclf.benchmark.peers import PEERS
from gpuclf.benchmark.timing import Row, run_case

__all__ = [
    "IMPLEMENTATIONS",
    "PEERS",
    "Case",
    "Implementation",
    "Inputs",
    "Row",
    "Unavailable",
    "default_cases",
    "device_cases",
    "peer_cases",
    "run_case",
]
