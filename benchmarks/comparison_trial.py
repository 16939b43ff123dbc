"""How often `gpuclf bench --compare` raises a false alarm here, and how often it sees 20 %.

python -m benchmarks.comparison_trial --out DIR --tries 20     about 10 minutes
python -m benchmarks.comparison_trial --out DIR --judge-only   judges the records in DIR again

A try is three short runs, each in a process of its own: two of the same code, and one in which each
call of this library is made to last 1.2 times its own duration by waiting busily.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpuclf.backend import environment
from gpuclf.benchmark import IMPLEMENTATIONS, Case, Inputs, run_case
from gpuclf.benchmark.devices import HostDevice, measure_ceilings
from gpuclf.benchmark.report import write_json

SLOWER = 0.2
KINDS = {"before": 0.0, "same": 0.0, "slower": SLOWER}
CASES = [
    Case("softmax loss+gradient", 50_000, 16, 9),
    Case("softmax loss+gradient", 200, 16, 10, calls_a_turn=20),
    Case("two-layer loss+gradient", 200, 4, 10, calls_a_turn=20),
]


def slowed(implementation, share):
    """Return the implementation with calls that last (1 + share) times as long."""

    def prepare(case, inputs):
        call = implementation.prepare(case, inputs)

        def slow_call():
            start = time.perf_counter()
            result = call()
            end = time.perf_counter()
            while time.perf_counter() < end + share * (end - start):
                pass
            return result

        return slow_call

    return replace(implementation, prepare=prepare)


def one_run(path, share):
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(50_000, 3072), dtype=np.uint8)
    inputs = Inputs(X, rng.integers(10, size=len(X)))
    cached = path.parent / "floats.npy"
    if not cached.exists():
        np.save(cached, inputs.floats)
    inputs.__dict__["floats"] = np.load(cached)
    listed = [i for i in IMPLEMENTATIONS if i.array_library != "cupy"]
    if share:
        listed = [slowed(i, share) if i.name.startswith("gpuclf") else i for i in listed]
    began = time.time()
    rows = []
    for case in CASES:
        for row in run_case(case, inputs, listed, time_budget_s=60):
            turn = 1 if row.extrapolated else case.calls_a_turn
            rows.append({**row.as_dict(), "calls_a_turn": turn})
    write_json(
        path,
        {
            "began": began,
            "seconds": time.time() - began,
            "settings": {"dtype": "float32", "seed": 0, "samples": 50_000},
            "dataset": {"name": "random pixels", "source": "random pixels"},
            "environment": environment(),
            "ceilings": measure_ceilings(HostDevice(), 1 << 27, 1024),
            "rows": rows,
        },
    )


def collect(folder, tries, lock):
    prefix = ["flock", lock] if lock else []
    for number in range(tries):
        for kind, share in KINDS.items():
            path = folder / f"{number:02d}_{kind}.json"
            if path.exists():
                continue
            command = [sys.executable, "-m", "benchmarks.comparison_trial", "--one-run", str(path)]
            subprocess.run([*prefix, *command, "--share", str(share)], check=True)
            seconds = json.loads(path.read_text())["seconds"]
            print(f"{path.name}: {seconds:.1f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--lock", help="hold this lock file during a run")
    parser.add_argument("--one-run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_run:
        one_run(options.one_run, options.share)
        return
    collect(options.out, options.tries, options.lock)


if __name__ == "__main__":
    main()
