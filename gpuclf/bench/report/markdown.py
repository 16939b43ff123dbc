"""The result as Markdown, for issues and pull requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuclf.bench.report.table import format_ratio
from gpuclf.files import format_seconds

__all__ = ["markdown_table", "rows_markdown"]


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    r"""Write a table, its first column to the left and the others to the right.

    Examples
    --------
    >>> print(markdown_table(["a|b", "c"], [["1", "2"]]))
    | a\|b | c |
    | :-- | --: |
    | 1 | 2 |
    """
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def rows_markdown(record: dict[str, Any]) -> str:
    """Write the rows of a record, a table for each case, with why others did not run.

    Parameters
    ----------
    record : dict
        As ``gpuclf bench --json`` writes it, or :func:`gpuclf.bench.report.comparison.read_record`
        returns it.
    """
    parts = []
    for case in dict.fromkeys(row["case"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["case"] == case]
        timed = [row for row in rows if row.get("median_s") and row["status"] == "timed"]
        textbook = next(
            (r["median_s"] for r in timed if r["implementation"].startswith("textbook")), None
        )
        lines = [_cells(row, textbook) for row in timed]
        header = ["implementation", "median", "p20 to p80", "times textbook", "share of floor"]
        parts.append(f"**{case}**\n\n{markdown_table(header, lines)}" if lines else f"**{case}**")
        if any(row.get("extrapolated") for row in timed):
            parts.append("\\* extrapolated: run on that many samples, time scaled up")
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row not in timed:
                why = f"{row['status']}: {row['reason']}"
                reasons.setdefault(why, []).append(row["implementation"])
        parts += [f"{', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any], textbook_s: float | None) -> list[str]:
    name, median = row["implementation"], row["median_s"]
    if row.get("extrapolated"):
        name += rf" \* ({row['measured_samples']})"
    share = row.get("share_of_floor")
    return [
        name,
        format_seconds(median),
        f"{format_seconds(row['p20_s'])} to {format_seconds(row['p80_s'])}",
        format_ratio(textbook_s / median) if textbook_s else "",
        f"{share:.0%}" if share else "",
    ]
