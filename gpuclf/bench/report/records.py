"""Records as they lie on disk, of today and of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpuclf.bench.measure.record import VERSION
from gpuclf.bench.report.schema import check_entry, check_record

__all__ = ["completed", "parse_record", "read_record"]

EXPECTED = "expected what `gpuclf bench --json` or `pytest --benchmark-json` writes"
MOST_BYTES = 1 << 26  # hundreds of times what a record has


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``gpuclf bench --json`` or pytest-benchmark's ``--benchmark-json`` wrote.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        In the form of ``gpuclf bench --json``; of pytest-benchmark's record what there is of it.

    Raises
    ------
    ValueError
        If the file holds anything else: the message names the file, the row and the key.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    try:
        return parse_record(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def parse_record(content: bytes) -> dict[str, Any]:
    """Return the record that a file of this content holds, as :func:`read_record` does."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"has over {MOST_BYTES >> 20} MiB; {EXPECTED}")
    try:
        record = json.loads(content)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}); {EXPECTED}") from None
    except RecursionError:
        raise ValueError(f"is nested too deeply; {EXPECTED}") from None
    if not isinstance(record, dict):
        raise ValueError(f"holds a {type(record).__name__}; {EXPECTED}")
    if "machine_info" in record and isinstance(record.get("benchmarks"), list):
        record = _of_pytest(record)
    elif "rows" in record and record.get("version", 1) not in range(1, VERSION + 1):
        raise ValueError(f"is of version {ascii(record['version'])[:40]}, known are 1 to {VERSION}")
    if not _are_rows(record.get("rows")):
        keys = ", ".join(ascii(key)[:40] for key in list(record)[:20])
        raise ValueError(f"has {keys or 'nothing'}; {EXPECTED}")
    try:
        check_record(record)
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}; {EXPECTED}") from None
    return completed(record)


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with what those of before do not have."""
    version = record.get("version", 1)
    n_hidden = 100 if (record.get("settings") or {}).get("peers") else 50
    rows = []
    for row in record["rows"]:
        reason = row.get("unavailable")
        known = {
            "case": f"{row['operation']}, {row['samples']:,} samples",
            "group": "ladder",
            "array_library": "",
            **dict.fromkeys(("median_s", "p20_s", "p80_s")),
            "device": "cuda" if row.get("array_library") == "cupy" else "cpu",
            "status": "unavailable" if reason else "timed",
            "reason": reason,
        }
        if version == 1 and row["operation"].startswith("two-layer loss"):
            known["hidden_units"] = n_hidden
        rows.append(known | row)
        if version < 3 and row["implementation"] == "naive loops":
            rows[-1]["implementation"] = "pure Python loops"  # what was called so until then
    dataset = record.get("dataset") or {}
    return record | {
        "version": VERSION,
        "environment": record.get("environment") or {},
        "dataset": {"name": dataset} if isinstance(dataset, str) else dataset,
        "rows": rows,
    }


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _of_pytest(record: dict[str, Any]) -> dict[str, Any]:
    """Return pytest-benchmark's record in the form of ours; what is not of our cases is left."""
    if not record["benchmarks"]:
        raise ValueError("holds no benchmarks: the run that wrote it was empty")
    rows = []
    for number, entry in enumerate(record["benchmarks"], 1):
        if not _is_of_cases(entry):
            continue
        check_entry(entry, number)
        row, times = entry["extra_info"], entry["stats"]["data"]
        if times:
            scale = row["samples"] / row["measured_samples"]
            times = [t * scale for t in times]
            p20, median, p80 = np.percentile(times, [20, 50, 80]).tolist()
            measured = {"times_s": times, "median_s": median, "p20_s": p20, "p80_s": p80}
            rows.append({"case": entry["group"], **row, **measured})
    if not rows:
        raise ValueError(
            "has no times of benchmarks/test_cases.py; saved runs need --benchmark-save-data"
        )
    info = record["machine_info"] if isinstance(record["machine_info"], dict) else {}
    cpu = info["cpu"] if isinstance(info.get("cpu"), dict) else {}
    known = {"cpu": cpu.get("brand_raw"), "cpu_count": cpu.get("count")}
    environment = info.get("gpuclf", known | {"python": info.get("python_version")})
    return {"version": VERSION, "environment": environment, "by_turns": False, "rows": rows}


def _is_of_cases(entry: Any) -> bool:
    """Whether it is of a case of ours, and its run kept the times."""
    if not isinstance(entry, dict):
        return False
    info, stats = entry.get("extra_info"), entry.get("stats")
    return (
        isinstance(info, dict)
        and "operation" in info
        and isinstance(stats, dict)
        and stats.get("data") is not None
    )
