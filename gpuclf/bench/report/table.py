"""The result for people (a table, a ladder) and for machines (JSON)."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpuclf.bench.measure.cases import SCALING
from gpuclf.bench.measure.timing import Row
from gpuclf.files import format_seconds

__all__ = [
    "axis_value",
    "format_ratio",
    "print_rows",
]

BAR_WIDTH = 10
STYLES = {"unavailable": "yellow", "wrong": "red", "failed": "red", "rejected": "red"}
STATUS_TEXTS = {"unavailable": "not run"}
# Hundreds of samples on a line each would bury the rest. (No string holds a line break in JSON.)


def print_rows(rows: list[Row], console: Console) -> None:
    """Print a table for each case: times, speed-ups, bars on a logarithmic scale; curves after."""
    for title in dict.fromkeys(row.case for row in rows if row.group not in SCALING):
        console.print(_table(title, [row for row in rows if row.case == title]))
    for group in SCALING:
        of_group = [row for row in rows if row.group == group]
        if of_group:
            console.print(_curve(group, of_group))
    console.print(
        "textbook: times faster than it; floor: share of what the machine could do at best; "
        "speed: logarithmic",
        style="dim",
    )
    if any(row.extrapolated for row in rows):
        console.print("* extrapolated: run on that many samples, time scaled up", style="dim")
    for status, style in STYLES.items():
        about = [row for row in rows if row.status == status and row.reason]
        if status == "unavailable":
            lines = list(dict.fromkeys(str(row.reason) for row in about))
        else:
            lines = [f"{row.implementation}, {row.case}: {row.reason}" for row in about]
        for line in lines:
            console.print(Text.assemble((f"{STATUS_TEXTS.get(status, status)}: ", style), line))


def _new_table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _table(title: str, rows: list[Row]) -> Table:
    table = _new_table(title)
    table.add_column("implementation", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("p20..p80", justify="right", style="dim", no_wrap=True)
    table.add_column("textbook", justify="right", no_wrap=True)
    table.add_column("floor", justify="right", no_wrap=True)
    table.add_column("speed", no_wrap=True)
    textbook = next((r.median_s for r in rows if r.implementation == "textbook NumPy"), None)
    medians = [row.median_s for row in rows if row.median_s and row.status == "timed"]
    for row in rows:
        name = row.implementation
        if row.status != "timed" or not (row.median_s and row.p20_s and row.p80_s):
            status = STATUS_TEXTS.get(row.status, row.status)
            table.add_row(name, status, style=STYLES[row.status] if row.reason else "dim")
            continue
        if row.extrapolated:
            name += f" * ({row.measured_samples})"
        low, high = row.p20_s / row.median_s - 1, row.p80_s / row.median_s - 1
        table.add_row(
            name,
            format_seconds(row.median_s),
            f"{100 * low:+.0f}..{100 * high:+.0f}%",
            format_ratio(textbook / row.median_s) if textbook else "",
            _share(row.share_of_floor),
            _bar(row.median_s, medians),
        )
    return table


def _curve(group: str, rows: list[Row]) -> Table:
    """Give each size a column; of several models, the time for each."""
    sizes = sorted({axis_value(row.group, row.as_dict()) for row in rows})
    what = f"{rows[0].operation}, time a model" if group == "models" else rows[0].operation
    title = f"{what}, against {group}"
    table = _new_table(title)
    table.add_column(group, no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for name in dict.fromkeys(row.implementation for row in rows):
        own = [row for row in rows if row.implementation == name]
        medians = {axis_value(r.group, r.as_dict()): r.median_s for r in own if r.median_s}
        divisors = {size: size if group == "models" else 1 for size in sizes}
        if medians:
            cells = (
                format_seconds(medians[size] / divisors[size]) if size in medians else ""
                for size in sizes
            )
            table.add_row(name, *cells)
    return table


def axis_value(group: str, row: dict[str, Any]) -> int:
    """Return where a row of a scaling group lies on its axis.

    Examples
    --------
    >>> axis_value("batch size", {"samples": 200, "models": 1})
    200
    """
    name = {"batch size": "samples"}.get(group, group.replace(" ", "_"))
    return int(row[name])


def format_ratio(ratio: float) -> str:
    """Write how many times faster something is; far below 1 as a fraction.

    Examples
    --------
    >>> format_ratio(3.804), format_ratio(1 / 2838)
    ('3.80x', '1/2,838')
    """
    return f"{ratio:.2f}x" if ratio >= 0.01 else f"1/{1 / ratio:,.0f}"


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"


def _bar(seconds: float, medians: list[float]) -> Text:
    slowest, fastest = max(medians), min(medians)
    span = math.log10(slowest / fastest) if slowest > fastest else 1.0
    share = math.log10(slowest / seconds) / span
    return Text("█" * max(1, round(BAR_WIDTH * share)), style="green")
