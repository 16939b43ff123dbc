"""How often `gpuclf bench --compare` raises a false alarm here, and how often it sees 20 %.

python -m benchmarks.comparison_trial --out DIR --tries 20    about a minute a try on two idle cores

A try is three short runs, each in a process of its own: two of the same code, and one in which each
call of this library is made to last 1.2 times as long by waiting busily. Records that are in DIR
are not measured again.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpuclf.bench import IMPLEMENTATIONS, Case, Inputs, run_case
from gpuclf.bench.measure.cases import LOSS, NET, SOFTMAX
from gpuclf.bench.report.comparison import compare_records, undisturbed
from gpuclf.bench.report.records import read_record
from gpuclf.devices.machine import environment
from gpuclf.files import write_json

KINDS = {"before": 0.0, "same": 0.0, "slower": 0.2}
N_SAMPLES = 5000
CASES = [
    Case(SOFTMAX, LOSS, N_SAMPLES, 16, 20, calls_a_turn=2),
    Case(SOFTMAX, LOSS, 200, 16, 20, calls_a_turn=10),
    Case(NET, LOSS, 200, 4, 20, calls_a_turn=10),
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


def measure(path, share):
    """Write the record of one run."""
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(N_SAMPLES, 3072), dtype=np.uint8)
    inputs = Inputs(X, rng.integers(10, size=N_SAMPLES))
    listed = [
        slowed(i, share) if i.name.startswith("gpuclf") else i
        for i in IMPLEMENTATIONS
        if i.array_library == "numpy"
    ]
    rows = [row.as_dict() for case in CASES for row in run_case(case, inputs, listed)]
    write_json(path, {"version": 2, "environment": environment(), "rows": rows})


def run(path, folder):
    """Measure in a process of its own, unless that was done."""
    if not path.exists():
        command = [sys.executable, "-m", "benchmarks.comparison_trial", "--out", str(folder)]
        subprocess.run([*command, "--measure", path.stem], check=True)


def verdicts(before, path, folder):
    """Compare as the command does: what seems slower is measured again."""
    found = read_record(path)
    comparison = compare_records(before, found)
    if comparison.regressions:
        again = path.with_stem(f"{path.stem[:2]}_again_{path.stem[3:]}")
        run(again, folder)
        comparison = compare_records(before, undisturbed(found, read_record(again)))
    return {row.verdict for row in comparison.judged}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.measure:
        kind = options.measure.rpartition("_")[2]
        measure(options.out / f"{options.measure}.json", KINDS[kind])
        return
    counts = dict.fromkeys(("false alarms", "seen", "wrong sign", "overloaded"), 0)
    for number in range(options.tries):
        paths = {kind: options.out / f"{number:02d}_{kind}.json" for kind in KINDS}
        for path in paths.values():
            run(path, options.out)
        before = read_record(paths["before"])
        found = [verdicts(before, paths[kind], options.out) for kind in ("same", "slower")]
        counts["false alarms"] += bool(found[0] & {"slower", "faster"})
        counts["seen"] += "slower" in found[1]
        counts["wrong sign"] += "faster" in found[1]
        counts["overloaded"] += not (found[0] and found[1])
        print(f"of {number + 1}:", ", ".join(f"{n} {what}" for what, n in counts.items()))


if __name__ == "__main__":
    main()
