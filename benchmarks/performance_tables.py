"""Write docs/performance.md's tables from the records of benchmarks/cpu_limit.py and fleet.py.

python benchmarks/performance_tables.py            writes the tables, and draws the fleet's pictures
python benchmarks/performance_tables.py --check    fails if the tables are not the records', or if
                                                   there is no record
"""

import argparse
import json
import re
import sys
from pathlib import Path

from gpuclf.bench.report.markdown import markdown_table
from gpuclf.bench.report.table import format_ratio
from gpuclf.files import format_seconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"


def hardware(record: dict) -> str:
    """Name data set, processor and libraries."""
    found = record["environment"]
    return (
        f"{record['dataset']}; {found['cpu']}, {found['threads']} threads, "
        f"{found['blas'][0]['library']} {found['blas'][0]['version']}, NumPy "
        f"{found['versions']['numpy']}"
    )


def machine(record: dict) -> str:
    """Say what was measured, and on what."""
    row = record["profile"][0]
    return (
        f"{hardware(record)}; float32. Measured in the same run: "
        f"{row['peak_flop_per_s'] / 1e9:.0f} GFLOP/s in a large matrix product, "
        f"{row['bytes_per_s'] / 1e9:.1f} GB/s read.\n"
    )


def profile(record: dict) -> str:
    """Write where the time goes."""
    rows = []
    for row in record["profile"]:
        floor = format_seconds(row["floor_s"]) if row["floor_s"] else "-"
        rows.append([row["part"], row["what"], format_seconds(row["median_s"]), floor])
    return markdown_table(["", "", "median", "floor"], rows, n_left=2)


def peers(record: dict) -> str:
    """Write how many times faster this library is than each other."""
    names = list(dict.fromkeys(row["implementation"] for row in record["rows"]))
    cases = list(dict.fromkeys((row["operation"], row["samples"]) for row in record["rows"]))
    lines = []
    for operation, samples in cases:
        medians = dict.fromkeys(names) | {
            row["implementation"]: row["median_s"]
            for row in record["rows"]
            if (row["operation"], row["samples"]) == (operation, samples)
        }
        ours, cells = medians["gpuclf on NumPy"], []
        for name, median in medians.items():
            cells.append(format_seconds(median) if median else "-")
            if median and name != "gpuclf on NumPy":
                cells[-1] += f" ({format_ratio(median / ours)})"
        lines.append([f"{operation}, {samples:,}", *cells])
    return markdown_table(["", *names], lines)


def scaling(record: dict) -> str:
    """Write time and memory against the number of rows."""
    rows = []
    for row in record["scaling"]:
        a_row, extra = row["median_s"] / row["samples"] * 1e9, row["extra_bytes"] / 1e6
        times = format_seconds(row["median_s"]), f"{a_row:.0f} ns"
        rows.append([row["features"], f"{row['samples']:,}", *times, f"{extra:.1f} MB"])
    return markdown_table(["features", "rows", "median", "a row", "extra memory"], rows)


def times_to_accuracy(record: dict) -> str:
    """Write the times of whole training runs."""
    rows = []
    for row in record.get("times_to_accuracy", []):
        found = format_seconds(row["fit_s"]), f"{row['test_accuracy']:.4f}"
        rows.append([row["model"], row["implementation"], f"{row['wanted']}", *found])
    return markdown_table(["model", "", "wanted", "time to fit", "test accuracy"], rows, n_left=2)


def fleet_sizes(record: dict) -> str:
    """Write what a step costs a model, against the models that share it."""
    rows = record["cost_per_model"]
    kinds = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for size in dict.fromkeys(row["n_models"] for row in rows):
        cells = [f"{size}"]
        for kind in kinds:
            cost = {r["n_models"]: r["step_per_model_s"] for r in rows if r["model"] == kind}
            gain = f" ({format_ratio(cost[1] / cost[size])})" if 1 in cost else ""
            cells.append(format_seconds(cost[size]) + gain)
        lines.append(cells)
    picture = "![Time per model and step against the models in the fleet](fleet.svg)"
    return f"{hardware(record)}.\n\n{picture}\n\n{markdown_table(['models', *kinds], lines)}"


def fleet_searches(record: dict) -> str:
    """Write the grid searches."""
    rows = []
    for row in record["searches"]:
        ratio = format_ratio(row["times_as_long_as_the_fleet"])
        rows.append(
            [row["search"], format_seconds(row["median_s"]), ratio, f"{row['best_score']:.4f}"]
        )
    title = f"{record['searches'][0]['n_fits']} fits, {record['n_samples']:,} images"
    return markdown_table([title, "", "", "best score"], rows)


def course_search(record: dict) -> str:
    """Say what the course's search took and found."""
    found = record["course_search"]
    best = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in found["best_params"].items())
    return (
        f"{found['n_settings']} settings, {found['steps']:,} steps each on {found['n_samples']:,} "
        f"images: {format_seconds(found['seconds'])}, validation accuracy "
        f"{found['best_val_accuracy']:.3f} at {best}.\n\n"
        "![Validation accuracy over learning rate and penalty](search.svg)\n"
    )


def draw_fleet(record: dict) -> None:
    """Draw the cost per model and the course's search."""
    import matplotlib as mpl

    from gpuclf.plots import plot_search
    from gpuclf.plots.drawing import COLOURS, MARKERS, new_axes

    mpl.rcParams["svg.hashsalt"] = "gpuclf"  # the same record gives the same file
    ax = new_axes(None, (6, 3.4))
    kinds = dict.fromkeys(row["model"] for row in record["cost_per_model"])
    for kind, colour, marker in zip(kinds, COLOURS, MARKERS, strict=False):
        rows = [row for row in record["cost_per_model"] if row["model"] == kind]
        sizes, costs = zip(*((r["n_models"], r["step_per_model_s"]) for r in rows), strict=True)
        ax.plot(sizes, [c / costs[0] for c in costs], color=colour, marker=marker, label=kind)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("models in the fleet")
    ax.set_ylabel(f"time per model and step,\nbeside that in a fleet of {sizes[0]}")
    ax.legend(frameon=False)
    ax.figure.savefig(PAGE.parent / "fleet.svg", metadata={"Date": None})
    if "course_search" not in record:
        return
    ax = plot_search(record["course_search"]["results"])
    ax.figure.savefig(PAGE.parent / "search.svg", metadata={"Date": None}, dpi=80)


TABLES = {
    "cpu_limit.json": (machine, profile, peers, scaling, times_to_accuracy),
    "fleet.json": (fleet_sizes, fleet_searches, course_search),
}


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text()
    expected = page
    for file, tables in TABLES.items():
        if not (RESULTS / file).exists():
            if check:
                sys.exit(f"benchmarks/results/{file} is missing, and its tables with it")
            continue
        record = json.loads((RESULTS / file).read_text())
        for table in tables:
            if table is course_search and "course_search" not in record:  # fleet.py --no-course
                if check:
                    sys.exit(f"benchmarks/results/{file} lacks the course's search")
                continue
            name = table.__name__.replace("_", " ")
            block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
            if not block.search(expected):
                sys.exit(f"docs/performance.md has no place for the table '{name}'")
            written = table(record).rstrip("\n") + "\n"
            expected = block.sub(lambda m, written=written: m[1] + written + m[2], expected)
        if file == "fleet.json" and not check:
            draw_fleet(record)
    if check and expected != page:
        sys.exit("docs/performance.md is not the record's: python benchmarks/performance_tables.py")
    PAGE.write_text(expected)


if __name__ == "__main__":
    main()
