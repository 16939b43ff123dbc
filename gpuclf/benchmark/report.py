"""The result for people (a table, a ladder) and for machines (JSON)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpuclf.benchmark.timing import Row

__all__ = ["format_seconds", "print_rows", "write_json"]

BAR_WIDTH = 12
# Hundreds of samples on a line each would bury the rest. (No string holds a line break in JSON.)
NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+)\]")


def format_seconds(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit.

    Examples
    --------
    >>> format_seconds(0.0734), format_seconds(4000.0)
    ('73.4 ms', '1.11 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds * 1e9:.0f} ns"


def print_rows(rows: list[Row], console: Console) -> None:
    """Print one table for each case: times, speed-ups, and bars on a logarithmic scale."""
    cases = list(dict.fromkeys((row.operation, row.samples) for row in rows))
    for operation, samples in cases:
        of_case = [r for r in rows if (r.operation, r.samples) == (operation, samples)]
        console.print(_table(f"{operation}, {samples:,} samples", of_case))
    if any(row.extrapolated for row in rows):
        console.print("* extrapolated: run on that many samples, time scaled up", style="dim")
    for reason in dict.fromkeys(row.unavailable for row in rows if row.unavailable):
        console.print(Text.assemble(("not run: ", "yellow"), reason))


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("implementation", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("p20..p80", justify="right", style="dim", no_wrap=True)
    table.add_column("vs textbook", justify="right", no_wrap=True)
    table.add_column("log speed", no_wrap=True)
    textbook = next((r.median_s for r in rows if r.implementation == "textbook NumPy"), None)
    medians = [row.median_s for row in rows if row.median_s]
    for row in rows:
        name = row.implementation
        if row.median_s is None or row.p20_s is None or row.p80_s is None:
            table.add_row(name, "not run", style="dim")
            continue
        if row.extrapolated:
            name += f" * ({row.measured_samples})"
        low, high = row.p20_s / row.median_s - 1, row.p80_s / row.median_s - 1
        table.add_row(
            name,
            format_seconds(row.median_s),
            f"{100 * low:+.0f}..{100 * high:+.0f}%",
            _ratio(textbook / row.median_s) if textbook else "",
            _bar(row.median_s, medians),
        )
    return table


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio >= 0.01 else f"1/{1 / ratio:,.0f}"


def _bar(seconds: float, medians: list[float]) -> Text:
    slowest, fastest = max(medians), min(medians)
    span = math.log10(slowest / fastest) if slowest > fastest else 1.0
    share = math.log10(slowest / seconds) / span
    return Text("█" * max(1, round(BAR_WIDTH * share)), style="green")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the result as JSON, whole or not at all, creating the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    text = json.dumps(content, indent=1)
    text = NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
