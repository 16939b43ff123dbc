"""What evaluating embeddings costs: both published protocols by this library and by others.

python -m benchmarks.embeddings --out benchmarks/results/embeddings.json    in about a minute of CPU
python benchmarks/performance_tables.py                                     then writes the pages
python -m benchmarks.embeddings --out embeddings.json --try                 in seconds, on few

On one core, and in seconds of its time, not of the clock: what else a machine does then counts
little. Each implementation is one of `gpuclf bench --only 'probe*'`; the fastest of its calls
counts, taken by turns. The embeddings are made in memory, of unit length.
"""

# ruff: noqa: E402 - the one core is chosen before libraries look at how many there are

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console

from gpuclf.bench import IMPLEMENTATIONS, PEERS, Case, Inputs, Unavailable, probe_cases
from gpuclf.bench.measure.cases import PROBE_KNN, PROBE_LBFGS, PROBE_SGD
from gpuclf.datasets import make_synthetic
from gpuclf.devices.machine import environment
from gpuclf.files import write_json

console = Console()
ROUNDS = 2
SIZES = [
    (PROBE_LBFGS, {"samples": 2000, "n_features": 512, "models": 96, "epochs": 10}),
    (PROBE_LBFGS, {"samples": 50_000, "n_features": 155, "models": 16, "epochs": 10}),
    (PROBE_SGD, {"samples": 4000, "n_features": 384, "models": 52, "epochs": 2}),
    (PROBE_KNN, {"samples": 10_000, "n_features": 384}),
]
CLASSES = 10


def measure(case: Case, rounds: int) -> list[dict]:
    """Time every implementation that has the case; the textbook's labels are held against."""
    inputs = Inputs(*make_synthetic(8)).of(case)
    calls, labels = {}, {}
    for implementation in (*IMPLEMENTATIONS, *PEERS):
        if implementation.device != "cpu" or implementation.extrapolated:
            continue
        try:
            calls[implementation.name] = implementation.prepare(case, inputs)
        except Unavailable:
            continue
        console.print(f"{case.title}: {implementation.name}, at {time.process_time():.0f} s of CPU")
        labels[implementation.name] = np.asarray(calls[implementation.name]()[1])  # compiles
    seconds = dict.fromkeys(calls, np.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - start)
    expected = labels["textbook NumPy"]
    return [
        {
            "case": case.title,
            "operation": case.operation,
            **{name: getattr(case, name) for name in ("samples", "n_features", "models", "epochs")},
            "implementation": name,
            "cpu_s": seconds[name],
            "other_labels": float(np.mean(labels[name] != expected)),
        }
        for name in calls
    ]


def main() -> None:
    """Measure the cases, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--try", action="store_true", dest="rehearsed", help="small, in seconds")
    options = parser.parse_args()
    rows = []
    cases = {case.kind: case for case in probe_cases()}
    for kind, sizes in SIZES:
        of_record = replace(cases[kind], classes=CLASSES, **sizes)
        if options.rehearsed:
            of_record = replace(of_record, samples=200, models=min(3, of_record.models))
        rows += measure(of_record, 1 if options.rehearsed else ROUNDS)
        write_json(options.out, {"environment": environment(), "threads": 1, "rows": rows})
    for row in rows:
        console.print(f"{row['case']}: {row['implementation']} {row['cpu_s']:.3f} s of CPU")


if __name__ == "__main__":
    main()
