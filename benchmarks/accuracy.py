"""Run the recipes of docs/accuracy.md on CIFAR-10, and record what they reach on the test images.

python -m benchmarks.accuracy --out benchmarks/results/accuracy.json    on a quiet machine of two
                                                                        cores some ten minutes
python -m benchmarks.accuracy --only softmax --out ...                  one, the others stay
python benchmarks/performance_tables.py                                 then writes the page

Settings were chosen on validation images. What is wanted stays what was wanted before, reached or
not, and the page shows both.
A run is timed by the clock, which other programs slow down, and by the processor time of all its
threads, which they hardly do; the load before it is recorded beside them.
"""

import argparse
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from gpuclf.devices.machine import environment
from gpuclf.files import write_json

ROOT = Path(__file__).resolve().parent.parent
# By name: the command, as a user types it, and the test accuracy that it is there for.
RECIPES = {
    "softmax regression": (
        "gpuclf train softmax --data cifar10 --flip --reg 3e-3 --epochs 20",
        0.415,
    ),
    "two-layer net": (
        "gpuclf train two-layer --data cifar10 --hidden-size 1280 --dropout 0.2 --shift 2 "
        "--learning-rate 0.02 --epochs 30",
        0.6,
    ),
    "two-layer net on features": ("python examples/features.py --data cifar10", 0.63),
}


def processor_seconds() -> float:
    """Return what the processes that have ended took of all processors together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: str, folder: Path) -> dict:
    """Run a command, and return its results with its times."""
    program, *arguments = shlex.split(command)
    start = [sys.executable] + (["-m", "gpuclf"] if program == "gpuclf" else [])
    result, before, load = folder / "result.json", processor_seconds(), os.getloadavg()[0]
    done = subprocess.run(
        [*start, *arguments, "--json", result],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed with {done.returncode}")
    found = json.loads(result.read_text())
    wanted = ("val_accuracy", "test_accuracy", "fit_seconds")
    return {name: found[name] for name in wanted} | {
        "command_processor_seconds": processor_seconds() - before,
        "load_before": load,
    }


def main() -> None:
    """Run, and write the record after each recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=RECIPES, action="append", help="the others stay")
    options = parser.parse_args()
    recipes = json.loads(options.out.read_text())["recipes"] if options.out.exists() else {}
    for name in options.only or RECIPES:
        command, wanted = RECIPES[name]
        with tempfile.TemporaryDirectory() as folder:
            found = run(command, Path(folder))
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        about = {"command": command, "wanted_accuracy": wanted, "date": date}
        recipes[name] = about | found | {"environment": environment()}
        write_json(
            options.out, {"recipes": {name: recipes[name] for name in RECIPES if name in recipes}}
        )


if __name__ == "__main__":
    main()
