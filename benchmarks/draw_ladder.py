"""Draw the README's picture from the recorded run, and check that the README quotes it rightly.

python benchmarks/draw_ladder.py            writes docs/ladder.svg and the README's table
python benchmarks/draw_ladder.py --check    fails if table or picture are not the record's
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

from gpuclf.bench.report.markdown import markdown_table
from gpuclf.bench.report.records import read_record
from gpuclf.bench.report.table import TEXTBOOK, fastest, format_ratio
from gpuclf.files import format_seconds

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "ladder.json"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "ladder.svg"
TABLE = re.compile(r"(<!-- ladder -->\n).*?(<!-- end ladder -->)", re.S)


def table(record: dict) -> str:
    """Write the record as Markdown."""
    cases = by_case(record)
    names = dict.fromkeys(row["implementation"] for rows in cases for row in rows)
    lines = [[name, *(cell(rows, name) for rows in cases)] for name in names]
    environment, settings = record["environment"], record["settings"]
    return (
        f"{markdown_table(['', *map(title, cases)], lines)}\n\n"
        f"Median of interleaved runs on {record['dataset']['name']}, {settings['dtype']}; "
        f"{environment['cpu']}, {environment['threads']} threads, "
        f"{environment['blas'][0]['library']} {environment['blas'][0]['version']}, "
        f"NumPy {environment['versions']['numpy']}. In brackets: times faster than the textbook "
        "version. Record: `benchmarks/results/ladder.json`.\n"
    )


def cell(rows: list[dict], name: str) -> str:
    """Write an implementation's time in a case, and how many times faster than the textbook."""
    row = next((row for row in rows if row["implementation"] == name), None)
    if row is None or row["median_s"] is None:
        return "not yet measured on a GPU" if row and row["device"] == "cuda" else "not measured"
    words, textbook = format_seconds(row["median_s"]), fastest(rows, TEXTBOOK)
    if row["extrapolated"]:
        return f"about {words}, from {row['measured_samples']} samples"
    if textbook is None or row is textbook:
        return words
    return f"{words} ({format_ratio(textbook['median_s'] / row['median_s'])})"


def by_case(record: dict) -> list[list[dict]]:
    """Group the ladder's rows by operation and size."""
    ladder = [row for row in record["rows"] if row["group"] == "ladder"]
    titles = dict.fromkeys(row["case"] for row in ladder)
    return [[row for row in ladder if row["case"] == title] for title in titles]


def title(rows: list[dict]) -> str:
    """Name a case in a few words."""
    return f"{rows[0]['operation'].partition(' ')[0]}, {rows[0]['samples']:,}"


def source(record: dict) -> str:
    """Name what the picture shows; it carries this name, whatever draws it."""
    shown = [(row["implementation"], row["median_s"]) for row in by_case(record)[0]]
    return "of medians " + hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def draw(record: dict, path: Path) -> None:
    """Write the picture of the first case."""
    import matplotlib as mpl

    from gpuclf.plots import plot_ladder

    mpl.rcParams["svg.hashsalt"] = "gpuclf"  # the same record gives the same file
    figure = plot_ladder(by_case(record)[0]).figure
    figure.savefig(path, metadata={"Date": None, "Description": source(record)})


def main() -> None:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    record = read_record(RECORD)
    readme = README.read_text()
    wanted = TABLE.sub(lambda found: found[1] + table(record) + found[2], readme)
    if arguments.check:
        if wanted != readme:
            sys.exit("README.md does not show the recorded run: run benchmarks/draw_ladder.py")
        if source(record) not in PICTURE.read_text():
            sys.exit(
                "docs/ladder.svg does not show the recorded run: run benchmarks/draw_ladder.py"
            )
        return
    README.write_text(wanted)
    draw(record, PICTURE)


if __name__ == "__main__":
    main()
