"""Kill trainings with kill -9 at random moments, resume them, and hold what they learn to the bit.

    python tests/random_kills.py [--kills 200] [--seed 0] [--kind net|svm|fleet-net|saving|...]

A training writes a checkpoint every epoch, so that some kills meet a file being written. It is
killed again and again until it ends; its bits must be those of a training that never was. "saving"
writes models over one another: the file must be one of them, whole.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import resumed
from random_moments import asked_for

import gpuclf

KINDS = ("net", "fleet-net", "fleet-softmax", "svm", "saving")


def start(function, *args):
    """Call a function in another process, which has all modules from the start."""
    if pid := os.fork():
        return pid
    try:
        function(*map(str, args))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid):
    """Wait until a process has ended, and return its exit code, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_and_resumed(kind, n_kills, seed, folder):
    """Return how many kills met a training at work, and the digests of all that then ended.

    The first two digests are of trainings that never were killed, without and with checkpoints.
    """
    rng, digests, output = np.random.default_rng(seed), [], folder / "digest"
    for place in ("none", folder / "whole"):
        began = time.perf_counter()
        assert ended(start(resumed.main, kind, place, output)) == 0
        digests.append(output.read_text(encoding="utf-8"))
    whole_s, n_done = time.perf_counter() - began, 0
    while n_done < n_kills:
        place = folder / f"{len(digests)}"
        output.unlink()
        while not output.exists():
            pid = start(resumed.main, kind, place, output)
            if n_done < n_kills:
                time.sleep(rng.uniform(0, whole_s))  # the clock only chooses moments
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL)
            n_done += code != 0
        digests.append(output.read_text(encoding="utf-8"))
    return n_done, digests


def save_for_ever(path):
    """Save one model after another, all of whose parameters are its number, until killed."""
    X, y = resumed.make_data()
    model = gpuclf.TwoLayerNetClassifier(hidden_size=10_000, max_iter=1).fit(X, y)
    parent, number = os.getppid(), 0
    while os.getppid() == parent:
        number += 1
        for value in model.params_.values():
            value[...] = number
        model.save(path)


def killed_while_saving(n_kills, seed, folder):
    """Return how many kills left an unfinished file, and how many models then were not whole."""
    rng, path, wrong = np.random.default_rng(seed), folder / "model", 0
    for _ in range(n_kills):
        path.unlink(missing_ok=True)
        pid = start(save_for_ever, path)
        while not path.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        numbers = {float(n) for v in gpuclf.load(path).params_.values() for n in np.unique(v)}
        wrong += len(numbers) != 1
    return len([*folder.glob(".*.unfinished")]), wrong


def main():
    number, seed, kinds = asked_for(__doc__, "kills", 200, "kind", KINDS)
    torn = 0
    for i, kind in enumerate(kinds):
        n_kills = (number + i) // len(kinds)
        if kind == "saving":
            with tempfile.TemporaryDirectory() as folder:
                n_met, wrong = killed_while_saving(n_kills, seed, Path(folder))
            print(f"saving: {n_kills} kills, {n_met} in the middle of a file, {wrong} models torn",
                  flush=True)  # fmt: skip
            torn += wrong
            continue
        with tempfile.TemporaryDirectory() as folder:
            n_done, digests = killed_and_resumed(kind, n_kills, seed, Path(folder))
        wrong = sum(digest != digests[0] for digest in digests)
        print(f"{kind}: {n_done} kills, {len(digests) - 2} trainings resumed to their end, "
              f"{wrong} with other bits", flush=True)  # fmt: skip
        torn += wrong
    return torn > 0


if __name__ == "__main__":
    sys.exit(main())
