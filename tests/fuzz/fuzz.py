"""Give a parser mutated files, and keep those that reach lines in a new order.

    python -m tests.fuzz.fuzz [--target NAME] [--inputs 100000] [--seed 0] [--grow]

Ends with exit code 1, the input in a file, where a parser raises what it should not, takes over
a second, or lets the process grow by over 700 MB. `--grow` puts what reached something new into the
corpus.
"""

import argparse
import hashlib
import random
import resource
import sys
import time
import traceback
from pathlib import Path

from .targets import CORPUS, TARGETS

MOST_SECONDS, MOST_MEGABYTES = 1.0, 700
NUMBERS = [b"\xff", b"\x00", b"\x80", b"\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"]


class Lines:
    """Which line of a module follows which, while a call runs."""

    def __init__(self, module):
        self._file = module.__file__
        self.seen = set()

    def of(self, call, data):
        """Return how many new pairs of lines a call reached."""
        before = len(self.seen)
        sys.settrace(self._call)
        try:
            call(data)
        finally:
            sys.settrace(None)
        return len(self.seen) - before

    def _call(self, frame, event, argument):
        if frame.f_code.co_filename != self._file:
            return None
        previous = frame.f_lineno

        def line(frame, event, argument):
            nonlocal previous
            self.seen.add((previous, frame.f_lineno))
            previous = frame.f_lineno
            return line

        return line


def mutated(data, others, rng):
    """Return data changed in a few places, or joined with parts of others."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, rng.randrange(64)])
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
            case 4:
                data[at : at + length] = rng.choice(NUMBERS)
            case 5:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                data[at : at + length] = other[start : start + rng.randrange(64)]
            case _ if at < len(data):
                data[at] = rng.randrange(256)
    return bytes(data[: 1 << 18])


def megabytes():
    """Return the most that the process ever took; macOS counts bytes, Linux KiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most >> (20 if sys.platform == "darwin" else 10)


def fuzz(name, inputs, seed, grow):
    """Return the input that a target failed on, and why; (None, "") where there is none."""
    call, module, mended = TARGETS[name]
    rng = random.Random(seed)
    lines = Lines(module)
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    of_repository, at_start = len(corpus), megabytes()
    for i in range(of_repository + inputs):
        data = corpus[i] if i < of_repository else mutated(rng.choice(corpus), corpus, rng)
        if i >= of_repository and rng.random() < 0.8:
            data = mended(data)
        began = time.process_time()
        try:
            new = lines.of(call, data)
        except Exception:
            return data, traceback.format_exc()
        if time.process_time() - began > 5 * MOST_SECONDS:  # traced, all takes five times as long
            return data, f"took over {MOST_SECONDS} s"
        if megabytes() - at_start > MOST_MEGABYTES:
            return data, f"took over {MOST_MEGABYTES} MB"
        if new and i >= of_repository:
            corpus.append(data)
    print(
        f"{name}: {inputs:,} inputs, {len(corpus) - of_repository} of them new in what they reach"
    )
    if grow:
        for data in corpus[of_repository:]:
            digest = hashlib.sha256(data).hexdigest()[:16]
            (CORPUS / name / digest).write_bytes(data)
    return None, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grow", action="store_true")
    options = parser.parse_args()
    for name in options.target or TARGETS:
        data, why = fuzz(name, options.inputs, options.seed, options.grow)
        if data is not None:
            path = Path(f"failing-{name}-{hashlib.sha256(data).hexdigest()[:16]}")
            path.write_bytes(data)
            print(f"{name}: {why}\nthe input is in {path}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
