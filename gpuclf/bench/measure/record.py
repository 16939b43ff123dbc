"""The record of a run, as JSON keeps it and the page, the comparison and the pictures read it."""

from __future__ import annotations

import math
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuclf.bench.measure.timing import Row

__all__ = ["VERSION", "break_even", "make_record"]

VERSION = 3  # before, "naive loops" was the name of the pure Python loops
OPERATION = "softmax loss+gradient"  # whose break-even is sought
SIDES = ("gpuclf on NumPy, uint8", "gpuclf on CuPy, uint8")


def make_record(
    rows: list[Row],
    *,
    command: str,
    dataset: dict[str, Any],
    settings: dict[str, Any],
    environment: dict[str, Any],
    ceilings: dict[str, dict[str, Any]],
    unfinished: str | None = None,
) -> dict[str, Any]:
    """Put together what a run found.

    Parameters
    ----------
    rows : list of Row
    command : str
        That reproduces it.
    dataset, settings, environment : dict
        On what it ran.
    ceilings : dict
        For each device's name, "cpu" or "cuda", what
        :func:`gpuclf.bench.measure.roofline.measure_ceilings` found.
    unfinished : str, optional
        Why the run ended early.
    """
    return {
        "version": VERSION,
        "command": command,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": dataset,
        "settings": settings,
        "environment": environment | {"commit": _commit()},
        "ceilings": ceilings.get("cpu"),
        "gpu_ceilings": ceilings.get("cuda"),
        "rows": [row.as_dict() for row in rows],
        "break_even": [break_even(rows)],
        "unfinished": unfinished,
    }


def break_even(rows: list[Row]) -> dict[str, Any]:
    """Find the number of samples from which the GPU is faster, on the curve over samples.

    Parameters
    ----------
    rows : list of Row

    Returns
    -------
    dict
        "operation", "between" (two implementations), "samples" (None where there is no such size)
        and "reason".
    """
    curves: list[dict[int, float]] = [
        {
            row.samples: row.median_s
            for row in rows
            if row.operation == OPERATION
            and row.models == 1
            and row.classes == 10
            and row.implementation == name
            and row.median_s
            and row.status == "timed"
        }
        for name in SIDES
    ]
    found: dict[str, Any] = {
        "operation": OPERATION,
        "between": list(SIDES),
        "samples": None,
        "reason": None,
    }
    sizes = sorted(curves[0].keys() & curves[1].keys())
    if not sizes:
        reasons = [r.reason for r in rows if r.implementation == SIDES[1] and r.reason]
        return found | {"reason": reasons[0] if reasons else "no size was timed on both"}
    # The logarithm of a ratio of times is nearly straight between neighbouring sizes.
    leads = [math.log(curves[0][n] / curves[1][n]) for n in sizes]
    if leads[-1] <= 0:
        return found | {"reason": f"NumPy is faster up to {sizes[-1]:,} samples"}
    last = max((i for i, lead in enumerate(leads) if lead <= 0), default=None)
    if last is None:
        samples: float = sizes[0]
        found["reason"] = f"CuPy is faster from the smallest size, {sizes[0]:,} samples"
    else:
        share = -leads[last] / (leads[last + 1] - leads[last])
        low, high = math.log(sizes[last]), math.log(sizes[last + 1])
        samples = math.exp(low + share * (high - low))
    return found | {"samples": round(samples)}


def _commit() -> str | None:
    """Name the commit of a checkout, and whether it was changed; an installed package has none."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None  # a virtual environment may lie in somebody's repository
    commit = git("rev-parse", "HEAD")
    return f"{commit} with changes" if git("status", "--porcelain", "--", ".") else commit
