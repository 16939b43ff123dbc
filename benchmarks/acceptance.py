"""Prove and time everything on the GPU of this machine, in one command.

python -m benchmarks.acceptance --out DIR              with a GPU; about six minutes
python -m benchmarks.acceptance --out DIR --dry-run    without one: every step, small, on NumPy

Needs no installation: it runs from a checkout, without network. DIR/acceptance.json is rewritten
after every step, so that stopping loses nothing that is finished.

Exit code: 0 if all is well, 1 if a step failed, 2 for a wrong option, 3 without a usable GPU, 4 if
the time budget ended it, 128 + n after signal n.
"""

import argparse
import fnmatch
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.acceptance_context import ROOT, Settings
from benchmarks.acceptance_steps import STEPS
from gpuclf.devices.cupy import probe_cupy
from gpuclf.files import format_seconds, write_json

RECORD = "acceptance.json"
TIME_BUDGET_S = 560.0
LEAST_S = 3.0  # less than this, and a step is not begun
LIMITS_S = {  # so that no step takes the time of those that follow
    "environment": 60.0,
    "gpu tests": 105.0,
    "parity": 60.0,
    "determinism": 40.0,
    "compute-sanitizer memcheck": 40.0,
    "compute-sanitizer racecheck": 40.0,
    "ceilings": 30.0,
    "timings: softmax epoch": 60.0,
    "training": 40.0,
    "walks of the linear pass": 60.0,
    "cold starts": 75.0,
}
TIMINGS_LIMIT_S = 90.0
FAILED, WRONG_OPTION, NO_GPU, TIME_SPENT = 1, 2, 3, 4
STYLES = {
    "passed": "green",
    "failed": "red",
    "skipped": "yellow",
    "incomplete": "yellow",
    "not reached": "dim",
}


class Stopped(BaseException):
    """A signal asks to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Worker:
    """A process that runs steps, started when it is needed and replaced when it dies."""

    def __init__(self, settings, log):
        self._settings, self._log, self._process = settings, log, None

    def ask(self, step, known, limit_s, advance):
        """Have a step done; return its answer, or why there is none after that time."""
        self._start()
        began = time.monotonic()  # the same clock in all processes of a machine
        request = {"step": step, "known": known, "ends": began + limit_s}
        with suppress(BrokenPipeError):  # if it has died, the next message is its end
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while True:
            left = limit_s - (time.monotonic() - began)
            try:
                message = self._messages.get(timeout=max(left, 0.01))
            except queue.Empty:
                self.close()
                reason = f"ended after its limit of {limit_s:.0f} s"
                return {"status": "failed", "message": reason, "seconds": limit_s}
            if message is None:
                self.close()
                seconds = round(time.monotonic() - began, 3)
                reason = f"its process died with code {self._code}; see {self._log.name}"
                return {"status": "failed", "message": reason, "seconds": seconds}
            if "answer" in message:
                if message["answer"].pop("broken", False):
                    self.close()
                return message["answer"]
            advance(message["progress"])

    def _start(self):
        if self._process is not None:
            return
        options = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
        if self._settings.dry_run:
            options["OMP_NUM_THREADS"] = "1"  # arrays so small gain nothing by threads
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.acceptance_steps",
                "--serve",
                json.dumps(asdict(self._settings)),
            ],
            cwd=ROOT,
            env={**os.environ, **options},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # with what it starts, it ends as one group
        )
        self._messages = queue.Queue()
        arguments = (self._process.stdout, self._messages)
        self._reader = threading.Thread(target=self._read, args=arguments, daemon=True)
        self._reader.start()

    @staticmethod
    def _read(lines, messages):
        with lines:  # closed here: elsewhere that would wait for this thread
            for line in lines:
                messages.put(json.loads(line))
        messages.put(None)

    def close(self):
        """End the process and all that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._code = self._process.wait()
        self._reader.join(timeout=2)  # a child that lives on may hold the pipe
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None


@contextmanager
def signals_raise():
    """Turn SIGINT and SIGTERM into `Stopped`."""

    def stop(number, _frame):
        raise Stopped(number)

    previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(settings, folder, worker, names, time_budget_s):
    """Run the steps in order and keep the record; return it with the exit code."""
    record = {
        "dry_run": settings.dry_run,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in asdict(settings).items() if key != "out"},
        "steps": [{"name": name, "status": "not reached"} for name in STEPS],
    }
    path, began, code = folder / RECORD, time.monotonic(), 0
    write_json(path, record)
    known = {}
    try:
        with signals_raise():
            for step in record["steps"]:
                name = step["name"]
                if not any(fnmatch.fnmatch(name, pattern) for pattern in names):
                    step |= {"status": "skipped", "message": "not asked for"}
                    continue
                left = time_budget_s - (time.monotonic() - began)
                if left < LEAST_S:
                    code = TIME_SPENT
                    break
                say(name, "begun")
                step["status"] = "running"
                limit = min(LIMITS_S.get(name, TIMINGS_LIMIT_S), left)
                step |= worker.ask(name, known, limit, lambda what, name=name: say(name, what))
                say(name, step)
                if step.get("result") is not None and name == "ceilings":
                    known["ceilings"] = step["result"]
                record["elapsed_s"] = round(time.monotonic() - began, 1)
                write_json(path, record)
        record["status"] = "time budget spent" if code else "complete"
    except Stopped as stopped:
        code = 128 + stopped.number
        record["status"] = f"stopped by {stopped}"
        for step in record["steps"]:
            if step["status"] == "running":
                step |= {"status": "not reached", "message": f"stopped by {stopped} while it ran"}
    finally:
        worker.close()
        record["elapsed_s"] = round(time.monotonic() - began, 1)
        write_json(path, record)
    if code == 0 and any(step["status"] == "failed" for step in record["steps"]):
        code = FAILED
    return record, code


def say(name, what):
    """Print what became of a step; what it does next only on a terminal."""
    if isinstance(what, dict):
        detail = f": {what['message'][:200]}" if what.get("message") else ""
        print(f"{name}: {what['status']} after {what['seconds']:.1f} s{detail}", flush=True)
    elif sys.stdout.isatty():
        print(f"{name}: {what}", flush=True)


# ------------------------------------------------------------------------------------- report


def print_record(record, console):
    """Print the record in fewer than 60 lines: the steps, then the times of every case."""
    title = "acceptance" + (
        " (DRY RUN on NumPy: no figure here means anything)" * record["dry_run"]
    )
    steps = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    steps.add_column("step", min_width=max(map(len, STEPS)), no_wrap=True)
    steps.add_column("status", min_width=len("not reached"), no_wrap=True)
    steps.add_column("seconds", min_width=len("seconds"), no_wrap=True, justify="right")
    steps.add_column("", no_wrap=True)
    for step in record["steps"]:
        status = step["status"]
        seconds = f"{step['seconds']:.1f}" if "seconds" in step else ""
        note = step.get("message") or summary(step)
        steps.add_row(
            step["name"],
            f"[{STYLES.get(status, '')}]{status}[/]",
            seconds,
            note.replace("[", r"\["),
        )
    console.print(steps)
    timed = {
        step["name"].partition(": ")[2]: step["result"]["rows"]
        for step in record["steps"]
        if step["name"].startswith("timings: ") and step.get("result")
    }
    if timed:
        console.print(times_table(timed))
        console.print("median of CUDA events a call; share of the floor in percent", style="dim")
    console.print(f"{record['status']} after {record['elapsed_s']:.0f} s", highlight=False)


def summary(step):
    """Say in a few words what a step found."""
    found = step.get("result") or {}
    if step["name"] == "environment" and found.get("machine"):
        return found["machine"]["gpu"]["reason"]
    if step["name"] == "gpu tests" and "summary" in found:
        return found["summary"]
    if step["name"] == "parity":
        return f"{sum(record['passed'] for record in found.values())} of {len(found)} agree"
    if step["name"] == "determinism" and found:
        runs = [call["runs"] for call in found.values()]
        return f"{len(found)} calls, {min(runs)} to {max(runs)} runs each, same bits"
    if step["name"] == "ceilings" and found:
        rates, operations = found["bytes_per_s"], found["operations_per_s"]
        fastest = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in operations.items())
        return f"copy {rates.get('copy', 0) / 1e12:.3g} TB/s; TFLOP/s: {fastest}"
    if step["name"] == "cold starts" and found:
        firsts = [row for row in found["rows"] if "first_call_s" in row]
        return ", ".join(f"{r['implementation']} {r['first_call_s']:.2g} s" for r in firsts)
    if step["name"].startswith("walks") and found:
        rows = [row for row in found["rows"] if row["status"] == "timed"]
        medians = {r["implementation"]: format_seconds(r["device_s"]["median"]) for r in rows}
        return ", ".join(f"{name[5:]} {median}" for name, median in medians.items())
    if step["name"].startswith("timings") and found:
        statuses = [row["status"] for row in found["rows"]]
        return ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
    return ""


def times_table(timed):
    """Put implementations in rows and cases in columns."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("median, % of floor", no_wrap=True)
    names = dict.fromkeys(row["implementation"] for rows in timed.values() for row in rows)
    for label in timed:
        table.add_column(label, justify="right", no_wrap=True)
    for name in names:
        cells = []
        for rows in timed.values():
            (row,) = [row for row in rows if row["implementation"] == name] or [None]
            cells.append(cell(row))
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("gpuclf against the best peer", *map(advantage, timed.values()))
    return table


def advantage(rows):
    """Return how many times faster this library is than the best of the others, in float32."""
    medians = {True: [], False: []}
    for row in rows:
        if row["status"] == "timed" and row["precision"] == "float32" and not row["uploads"]:
            ours = row["implementation"].startswith("gpuclf")
            # Events around a call that is waited for count its launch too; a queue hides it.
            medians[ours].append(min(row[kind]["median"] for kind in ("device_s", "queued_s")))
    if not all(medians.values()):
        return "-"
    return f"{min(medians[False]) / min(medians[True]):.2f}x"


def cell(row):
    """Return a row's median and share of its floor, or what became of it."""
    if row is None or row["status"] == "unavailable":
        return "-"
    if row["status"] != "timed":
        return f"[red]{row['status'].upper()}[/]"
    median = format_seconds(row["device_s"]["median"])
    return f"{median} {100 * row['share_of_floor']:3.0f}"


# ------------------------------------------------------------------------------------ command


def main(argv=None):
    """Read the options, run, print; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acceptance",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the record")
    parser.add_argument("--dry-run", action="store_true", help="every step, small, on NumPy")
    parser.add_argument(
        "--time-budget", type=float, default=TIME_BUDGET_S, metavar="SECONDS", help="end after this"
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="STEP", help="names or patterns of steps"
    )
    parser.add_argument("--commit", default="", help="recorded where git does not know it")
    arguments = parser.parse_args(argv)
    folder = arguments.out.resolve()
    if arguments.dry_run and folder.is_relative_to(ROOT / "benchmarks" / "results"):
        print("a dry run's record must not lie under benchmarks/results: pass another --out")
        return WRONG_OPTION
    unknown = [p for p in arguments.only if not fnmatch.filter(STEPS, p)]
    if unknown:
        print(f"no step is called {', '.join(unknown)}; there are: {', '.join(STEPS)}")
        return WRONG_OPTION
    if not arguments.dry_run and not (probe := probe_cupy()).usable:
        print(f"no usable GPU: {probe.reason}. `--dry-run` goes through every step on NumPy.")
        return NO_GPU
    folder.mkdir(parents=True, exist_ok=True)
    make = Settings.rehearsal if arguments.dry_run else Settings
    settings = make(out=str(folder), commit=arguments.commit)
    console = Console(width=None if sys.stdout.isatty() else 150)
    with (folder / "acceptance.log").open("w") as log:
        worker = Worker(settings, log)
        record, code = run(settings, folder, worker, arguments.only, arguments.time_budget)
    print_record(record, console)
    print(f"record: {arguments.out / RECORD}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
