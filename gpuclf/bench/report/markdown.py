"""The result as Markdown, for issues, pull requests and the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuclf.bench.report.table import HEADER, TEXTBOOK, fastest, row_cells

__all__ = ["markdown_table", "rows_markdown"]


def markdown_table(header: list[str], rows: Iterable[list[str]], *, n_left: int = 1) -> str:
    r"""Write a table, its first columns to the left and the others to the right.

    Examples
    --------
    >>> print(markdown_table(["a|b", "c"], [["1", "2"]]))
    | a\|b | c |
    | :-- | --: |
    | 1 | 2 |
    """
    rule = [":--" if i < n_left else "--:" for i in range(len(header))]
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def rows_markdown(record: dict[str, Any]) -> str:
    """Write the rows of a record, a table for each case, with why others did not run.

    Parameters
    ----------
    record : dict
        As ``gpuclf bench --json`` writes it, or :func:`gpuclf.bench.report.records.read_record`
        returns it.
    """
    parts = []
    for case in dict.fromkeys(row["case"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["case"] == case]
        timed = [row for row in rows if row.get("median_s") and row["status"] == "timed"]
        textbook = fastest(timed, TEXTBOOK)
        parts.append(f"**{case}**")
        if timed:
            lines = [[cell.replace("*", r"\*") for cell in row_cells(r, textbook)] for r in timed]
            parts[-1] += f"\n\n{markdown_table(HEADER, lines)}"
        if any(row.get("extrapolated") for row in timed):
            parts.append("\\* extrapolated: run on that many samples, time scaled up")
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row not in timed:
                why = f"{row['status']}: {row['reason']}"
                reasons.setdefault(why, []).append(row["implementation"])
        parts += [f"{', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n\n".join(parts) + "\n"
