"""Records as they lie on disk, of today and of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpuclf.bench.measure.record import VERSION

__all__ = ["completed", "read_record"]

EXPECTED = "expected what `gpuclf bench --json` or `pytest --benchmark-json` writes"


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
        If the file holds anything else.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {EXPECTED}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; {EXPECTED}")
    if "machine_info" in record and isinstance(record.get("benchmarks"), list):
        record = _of_pytest(record)
        if not record["rows"]:
            raise ValueError(
                f"{path} has no times of benchmarks/test_cases.py; saved runs need "
                "--benchmark-save-data"
            )
    elif "rows" in record and record.get("version", 1) not in range(1, VERSION + 1):
        raise ValueError(f"{path} is of version {record['version']}, known are 1 to {VERSION}")
    if not _are_rows(record.get("rows")):
        raise ValueError(f"{path} has {', '.join(map(repr, record)) or 'nothing'}; {EXPECTED}")
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
    wanted = {"operation", "implementation", "samples", "times_s"}
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and wanted <= row.keys() for row in rows)
    )


def _of_pytest(record: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for entry in record["benchmarks"]:
        row, times = entry.get("extra_info", {}), entry.get("stats", {}).get("data")
        if "operation" in row and times:
            scale = row["samples"] / row["measured_samples"]
            times = [t * scale for t in times]
            p20, median, p80 = np.percentile(times, [20, 50, 80]).tolist()
            measured = {"times_s": times, "median_s": median, "p20_s": p20, "p80_s": p80}
            rows.append({"case": entry["group"], **row, **measured})
    info = record["machine_info"]
    cpu = info.get("cpu", {})
    known = {"cpu": cpu.get("brand_raw"), "cpu_count": cpu.get("count")}
    environment = info.get("gpuclf", known | {"python": info.get("python_version")})
    return {"version": VERSION, "environment": environment, "by_turns": False, "rows": rows}
