"""Prove and time everything on the GPU of this machine, in one command.

python -m benchmarks.acceptance --out DIR --first-contact  on a GPU that no kernel has met yet
python -m benchmarks.acceptance --out DIR                  with a GPU; about six minutes
Either with --dry-run: without a GPU, every step, small, on NumPy and kernels on the CPU.

The first contact takes 75 s, and what is left of 150 s for memcheck: each kernel is named before it
is waited for, so that what hangs or breaks the device is known. Do what it asks for, then the rest.

Needs no installation: it runs from a checkout, without network. DIR/acceptance.json is rewritten
after every step, so that stopping loses nothing that is finished. CuPy's compiled kernels are kept
in DIR/kernels, or where CUPY_CACHE_DIR says, for later runs.

Exit code: 0 if all is well, 1 if a step failed, 2 for a wrong option, 3 without a usable GPU, 4 if
the time budget ended it, 128 + n after signal n.
"""

import argparse
import fnmatch
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.markup import escape

from benchmarks.acceptance_context import ROOT, Settings
from benchmarks.acceptance_first_contact import FIRST_CONTACT, LAUNCH
from benchmarks.acceptance_steps import STEPS, serve
from gpuclf.bench.report.table import new_table
from gpuclf.devices.cupy import probe_cupy
from gpuclf.files import format_seconds, write_json

LEAST_S = 3.0  # less than this, and a step is not begun
END_S = 10.0  # a process that a GPU holds may not end, and the others are still to be timed
STRETCH_OF_REHEARSAL = 6  # a CPU compiles kernels for itself, and may be busy


@dataclass(frozen=True)
class Plan:
    """Steps in order, and how long they may take.

    Attributes
    ----------
    record : str
        The name of the file.
    steps : dict of callable
    budget_s : float
        All together.
    limits_s : dict of float
        Of single steps, so that none takes the time of those that follow.
    limit_s : float
        Of the others.
    ends_s : dict of float
        When single steps have to have ended instead, in seconds from the beginning.
    """

    record: str
    steps: dict
    budget_s: float
    limits_s: dict
    limit_s: float = 90.0
    ends_s: dict = field(default_factory=dict)


ACCEPTANCE = Plan(
    "acceptance.json",
    STEPS,
    500.0,
    {
        "environment": 45.0,  # imports PyTorch and JAX, from a disk that may be cold
        "ceilings": 30.0,
        "timings: softmax epoch": 60.0,
        "walks of the linear pass": 60.0,
        "training": 40.0,
        "gpu tests": 105.0,
        "parity": 75.0,
        "determinism": 40.0,
        "cold starts": 75.0,
        "small run": 45.0,
        "compute-sanitizer memcheck": 90.0,
        "compute-sanitizer racecheck": 40.0,
    },
)
CONTACT = Plan(
    "first_contact.json",
    FIRST_CONTACT,
    75.0,
    {"environment": 45.0, "compute-sanitizer memcheck": 90.0},
    limit_s=20.0,
    ends_s={"compute-sanitizer memcheck": 150.0},
)
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

    def __init__(self, settings, log, steps):
        self._settings, self._log, self._steps = settings, log, steps
        self._process = None

    def ask(self, step, known, limit_s, advance):
        """Have a step done; return its answer, or why there is none after that time."""
        if self._process is None:
            self._start()
        began = time.monotonic()  # the same clock in all processes of a machine
        last = None
        try:
            self._pipe.send((step, known, began + limit_s))
            while self._pipe.poll(max(began + limit_s - time.monotonic(), 0.01)):
                found = self._pipe.recv()
                if isinstance(found, dict):
                    if found.pop("broken", False):
                        self.close()
                    return found
                last = found
                advance(found)
            self.close()
            reason = f"ended after its limit of {limit_s:.0f} s"
        except (EOFError, ConnectionError):
            code = self.close()
            reason = f"its process died with code {code}; see {self._log}"
        reason += f"; it was at: {last}" * (last is not None)
        seconds = round(time.monotonic() - began, 3)
        return {"status": "failed", "message": reason, "seconds": seconds}

    def _start(self):
        # CuPy compiles some fifty kernels of its own, in two thirds of the time with CUDA's headers
        # precompiled. A machine that is lent forgets them: the folder takes them to the next one.
        kernels = os.environ.get("CUPY_CACHE_DIR") or str(Path(self._settings.out) / "kernels")
        options = {"CUPY_NVRTC_USE_PCH": "1", "CUPY_CACHE_DIR": kernels}
        options["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        # A bare machine has compiled nothing for its CPU, which is not on trial: what results are
        # held against is NumPy alone, within the limits of steps.
        options["NUMBA_DISABLE_JIT"] = "1"
        if self._settings.dry_run:
            options["OMP_NUM_THREADS"] = "1"  # arrays so small gain nothing by threads
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (self._settings, theirs, str(self._log), self._steps)
        process = context.Process(target=serve, args=arguments)
        with mock.patch.dict(os.environ, options):
            process.start()
        self._process = process
        theirs.close()

    def close(self):
        """End the process and all that it has started; return the code that it ended with."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        with suppress(ProcessLookupError):  # before it leads a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(END_S)
        self._pipe.close()
        return process.exitcode


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


def run(plan, settings, folder, worker, names, time_budget_s=None):
    """Run the steps in order and keep the record; return it with the exit code."""
    stretch = STRETCH_OF_REHEARSAL if settings.dry_run else 1
    budgets = {} if time_budget_s is not None else plan.ends_s
    time_budget_s = plan.budget_s * stretch if time_budget_s is None else time_budget_s
    record = {
        "dry_run": settings.dry_run,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {key: value for key, value in asdict(settings).items() if key != "out"},
        "steps": [{"name": name, "status": "not reached"} for name in plan.steps],
    }
    path, began, code = folder / plan.record, time.monotonic(), 0
    write_json(path, record)
    known = {}
    try:
        with signals_raise():
            for step in record["steps"]:
                name = step["name"]
                if not any(fnmatch.fnmatch(name, pattern) for pattern in names):
                    step |= {"status": "skipped", "message": "not asked for"}
                    continue
                ends = budgets[name] * stretch if name in budgets else time_budget_s
                left = ends - (time.monotonic() - began)
                if left < LEAST_S:
                    code = TIME_SPENT
                    continue
                say(name, "begun")
                step["status"] = "running"
                write_json(path, record)  # what no signal announces leaves the name of the step
                limit = min(stretch * plan.limits_s.get(name, plan.limit_s), left)
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
    elif sys.stdout.isatty() or what.startswith(LAUNCH):
        print(f"{name}: {what}", flush=True)


# ------------------------------------------------------------------------------------- report


def print_record(record, console):
    """Print the record in fewer than 60 lines: the steps, then the times of every case."""
    title = "acceptance" + (
        " (DRY RUN on NumPy: no figure here means anything)" * record["dry_run"]
    )
    table = new_table(title, ["status", "seconds"], first="step", last=" ")
    table.columns[-1].no_wrap = True
    for step in record["steps"]:
        status = f"[{STYLES.get(step['status'], '')}]{step['status']}[/]"
        seconds = f"{step['seconds']:.1f}" if "seconds" in step else ""
        table.add_row(step["name"], status, seconds, escape(step.get("message") or summary(step)))
    console.print(table)
    timed = {
        step["name"].partition(": ")[2]: step["result"]["rows"]
        for step in record["steps"]
        if step["name"].startswith("timings: ") and step.get("result")
    }
    if timed:
        console.print(times_table(timed))
        note = "median of CUDA events a call (*: host time in it); share of the floor in percent"
        console.print(note, style="dim")
    console.print(f"{record['status']} after {record['elapsed_s']:.0f} s", highlight=False)


def summary(step):
    """Say in a few words what a step found."""
    name, found = step["name"].partition(":")[0], step.get("result")
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        return found["message"]
    return SUMMARIES[name](found) if found and name in SUMMARIES else ""


def rates(found):
    products = found["operations_per_s"].items()
    fastest = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in products)
    return f"copy {found['bytes_per_s'].get('copy', 0) / 1e12:.3g} TB/s; TFLOP/s: {fastest}"


def runs(found):
    numbers = [call["runs"] for call in found.values()]
    return f"{len(found)} calls, {min(numbers)} to {max(numbers)} runs each, same bits"


def first_calls(found):
    rows = [row for row in found["rows"] if "first_call_s" in row]
    return ", ".join(f"{row['implementation']} {row['first_call_s']:.2g} s" for row in rows)


def medians(found):
    rows = [row for row in found["rows"] if row["status"] == "timed"]
    return ", ".join(f"{r['implementation'][5:]} {format_seconds(median(r))}" for r in rows)


def statuses(found):
    found = [row["status"] for row in found["rows"]]
    return ", ".join(f"{found.count(status)} {status}" for status in sorted(set(found)))


SUMMARIES = {
    "environment": lambda found: found["machine"]["gpu"]["reason"],
    "gpu tests": lambda found: found.get("summary", ""),
    "parity": lambda found: f"{sum(r['passed'] for r in found.values())} of {len(found)} agree",
    "determinism": runs,
    "ceilings": rates,
    "kernels": lambda found: f"{len(found['launched'])} kernels agree with NumPy",
    "full passes": lambda found: ", ".join(f"{k} {v['of_allowed']:.2g}" for k, v in found.items()),
    "cold starts": first_calls,
    "walks of the linear pass": medians,
    "timings": statuses,
}


def times_table(timed):
    """Put implementations in rows and cases in columns."""
    table = new_table("", list(timed), first="median, % of floor")
    by_case = [{row["implementation"]: row for row in rows} for rows in timed.values()]
    for name in dict.fromkeys(name for rows in by_case for name in rows):
        table.add_row(name, *(cell(rows.get(name)) for rows in by_case))
    table.add_section()
    table.add_row("gpuclf against the best peer", *map(advantage, timed.values()))
    return table


def advantage(rows):
    """Return how many times faster this library is than the best of the others, in float32."""
    times = {True: [], False: []}
    for row in rows:
        if row["status"] == "timed" and row["precision"] == "float32" and not row["uploads"]:
            ours = row["implementation"].startswith("gpuclf")
            # Events around a call that is waited for count its host time too; a queue hides it.
            times[ours].append(min(row[kind]["median"] for kind in ("device_s", "queued_s")))
    return f"{min(times[False]) / min(times[True]):.2f}x" if all(times.values()) else "-"


def cell(row):
    """Return a row's median and share of its floor, or what became of it."""
    if row is None or row["status"] == "unavailable":
        return "-"
    if row["status"] != "timed":
        return f"[red]{row['status'].upper()}[/]"
    mark = "*" * row["device_s"]["with_host"]
    return f"{format_seconds(median(row))}{mark} {100 * row['share_of_floor']:3.0f}"


def median(row):
    return row["device_s"]["median"]


# ------------------------------------------------------------------------------------ command


def main(argv=None):
    """Read the options, run, print; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acceptance", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="for the record")
    add("--first-contact", action="store_true", help="each kernel once, then memcheck")
    add("--dry-run", action="store_true", help="every step, small, on NumPy")
    add("--time-budget", type=float, metavar="SECONDS", help="end then; default 500, contact 75")
    add("--only", nargs="+", default=["*"], metavar="STEP", help="names or patterns of steps")
    add("--commit", default="", help="recorded where git does not know it")
    arguments = parser.parse_args(argv)
    folder = arguments.out.resolve()
    if arguments.dry_run and folder.is_relative_to(ROOT / "benchmarks" / "results"):
        print("a dry run's record must not lie under benchmarks/results: pass another --out")
        return WRONG_OPTION
    plan = CONTACT if arguments.first_contact else ACCEPTANCE
    unknown = [p for p in arguments.only if not fnmatch.filter(plan.steps, p)]
    if unknown:
        print(f"no step is called {', '.join(unknown)}; there are: {', '.join(plan.steps)}")
        return WRONG_OPTION
    if not arguments.dry_run and not (probe := probe_cupy()).usable:
        print(f"no usable GPU: {probe.reason}. `--dry-run` goes through every step on NumPy.")
        return NO_GPU
    folder.mkdir(parents=True, exist_ok=True)
    make = Settings.rehearsal if arguments.dry_run else Settings
    settings = make(out=str(folder), commit=arguments.commit)
    log = folder / Path(plan.record).with_suffix(".log")
    for path in (folder / plan.record, log):
        if path.exists():  # of a run whose figures may be all that there is
            path.replace(path.with_stem(f"{path.stem}_before"))
    log.write_text("")
    worker = Worker(settings, log, plan.steps)
    record, code = run(plan, settings, folder, worker, arguments.only, arguments.time_budget)
    print_record(record, Console(width=None if sys.stdout.isatty() else 190))
    print(f"record: {arguments.out / plan.record}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
