"""``gpuclf bench``: the measured ladder, the scaling curves, and how they compare with before."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TimeRemainingColumn

from gpuclf import interrupts
from gpuclf.cli import options, output
from gpuclf.files import write_json, write_whole

if TYPE_CHECKING:
    from gpuclf.bench import Case, Implementation, Row
    from gpuclf.bench.report.comparison import Change

__all__ = ["bench"]

LADDER_WEIGHT = 8  # of the time that a point of a curve gets
QUICK_SHARE = 0.2
N_TRAIN = 50_000  # of CIFAR-10, and of the synthetic images
CEILING_BYTES, CEILING_SIDE = 1 << 28, 2048
TRIES = 3  # at the ceilings, before a row is rejected by them


def _finite(value: float) -> float:
    """Refuse what would never end, or find nothing; some versions of click let NaN pass."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"must be finite, got {value}")
    return value


def bench(
    backend: options.BackendOption = options.BackendName.auto,
    dtype: options.DtypeOption = options.DtypeName.float32,
    data: options.DataOption = options.DataName.auto,
    data_dir: options.DataDirOption = None,
    seed: options.SeedOption = 0,
    samples: Annotated[
        int | None, typer.Option(min=200, help="Use this many training images; default all.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Compare with scikit-learn, PyTorch and JAX instead."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the cases of this group, or cases or implementations of this name, whose "
            "name contains this, or matches it where it has * or ?. May be given several times."
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List cases and implementations; measure nothing.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="No scaling curves, and a fifth of the time.")
    ] = False,
    time_budget: Annotated[
        float,
        typer.Option(
            min=0.0,
            callback=_finite,
            help="Seconds of timing in all; each case takes at least 5 rounds.",
        ),
    ] = 20.0,
    json: options.JsonOption = None,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, writable=True, help="Write a page with charts and tables."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write a Markdown table.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Compare with this JSON of an earlier run, or of pytest-benchmark; exit with 1 "
            "if this library became slower, a row broke, or nothing could be compared.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            callback=_finite,
            help="With --compare: the smallest change that counts; it must be significant as well.",
        ),
    ] = 0.1,
) -> None:
    """Measure the ladder: naive loops, textbook NumPy, this library on NumPy and on CuPy."""
    from gpuclf.bench import IMPLEMENTATIONS, PEERS, Inputs, run_case
    from gpuclf.bench.measure.break_even import remember_break_even
    from gpuclf.bench.measure.cases import SCALING
    from gpuclf.bench.measure.record import make_record
    from gpuclf.bench.measure.roofline import judge_rows
    from gpuclf.bench.report import comparison
    from gpuclf.bench.report.markdown import rows_markdown
    from gpuclf.bench.report.page import render_page
    from gpuclf.bench.report.records import read_record
    from gpuclf.bench.report.table import print_rows
    from gpuclf.devices.backends import get_backend
    from gpuclf.devices.machine import environment

    output.prepare(json, html=html, markdown=markdown)
    # Better refused now than after a minute.
    before = None if compare is None else read_record(compare)
    if backend is options.BackendName.cupy:
        get_backend("cupy")  # where it was asked for by name, "not run" would be no answer
    patterns = only or []
    # They take seconds a call and have peers of their own: only by their name.
    probes = any(pattern.lower().startswith("probe") for pattern in patterns)
    peers = peers or probes
    listed = [
        i
        for i in (*IMPLEMENTATIONS, *(PEERS if peers else ()))
        if not (peers and i.extrapolated) and not (backend == "numpy" and i.device == "cuda")
    ]
    if list_:
        cases = _cases(samples or N_TRAIN, peers, quick, probes or not patterns)
        cases, listed = _chosen(cases, listed, patterns)
        output.say("\n  ".join(["cases", *(f"{case.title} ({case.group})" for case in cases)]))
        output.say("\n  ".join(["implementations", *(i.name for i in listed)]))
        return
    rows: list[Row] = []
    done = 0
    with output.progress(TimeRemainingColumn()) as progress:
        task = progress.add_task("preparing the data", total=None)
        dataset = output.load(data, data_dir, seed)
        n_samples = min(samples or len(dataset.X_train), len(dataset.X_train))
        cases = _cases(n_samples, peers, quick, probes)
        titles = {case.title.lower() for case in cases}
        cases, listed = _chosen(cases, listed, patterns)
        progress.update(task, description="measuring the ceilings of this machine")
        devices = _devices(backend)
        ceilings = _ceilings(devices)
        cache = devices["cuda"].cache_bytes if "cuda" in devices else 0
        X, y = dataset.X_train[:n_samples], dataset.y_train[:n_samples]
        inputs = Inputs(X, y, dtype, seed, cache_bytes=cache)

        def finish(unfinished: str | None = None) -> dict[str, Any]:
            """Judge the rows, say and write what was found; return the record."""
            found = environment()
            undecided = judge_rows(rows, ceilings, inputs.n_features)
            record = make_record(
                rows,
                command=shlex.join(["gpuclf", *sys.argv[1:]]),
                dataset=output.describe(dataset),
                settings={
                    "dtype": dtype,
                    "seed": seed,
                    "samples": n_samples,
                    "backend": backend,
                    "peers": peers,
                    "quick": quick,
                    "time_budget_s": time_budget,
                    "only": [name for name in patterns if name.lower() not in titles],
                },
                environment=found,
                ceilings=ceilings,
                unfinished=unfinished,
            )
            output.say(f"data: {dataset.source}; {n_samples:,} x {inputs.n_features:,}, {dtype}")
            output.say(f"machine: {output.machine_line(found)}")
            if rows:
                print_rows(rows, output.console)
                if comparison.is_overloaded(record["rows"]):
                    output.say(
                        "the machine was busy: most calls took 3 times as long as the fastest ones"
                    )
                if undecided:
                    output.say(
                        f"the machine was busy: {undecided} rows have no floor, because its "
                        "ceilings could not be measured"
                    )
                output.save(json, lambda path: write_json(path, record))
                output.save(html, lambda path: write_whole(path, render_page(record)))
                output.save(markdown, lambda path: write_whole(path, rows_markdown(record)))
            return record

        def keep() -> str:
            if not rows:
                return f"after {done} of {len(cases)} cases: nothing is written"
            finish(f"interrupted after {done} of {len(cases)} cases")
            return f"after {done} of {len(cases)} cases; what was finished is shown"

        output.if_interrupted(keep)
        weights = [1 if case.group in SCALING else LADDER_WEIGHT for case in cases]
        budget = time_budget * (QUICK_SHARE if quick else 1.0)
        progress.update(task, total=sum(weights))
        for case, weight in zip(cases, weights, strict=True):
            # Loops, and what is not there, are left out of the curves: the ladder says why.
            of_case = [
                i
                for i in listed
                if case.group not in SCALING or (i.device in devices and not i.extrapolated)
            ]

            def advance(what: str, share: float = weight / (len(of_case) + 1)) -> None:
                progress.update(task, description=what, advance=share)

            measured = run_case(
                case,
                inputs,
                of_case,
                devices=devices,
                advance=advance,
                time_budget_s=budget * weight / sum(weights),
                seed=seed,
            )
            rows, done = rows + measured, done + 1
        progress.update(task, description="measuring the ceilings of this machine again")
        ceilings = _ceilings(devices, before=ceilings, rows=rows, n_features=inputs.n_features)
    with interrupts.deferred():
        record = finish()
        output.if_interrupted(lambda: "when all was measured")
    if not rows:
        output.say("no implementation that can run here was chosen: nothing is written")
        raise typer.Exit(1)
    if (least := record["break_even"][0]["samples"]) is not None:
        remember_break_even(least * inputs.n_features)  # --backend auto then knows it
    bad = any(row.status in ("wrong", "failed", "rejected") for row in rows)
    if before is not None:
        compared = comparison.compare_records(before, record, threshold)
        if suspects := compared.regressions:
            output.say("slower rows are measured again, in another process")
            again = _again(record["settings"], suspects, data, data_dir)
            fair = comparison.undisturbed(record, again)
            compared = comparison.compare_records(before, fair, threshold)
        comparison.print_comparison(compared, output.console)
        bad = bad or not compared.passed
    if bad:
        raise typer.Exit(1)


def _cases(n_samples: int, peers: bool, quick: bool, probes: bool) -> list[Case]:
    from gpuclf.bench import default_cases, peer_cases, probe_cases, scaling_cases

    of_embeddings = probe_cases(n_samples) if probes else []
    if peers:
        return peer_cases(n_samples) + of_embeddings
    # At 200 samples a mini-batch is the training set: the same case only once.
    cases = list({case.title: case for case in default_cases(n_samples)}.values())
    return cases + ([] if quick else scaling_cases(n_samples)) + of_embeddings


def _chosen(
    cases: list[Case], listed: list[Implementation], patterns: list[str]
) -> tuple[list[Case], list[Implementation]]:
    """Keep what a pattern names; where none names a case (an implementation), all of them."""

    def matching(names: Iterable[str], pattern: str) -> set[str]:
        exact = {name for name in names if name.lower() == pattern.lower()}
        pattern = pattern if any(c in pattern for c in "*?") else f"*{pattern}*"
        pattern = pattern.lower().replace("[", "[[]")
        return exact or {name for name in names if fnmatch(name.lower(), pattern)}

    chosen_cases, chosen = set(), set()
    for pattern in patterns:
        titles = matching([case.title for case in cases], pattern)
        titles |= {case.title for case in cases if case.group == pattern.lower()}
        names = matching([i.name for i in listed], pattern)
        if not titles and not names:
            raise typer.BadParameter(
                f"--only {pattern!r} names no case and no implementation: see gpuclf bench --list"
            )
        chosen_cases |= titles
        chosen |= names
    return (
        [case for case in cases if not chosen_cases or case.title in chosen_cases],
        [i for i in listed if not chosen or i.name in chosen],
    )


def _devices(backend: options.BackendName) -> dict[str, Any]:
    """Return the devices by name."""
    from gpuclf.bench.measure.devices import CudaDevice, Device, HostDevice
    from gpuclf.devices.cupy import probe_cupy

    devices: dict[str, Device] = {"cpu": HostDevice()}
    if backend is not options.BackendName.numpy and probe_cupy().usable:
        devices["cuda"] = CudaDevice()
    return devices


def _ceilings(
    devices: dict[str, Any],
    before: dict[str, Any] | None = None,
    rows: Iterable[Row] = (),
    n_features: int = 0,
) -> dict[str, Any]:
    """Measure the devices' ceilings, and keep the best: a busy moment only lowers them.

    Again, as long as a row is faster than they allow, and they have not been measured `TRIES`
    times.
    """
    from gpuclf.bench.measure.roofline import best_of, measure_ceilings, too_fast

    sizes = {"cpu": (CEILING_BYTES, CEILING_SIDE)}
    best = before or {}
    for _ in range(TRIES):
        found = {
            name: measure_ceilings(device, *sizes.get(name, ())) for name, device in devices.items()
        }
        best = best_of(best, found)
        if not any(too_fast(row, best, n_features) for row in rows):
            break
    return best


def _again(
    settings: dict[str, Any],
    regressions: list[Change],
    data: options.DataName,
    data_dir: Path | None,
) -> dict[str, Any]:
    """Measure the cases that became slower again, in a process of its own."""
    from gpuclf.bench.report.comparison import TOGETHER
    from gpuclf.bench.report.records import read_record

    cases = {change.case for change in regressions} - {TOGETHER[0]}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "again.json"
        given = {"json": path, "data": data, "time-budget": settings["time_budget_s"]}
        given |= {name: settings[name] for name in ("dtype", "seed", "samples", "backend")}
        given |= {} if data_dir is None else {"data-dir": data_dir}
        pairs = [*given.items(), *(("only", name) for name in (*cases, *settings["only"]))]
        command = [sys.executable, "-m", "gpuclf.cli", "bench"]
        command += [f"--{name}" for name in ("peers", "quick") if settings[name]]
        command += [f"--{name}={value}" for name, value in pairs]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not path.exists():
            raise RuntimeError(f"measuring again failed: {done.stderr.strip()[-300:]}")
        return read_record(path)
