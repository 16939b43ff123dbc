"""The result for people (a table, a ladder), and its numbers in words."""

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
    "HEADER",
    "TEXTBOOK",
    "axis_value",
    "fastest",
    "format_number",
    "format_ratio",
    "format_share",
    "new_table",
    "print_rows",
    "row_cells",
]

BAR_WIDTH = 10
TEXTBOOK = "textbook NumPy"
STYLES = {"unavailable": "yellow", "wrong": "red", "failed": "red", "rejected": "red"}
STATUS_TEXTS = {"unavailable": "not run"}
HEADER = ["implementation", "median", "p20..p80", "textbook", "floor"]


def print_rows(rows: list[Row], console: Console) -> None:
    """Print a table for each case: times, speed-ups, bars on a logarithmic scale; curves after."""
    for title in dict.fromkeys(row.case for row in rows if row.group not in SCALING):
        of_case = [row.as_dict() for row in rows if row.case == title]
        console.print(_table(title, of_case, "█" if console.encoding.startswith("utf") else "#"))
    for group in SCALING:
        of_group = [row.as_dict() for row in rows if row.group == group]
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


def new_table(title: str, numbers: list[str], first: str = HEADER[0], last: str = "") -> Table:
    """Return a table with columns of words, numbers and, where it is named, words again."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if last:
        table.add_column(last)
    return table


def _table(title: str, rows: list[dict[str, Any]], mark: str) -> Table:
    table = new_table(title, HEADER[1:], last="speed")
    textbook = fastest(rows, TEXTBOOK)
    medians = [row["median_s"] for row in rows if _is_timed(row)]
    for row in rows:
        if _is_timed(row):
            cells = [Text(cell) for cell in row_cells(row, textbook)]
            cells[2].stylize("dim")
            table.add_row(*cells, _bar(row["median_s"], medians, mark))
        else:
            status = STATUS_TEXTS.get(row["status"], row["status"])
            style = STYLES[row["status"]] if row["reason"] else "dim"
            table.add_row(Text(row["implementation"]), status, style=style)
    return table


def _is_timed(row: dict[str, Any]) -> bool:
    return bool(row["median_s"]) and row["status"] == "timed"


def fastest(rows: list[dict[str, Any]], name: str, library: str = "") -> dict[str, Any] | None:
    """Return the fastest row, of those with a time, whose implementation begins so."""
    found = [
        row
        for row in rows
        if _is_timed(row)
        and row["implementation"].startswith(name)
        and library in ("", row["array_library"])
    ]
    return min(found, key=lambda row: row["median_s"], default=None)


def row_cells(row: dict[str, Any], textbook: dict[str, Any] | None) -> list[str]:
    """Return what tables say of a row that has a time, in the order of `HEADER`."""
    name, median = row["implementation"], row["median_s"]
    if row.get("extrapolated"):
        name += f" * ({row['measured_samples']})"
    low, high = (100 * (row[key] / median - 1) for key in ("p20_s", "p80_s"))
    return [
        name,
        format_seconds(median),
        f"{low:+.0f}..{high:+.0f}%",
        format_ratio(textbook["median_s"] / median) if textbook else "",
        format_share(row["share_of_floor"]) if row.get("share_of_floor") else "",
    ]


def _curve(group: str, rows: list[dict[str, Any]]) -> Table:
    """Give each size a column; of several models, the time for each."""
    sizes = sorted({axis_value(group, row) for row in rows})
    operation, models = rows[0]["operation"], group == "models"
    title = f"{operation}{', time a model' if models else ''}, against {group}"
    table = new_table(title, [f"{size:,}" for size in sizes], first=group)
    for name in dict.fromkeys(row["implementation"] for row in rows):
        medians = {
            axis_value(group, row): row["median_s"] / (row["models"] if models else 1)
            for row in rows
            if row["implementation"] == name and row["median_s"]
        }
        if medians:
            cells = (format_seconds(medians[n]) if n in medians else "" for n in sizes)
            table.add_row(Text(name), *cells)
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


def _bar(seconds: float, medians: list[float], mark: str) -> Text:
    slowest = max(medians)
    span = math.log10(slowest / min(medians)) or 1.0
    share = math.log10(slowest / seconds) / span
    return Text(mark * max(1, round(BAR_WIDTH * share)), style="green")


def format_number(value: float) -> str:
    """Write three digits, or the whole number.

    Examples
    --------
    >>> format_number(7.4), format_number(6014.8)
    ('7.40', '6,015')
    """
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}".rstrip(".")


def format_ratio(ratio: float) -> str:
    """Write how many times faster something is; far below 1 as a fraction.

    Examples
    --------
    >>> format_ratio(3.804), format_ratio(0.82), format_ratio(1 / 28)
    ('3.80x', '0.82x', '1/28.0')
    """
    if ratio < 0.0995:
        return f"1/{format_number(1 / ratio)}"
    return f"{format_number(ratio)}x" if ratio >= 0.995 else f"{ratio:.2f}x"


def format_share(share: float) -> str:
    """Write a share in percent.

    Examples
    --------
    >>> format_share(0.5), format_share(0.05), format_share(1e-5)
    ('50%', '5.0%', '< 0.1%')
    """
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 5e-4 else "< 0.1%"
