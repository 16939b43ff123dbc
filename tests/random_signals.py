"""Send signals at random moments to commands, and see what becomes of them.

    python tests/random_signals.py [--signals 100] [--seed 0] [--command train|search|bench]

A signal must end the command with 130 or 143, in a line and without a traceback, or come when it
has ended by itself; a JSON file is whole, and marked where the command was interrupted. Before the
first line of gpuclf runs, and after its last, the system or Python end the process: those are
counted apart. Moments are drawn in the processor time of the command's first thread, half of them
where modules are loaded: another process beside it, or several at once, shift none.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from random_moments import asked_for

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 3
POLL_S = 0.001
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


def cpu_seconds(process):
    """How long the first thread has computed; None where the process has ended."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return None


def measured(name, folder):
    """Return how many seconds a command computes until it says something, and until its end."""
    process = start(name, folder)
    said, total = None, 0.0
    pipes = [process.stdout, process.stderr]
    while (now := cpu_seconds(process)) and process.poll() is None:
        total = now
        ready = select.select(pipes, [], [], POLL_S)[0]
        for pipe in ready:
            if not os.read(pipe.fileno(), 1 << 16):
                pipes.remove(pipe)
        said = total if ready and said is None else said
    assert process.wait() == 0
    assert Path(folder, "out.json").exists()
    return said, total


def one(name, folder, seconds, signum):
    """Return what became of a signal: a word, or a sentence that begins with WRONG."""
    path = Path(folder, "out.json")
    process = start(name, folder)
    while (now := cpu_seconds(process)) is not None and now < seconds and process.poll() is None:
        time.sleep(POLL_S)
    heard = hears_signals(process)
    process.send_signal(signum)
    heard = heard and hears_signals(process)
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
        return f"WRONG: swallowed, {where}" if heard or not found else "after the end"
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
    """Return when a command first says something and ends, and what became of how many signals."""
    rng, outcomes = random.Random(f"{name} {seed}"), Counter()

    def in_folder(drawn):
        with tempfile.TemporaryDirectory() as folder:
            make_data(folder)
            return one(name, folder, *drawn)

    with tempfile.TemporaryDirectory() as folder:
        make_data(folder)
        measured(name, folder)  # what it compiles is kept
        said, total = measured(name, folder)
    drawn = [
        (rng.uniform(0, rng.choice([said, total])), rng.choice([signal.SIGINT, signal.SIGTERM]))
        for _ in range(n_signals)
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for outcome in pool.map(in_folder, drawn):
            outcomes[outcome] += 1
            print(f"{name} {outcomes.total()}: {outcome}", file=sys.stderr, flush=True)
    return said, total, outcomes


def main():
    # A shell has it ignored by what it starts in the background, and so would the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    number, seed, kinds = asked_for(__doc__, "signals", 100, "command", COMMANDS)
    bad = 0
    for name in kinds:
        said, total, outcomes = run(name, number, seed)
        print(f"{name}: speaks after {said:.2f} s of computing, ends after {total:.2f} s")
        for outcome, count in outcomes.most_common():
            print(f"{count:5} {outcome}", flush=True)
            bad += count * outcome.startswith("WRONG")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
