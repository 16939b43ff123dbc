"""Write the tables of docs/performance.md from the record of benchmarks/cpu_limit.py.

python benchmarks/performance_tables.py            writes the tables
python benchmarks/performance_tables.py --check    fails if they are not the record's
"""

import argparse
import json
import re
import sys
from pathlib import Path

from gpuclf.benchmark.report import format_seconds

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "cpu_limit.json"
PAGE = ROOT / "docs" / "performance.md"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Write a table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def machine(record: dict) -> str:
    """Say what was measured, and on what."""
    found, row = record["environment"], record["profile"][0]
    return (
        f"{record['dataset']}; {found['cpu']}, {found['threads']} threads, "
        f"{found['blas'][0]['library']} {found['blas'][0]['version']}, NumPy "
        f"{found['versions']['numpy']}; float32. Measured in the same run: "
        f"{row['peak_flop_per_s'] / 1e9:.0f} GFLOP/s in a large matrix product, "
        f"{row['bytes_per_s'] / 1e9:.1f} GB/s read.\n"
    )


def profile(record: dict) -> str:
    """Write where the time goes."""
    rows = []
    for row in record["profile"]:
        floor = format_seconds(row["floor_s"]) if row["floor_s"] else "-"
        rows.append([row["part"], row["what"], format_seconds(row["median_s"]), floor])
    return markdown(["", "", "median", "floor"], rows)


def peers(record: dict) -> str:
    """Write how many times faster this library is than each other."""
    names = list(dict.fromkeys(row["implementation"] for row in record["rows"]))
    cases = list(dict.fromkeys((row["operation"], row["samples"]) for row in record["rows"]))
    lines = []
    for operation, samples in cases:
        medians = {
            row["implementation"]: row["median_s"]
            for row in record["rows"]
            if (row["operation"], row["samples"]) == (operation, samples)
        }
        ours = medians["gpuclf on NumPy"]
        cells = []
        for name in names:
            if medians[name] is None:
                cells.append("-")
            elif name == "gpuclf on NumPy":
                cells.append(format_seconds(ours))
            else:
                cells.append(f"{format_seconds(medians[name])} ({medians[name] / ours:.2f}x)")
        lines.append([f"{operation}, {samples:,}", *cells])
    return markdown(["", *names], lines)


def scaling(record: dict) -> str:
    """Write time and memory against the number of rows."""
    rows = [
        [
            row["features"],
            f"{row['samples']:,}",
            format_seconds(row["median_s"]),
            f"{row['median_s'] / row['samples'] * 1e9:.0f} ns",
            f"{row['extra_bytes'] / 1e6:.1f} MB",
        ]
        for row in record["scaling"]
    ]
    return markdown(["features", "rows", "median", "a row", "extra memory"], rows)


def times_to_accuracy(record: dict) -> str:
    """Write the times of whole training runs."""
    rows = [
        [
            row["model"],
            row["implementation"],
            f"{row['wanted']}",
            format_seconds(row["fit_s"]),
            f"{row['test_accuracy']:.4f}",
        ]
        for row in record.get("times_to_accuracy", [])
    ]
    return markdown(["model", "", "wanted", "time to fit", "test accuracy"], rows)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    record = json.loads(RECORD.read_text())
    page = PAGE.read_text()
    expected = page
    for table in (machine, profile, peers, scaling, times_to_accuracy):
        name = table.__name__.replace("_", " ")
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if not block.search(expected):
            sys.exit(f"docs/performance.md has no place for the table '{name}'")
        expected = block.sub(lambda m, table=table: m[1] + table(record) + m[2], expected)
    if check and expected != page:
        sys.exit("docs/performance.md is not the record's: python benchmarks/performance_tables.py")
    PAGE.write_text(expected)


if __name__ == "__main__":
    main()
