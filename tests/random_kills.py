"""Kill trainings with kill -9 at random moments, resume them, and hold what they learn to the bit.

    python tests/random_kills.py [--kills 200] [--seed 0] [--kind net|svm|softmax|fleet-net|...]

A training writes a checkpoint every epoch, so that some kills meet a file being written. It is
killed again and again until it ends; its bits must be those of a training that never was.
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

KINDS = ("net", "fleet-net", "fleet-softmax", "svm")


def start(kind, folder, output):
    """Train in another process, which has all modules from the start; return its number."""
    if pid := os.fork():
        return pid
    try:
        resumed.main(kind, str(folder), str(output))
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
        assert ended(start(kind, place, output)) == 0
        digests.append(output.read_text(encoding="utf-8"))
    whole_s, n_done = time.perf_counter() - began, 0
    while n_done < n_kills:
        place = folder / f"{len(digests)}"
        output.unlink()
        while not output.exists():
            pid = start(kind, place, output)
            if n_done < n_kills:
                time.sleep(rng.uniform(0, whole_s))  # the clock only chooses moments
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL)
            n_done += code != 0
        digests.append(output.read_text(encoding="utf-8"))
    return n_done, digests


def main():
    number, seed, kinds = asked_for(__doc__, "kills", 200, "kind", KINDS)
    torn = 0
    for i, kind in enumerate(kinds):
        n_kills = (number + i) // len(kinds)
        with tempfile.TemporaryDirectory() as folder:
            n_done, digests = killed_and_resumed(kind, n_kills, seed, Path(folder))
        wrong = sum(digest != digests[0] for digest in digests)
        print(f"{kind}: {n_done} kills, {len(digests) - 2} trainings resumed to their end, "
              f"{wrong} with other bits", flush=True)  # fmt: skip
        torn += wrong
    return torn > 0


if __name__ == "__main__":
    sys.exit(main())
