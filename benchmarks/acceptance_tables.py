"""Write what an acceptance on a GPU found into documents, and as a page.

python -m benchmarks.acceptance_tables RECORD                        prints the table
python -m benchmarks.acceptance_tables RECORD --page gpu.html        writes the page of all rows
python -m benchmarks.acceptance_tables RECORD --into docs/*.md       replaces the table there

A document has the table between the lines ``<!-- gpu -->`` and ``<!-- end -->``. Records of dry
runs are refused: their figures mean nothing.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from gpuclf.bench.measure.record import VERSION
from gpuclf.bench.report.markdown import markdown_table
from gpuclf.bench.report.page import render_page
from gpuclf.files import format_seconds

PLACE = re.compile(r"(<!-- gpu -->\n).*?(<!-- end\b)", re.S)


def results(record):
    """Return by name what the steps found that found something."""
    return {step["name"]: step["result"] for step in record["steps"] if step.get("result")}


def timings(record):
    """Return the results of the timed cases, by label."""
    parts = {name.partition(": "): found for name, found in results(record).items()}
    return {label: found for (kind, _, label), found in parts.items() if kind == "timings"}


def bench_record(record):
    """Return the timed rows in the form of ``gpuclf bench --json``, for page and comparisons."""
    found = results(record)
    environment = found.get("environment", {})
    budget = None if record["status"] == "complete" else record["status"]
    return {
        "version": VERSION,
        "command": "python -m benchmarks.acceptance --out DIR",
        "recorded": record["started"],
        "dataset": {"name": environment.get("data", "synthetic images")},
        "settings": record["settings"],
        "environment": environment.get("machine", {}) | {"commit": environment.get("commit")},
        "ceilings": None,
        "gpu_ceilings": found.get("ceilings"),
        "rows": [row for of_case in timings(record).values() for row in of_case["rows"]],
        "break_even": [],
        "unfinished": budget,
    }


def gpu_table(record):
    """Write device time and, in brackets, host time of every implementation in every case."""
    cases = timings(record)
    by_case = [{row["implementation"]: row for row in case["rows"]} for case in cases.values()]
    names = dict.fromkeys(name for rows in by_case for name in rows)
    lines = [[name, *(cell(rows.get(name)) for rows in by_case)] for name in names]
    machine = results(record).get("environment", {}).get("machine", {})
    gpu = machine.get("gpu", {})
    assumed = any(case.get("assumed") for case in cases.values())
    where = gpu.get("name") or gpu.get("reason", "a GPU")
    return (
        f"{markdown_table(['', *cases], lines)}\n\n{where}, {record['started'][:10]}. Median time "
        "of the device a call; in brackets, until the call has been queued. With an asterisk, the "
        f"host's time is in the device's.{' Floors were assumed, not measured.' * assumed}\n"
    )


def cell(row):
    """Write an implementation's times in a case."""
    if row is None or row["status"] != "timed":
        return "-" if row is None or row["status"] == "unavailable" else row["status"]
    device, host = row["device_s"], row.get("host_s")
    words = format_seconds(device["median"]) + r"\*" * bool(device.get("with_host"))
    return words + (f" ({format_seconds(host['median'])})" if host else "")


def main(argv=None):
    """Read the options, write; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acceptance_tables", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("record", type=Path)
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--into", type=Path, nargs="+", default=[], metavar="FILE")
    arguments = parser.parse_args(argv)
    record = json.loads(arguments.record.read_text())
    if record["dry_run"]:
        print(f"{arguments.record} is of a dry run: no figure in it means anything")
        return 2
    if not timings(record):
        print(f"{arguments.record} has no timings")
        return 2
    table = gpu_table(record)
    if arguments.page:
        arguments.page.write_text(render_page(bench_record(record)), encoding="utf-8")
    for path in arguments.into:
        before, *after = PLACE.split(path.read_text(encoding="utf-8"), 1)
        if not after:
            print(f"{path} has no place for the table: <!-- gpu --> and <!-- end -->")
            return 2
        path.write_text("".join([before, after[0], table, *after[1:]]), encoding="utf-8")
    if not (arguments.page or arguments.into):
        print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
