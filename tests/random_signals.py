"""Send signals at random moments to commands, and see what becomes of them.

    python tests/random_signals.py [--signals 100] [--seed 0] [--command train|search|bench]

A signal must end the command with 130 or 143, in a line and without a traceback, or come when it
has ended by itself; a JSON file is whole, and marked where the command was interrupted. Before the
first line of gpuclf runs, and after its last, the system or Python end the process: those are
counted apart.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ["--data", "tiny.npz", "--backend", "numpy"]
COMMANDS = {
    "train": ["train", "softmax", *DATA, "--epochs", "300"],
    "search": ["search", "softmax", *DATA, "--rounds", "6", "--epochs", "30"],
    "bench": [
        *("bench", "--data", "synthetic", "--samples", "200", "--quick", "--time-budget", "0.3"),
        *("--only", "softmax*200*", "--only", "*numpy*", "--backend", "numpy"),
    ],
}


def make_data(folder):
    rng = np.random.default_rng(0)
    X, y = rng.integers(256, size=(300, 8, 8), dtype=np.uint8), np.arange(300) % 3
    np.savez(Path(folder, "tiny.npz"), X=X, y=y)


def start(name, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuclf", *COMMANDS[name], "--json", "out.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hears_signals(process):
    """Whether gpuclf's handler is there: nothing else handles SIGTERM."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def one(name, folder, seconds, signum):
    """Return what became of a signal: a word, or a sentence that begins with WRONG."""
    path = Path(folder, "out.json")
    path.unlink(missing_ok=True)
    process = start(name, folder)
    time.sleep(seconds)
    heard = hears_signals(process)
    process.send_signal(signum)
    heard = heard and (process.poll() is not None or hears_signals(process))
    try:
        _, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"WRONG: still at work 120 s after signal {signum} at {seconds:.3f} s"
    code, left = process.returncode, sorted(p.name for p in Path(folder).iterdir())
    where = f"signal {signum} at {seconds:.3f} s: code {code}, {err[-600:]!r}"
    if left not in (["tiny.npz"], ["out.json", "tiny.npz"]):
        return f"WRONG files {left}, {where}"
    found = json.loads(path.read_text()) if path.exists() else None
    marked = bool(found and (found.get("incomplete") or found.get("unfinished")))
    if not heard and code == -signum:
        return "before or after gpuclf's lines"
    if "Traceback" in err or "Exception ignored" in err:
        return f"WRONG traceback, {where}"
    if code == 0:
        return f"WRONG end, {where}" if heard and not found else "after the end"
    if code != 128 + signum:
        return f"WRONG code, {where}"
    if err.count("interrupted") != 1:
        return f"WRONG words, {where}"
    if "all was" in err:
        return "interrupted when all was done" if found and not marked else f"WRONG json, {where}"
    if found and not marked:
        return f"WRONG: not marked, {where}"
    return "interrupted, something kept" if found else "interrupted, nothing kept"


def run(name, n_signals, seed):
    """Return how often what became of the signals."""
    rng, outcomes = random.Random(f"{name} {seed}"), Counter()
    with tempfile.TemporaryDirectory() as folder:
        make_data(folder)
        began = time.perf_counter()
        out, err = start(name, folder).communicate()
        took = time.perf_counter() - began
        assert Path(folder, "out.json").exists(), out + err
        for _ in range(n_signals):
            signum = rng.choice([signal.SIGINT, signal.SIGTERM])
            # Half of them within the first fifth, where modules are loaded.
            seconds = rng.uniform(0, took * rng.choice([0.2, 1.0]))
            outcome = one(name, folder, seconds, signum)
            outcomes[outcome] += 1
            print(f"{name} {outcomes.total()}: {outcome}", file=sys.stderr, flush=True)
    return took, outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=COMMANDS, action="append")
    options = parser.parse_args()
    bad = 0
    for name in options.command or COMMANDS:
        took, outcomes = run(name, options.signals, options.seed)
        print(f"{name}, {took:.1f} s by itself")
        for outcome, count in outcomes.most_common():
            print(f"{count:5} {outcome}", flush=True)
            bad += count * outcome.startswith("WRONG")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
