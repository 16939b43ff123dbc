"""Write the tables and pictures of README.md and docs/ from the records of benchmarks/results/.

python benchmarks/performance_tables.py            writes the tables, and draws the pictures
python benchmarks/performance_tables.py --check    fails if tables or pictures are not the records',
                                                   if a figure elsewhere is in no record that is
                                                   named beside it, or if there is no record
"""

import argparse
import ast
import hashlib
import itertools
import json
import re
import runpy
import sys
from collections.abc import Callable, Container
from pathlib import Path

from gpuclf.bench.report.markdown import markdown_table
from gpuclf.bench.report.records import read_record
from gpuclf.bench.report.table import TEXTBOOK, fastest, format_number, format_ratio
from gpuclf.files import format_seconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
LADDER, CPU_LIMIT, FLEET = "ladder.json", "cpu_limit.json", "fleet.json"
ACCURACY, EMBEDDINGS, SCALING = "accuracy.json", "embeddings.json", "scaling.json"
NEIGHBORS = "neighbors.json"


def processor(record: dict) -> str:
    """Name processor and libraries."""
    found = record["environment"]
    return (
        f"{found['cpu']}, {found['threads']} threads, {found['blas'][0]['library']} "
        f"{found['blas'][0]['version']}, NumPy {found['versions']['numpy']}"
    )


# ----------------------------------------------------------------------------- ladder.json


def by_case(record: dict) -> list[list[dict]]:
    """Group the ladder's rows by operation and size."""
    cases: dict[str, list[dict]] = {}
    for row in record["rows"]:
        if row["group"] == "ladder":
            cases.setdefault(row["case"], []).append(row)
    return list(cases.values())


# The one place that says where GPU rows are, for as long as no record has them.
NO_GPU_YET = (
    "The kernels for GPUs are proven on a CPU, against a pretended device, and compiled for seven "
    "targets; no GPU has measured them yet. First `python -m benchmarks.acceptance --first-contact "
    "--out DIR`, then `python -m benchmarks.acceptance --out DIR` "
    "([benchmarks/README.md](benchmarks/README.md) says what to do with what comes out)."
)


def ladder(record: dict) -> str:
    """Write the time of every implementation in every case, without those that nobody timed."""
    cases = by_case(record)
    rows = [row for rows in cases for row in rows]
    timed = {row["implementation"] for row in rows if row["median_s"] is not None}
    names = [name for name in dict.fromkeys(r["implementation"] for r in rows) if name in timed]
    on_gpu = {row["implementation"] for row in rows if row["device"] == "cuda"}
    lines = [[name, *(ladder_cell(rows, name) for rows in cases)] for name in names]
    titles = [f"{rows[0]['operation'].partition(' ')[0]}, {rows[0]['samples']:,}" for rows in cases]
    return (
        f"{markdown_table(['', *titles], lines)}\n\n"
        f"Median of interleaved runs on {record['dataset']['name']}, "
        f"{record['settings']['dtype']}; {processor(record)}. In brackets: times faster than the "
        "textbook version. Record: `benchmarks/results/ladder.json`.\n"
        + f"\n{NO_GPU_YET}\n"
        * (not on_gpu & timed)
    )


def ladder_cell(rows: list[dict], name: str) -> str:
    """Write an implementation's time in a case, and how many times faster than the textbook."""
    row = next((row for row in rows if row["implementation"] == name), None)
    if row is None or row["median_s"] is None:
        return "not measured"
    words, textbook = format_seconds(row["median_s"]), fastest(rows, TEXTBOOK)
    if row["extrapolated"]:
        return f"about {words}, from {row['measured_samples']} samples"
    if textbook is None or row is textbook:
        return words
    return f"{words} ({format_ratio(textbook['median_s'] / row['median_s'])})"


def rung(record: dict, *names: str) -> str:
    """Write the ladder's lines of some implementations."""
    cases = by_case(record)
    titles = [f"{rows[0]['operation'].partition(' ')[0]}, {rows[0]['samples']:,}" for rows in cases]
    lines = [[name, *(ladder_cell(rows, name) for rows in cases)] for name in names]
    return (
        f"{markdown_table(['', *titles], lines)}\n\n{record['dataset']['name']}, "
        f"{record['settings']['dtype']}; {processor(record)}. In brackets: times faster than the "
        "textbook version.\n"
    )


def all_rungs(record: dict) -> str:
    """Write the lines of all implementations that were timed."""
    rows = [row for of_case in by_case(record) for row in of_case]
    return rung(record, *dict.fromkeys(r["implementation"] for r in rows if r["median_s"]))


def rung_loops(record: dict) -> str:
    """Write what loops take."""
    return rung(record, "pure Python loops", "naive loops")


def rung_vectorised(record: dict) -> str:
    """Write what the textbook's lines take."""
    return rung(record, "naive loops", "textbook NumPy")


def rung_compiled(record: dict) -> str:
    """Write what the library takes on a CPU."""
    return rung(record, "textbook NumPy", "gpuclf on NumPy", "gpuclf on NumPy, uint8")


def rung_gpu(record: dict) -> str:
    """Write what the library takes on a GPU, if the record knows."""
    of_gpu = [row for row in record["rows"] if row["group"] == "ladder" and row["device"] == "cuda"]
    timed = dict.fromkeys(row["implementation"] for row in of_gpu if row["median_s"] is not None)
    if not timed:
        return "The ladder's record is of a machine without a GPU: `gpuclf bench` measures yours.\n"
    return rung(record, "gpuclf on NumPy", *timed)


# -------------------------------------------------------------------------- cpu_limit.json


def machine(record: dict) -> str:
    """Say what was measured, and on what."""
    row = record["profile"][0]
    return (
        f"{record['dataset']}; {processor(record)}; float32. Measured in the same run: "
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
    cases: dict[str, dict[str, float | None]] = {}
    for row in record["rows"]:
        medians = cases.setdefault(f"{row['operation']}, {row['samples']:,}", dict.fromkeys(names))
        medians[row["implementation"]] = row["median_s"]
    lines = []
    for case, medians in cases.items():
        ours, cells = medians["gpuclf on NumPy"], []
        for name, median in medians.items():
            cells.append(format_seconds(median) if median else "-")
            if median and name != "gpuclf on NumPy":
                cells[-1] += f" ({format_ratio(median / ours)})"
        lines.append([case, *cells])
    return markdown_table(["", *names], lines)


def rows(record: dict) -> str:
    """Write time and memory against the number of rows."""
    lines = []
    for row in record["scaling"]:
        a_row, extra = row["median_s"] / row["samples"] * 1e9, row["extra_bytes"] / 1e6
        times = format_seconds(row["median_s"]), f"{a_row:.0f} ns"
        lines.append([row["stored"], f"{row['samples']:,}", *times, f"{extra:.1f} MB"])
    return markdown_table(["stored", "rows", "median", "a row", "extra memory"], lines)


def times_to_accuracy(record: dict) -> str:
    """Write the times of whole training runs."""
    rows = []
    for row in record.get("times_to_accuracy", []):
        found = format_seconds(row["fit_s"]), f"{row['test_accuracy']:.4f}"
        rows.append([row["model"], row["implementation"], f"{row['wanted']}", *found])
    return markdown_table(["model", "", "wanted", "time to fit", "test accuracy"], rows, n_left=2)


# ------------------------------------------------------------------------------ fleet.json


def fleet_sizes(record: dict) -> str:
    """Write what a step costs a model, against the models that share it."""
    costs: dict[str, dict[int, float]] = {}
    for row in record["cost_per_model"]:
        costs.setdefault(row["model"], {})[row["n_models"]] = row["step_per_model_s"]
    picture = "![Time per model and step against the models in the fleet](fleet.svg)"
    return f"{record['dataset']}; {processor(record)}.\n\n{picture}\n\n{_by_size(costs)}"


def full_batches(record: dict) -> str:
    """Write what a pass over all samples costs a model, against the models that share it."""
    costs: dict[str, dict[int, float]] = {}
    for row in record["full_batches"]:
        title = f"{row['n_features']:,} {row['samples']}"
        costs.setdefault(title, {})[row["n_models"]] = row["pass_per_model_s"]
    return _by_size(costs)


def fleet_penalties(record: dict) -> str:
    """Write what fits by L-BFGS take, together and one by one."""
    rows = []
    for row in record["penalties"]:
        found = format_seconds(row["seconds"]), format_ratio(row["times_as_long_as_together"])
        rows.append([f"{row['n_models']}", row["fit"], *found])
    title = f"{record['penalties'][0]['max_iter']} iterations"
    return markdown_table(["penalties", title, "", ""], rows, n_left=2)


def _by_size(costs: dict[str, dict[int, float]]) -> str:
    lines = []
    for size in dict.fromkeys(size for cost in costs.values() for size in cost):
        cells = [f"{size}"]
        for cost in costs.values():
            gain = f" ({format_ratio(cost[1] / cost[size])})" if 1 in cost else ""
            cells.append(format_seconds(cost[size]) + gain)
        lines.append(cells)
    return markdown_table(["models", *costs], lines)


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


# --------------------------------------------------------------------------- accuracy.json


def recipes(record: dict) -> str:
    """Write what each recipe reaches, and what it takes."""
    rows, where = [], {}
    for name, found in record["recipes"].items():
        accuracies = f"{found['val_accuracy']:.4f}", f"{found['test_accuracy']:.4f}"
        times = found["fit_seconds"], found["command_processor_seconds"]
        load = f"{found['load_before']:.1f}"
        wanted = f"{found['wanted_accuracy']:g}"
        times = [format_seconds(seconds) for seconds in times]
        rows.append([name, f"`{found['command']}`", wanted, *accuracies, *times, load])
        where[processor(found)] = None
    titles = [
        "wanted",
        "validation",
        "test",
        "time to fit",
        "processor time of the command",
        "load before",
    ]
    table = markdown_table(["recipe", "command", *titles], rows, n_left=2)
    return f"{table}\n\n{'; '.join(where)}. Record: `benchmarks/results/accuracy.json`.\n"


# ------------------------------------------------------------------------- embeddings.json


def embeddings(record: dict) -> str:
    """Write what evaluating embeddings costs, by this library and by others."""
    cases: dict[str, dict[str, float]] = {}
    names = list(dict.fromkeys(row["implementation"] for row in record["rows"]))
    for row in record["rows"]:
        what = row["case"].replace("probe by ", "").replace(" samples", f" x {row['n_features']}")
        cases.setdefault(what, {})[row["implementation"]] = row["cpu_s"]
    lines = []
    for case, seconds in cases.items():
        ours = seconds["gpuclf on NumPy"]
        cells = [
            format_seconds(seconds[name])
            + ("" if name == "gpuclf on NumPy" else f" ({format_ratio(seconds[name] / ours)})")
            if name in seconds
            else "-"
            for name in names
        ]
        lines.append([case, *cells])
    return (
        f"{markdown_table(['', *names], lines)}\n\n"
        f"Seconds of one core of {record['environment']['cpu']}, not of the clock; in brackets: "
        "times gpuclf's. Record: `benchmarks/results/embeddings.json`.\n"
    )


# -------------------------------------------------------------------------- neighbors.json


def neighbors(record: dict) -> str:
    """Write what exact neighbours of floats cost, beside scikit-learn's."""
    cases: dict[tuple, dict[str, float]] = {}
    for row in record["rows"]:
        sizes = f"{row['queries']:,} x {row['samples']:,} x {row['n_features']:,}"
        what = f"{row['group']}, {row['what']}" if row["group"] != "hostile" else row["what"]
        case = what, sizes, f"{row['neighbors']}"
        cases.setdefault(case, {})[row["implementation"]] = row["fastest_s"]
    lines = []
    for case, seconds in cases.items():
        theirs, ours = seconds["scikit-learn"], seconds["gpuclf on NumPy"]
        ratio = format_ratio(theirs / ours)
        lines.append([*case, format_seconds(theirs), format_seconds(ours), ratio])
    titles = ["samples", "queries x samples x features", "k", "scikit-learn", "gpuclf", ""]
    return (
        f"{markdown_table(titles, lines, n_left=2)}\n\n"
        f"The fastest of calls by turns; {processor(record)}. The last column: how many times "
        "faster. Record: `benchmarks/results/neighbors.json`.\n"
    )


# ----------------------------------------------------------------------------- scaling.json


def scaling(record: dict) -> str:
    """Write what a cluster costs."""
    return runpy.run_path(str(ROOT / "benchmarks" / "scaling_tables.py"))["tables"](record)


# -------------------------------------------------------------------------------- pictures


def shown(records: dict[str, dict]) -> dict[str, object]:
    """Return what each picture of docs/ draws."""
    return {
        "ladder.svg": by_case(records[LADDER])[0],
        "fleet.svg": records[FLEET]["cost_per_model"],
        "search.svg": records[FLEET]["course_search"]["results"],
    }


def source(values: object) -> str:
    """Name what a picture draws; it carries this name, whatever draws it."""
    return "of the record " + hashlib.sha256(json.dumps(values).encode()).hexdigest()


def draw(records: dict[str, dict]) -> None:
    """Draw the ladder's first case, the fleet's cost per model and the course's search."""
    import matplotlib as mpl

    from gpuclf.plots import plot_ladder, plot_search
    from gpuclf.plots.drawing import COLOURS, MARKERS, new_axes

    mpl.rcParams["svg.hashsalt"] = "gpuclf"  # the same record gives the same file
    drawn = shown(records)

    def save(ax, name, **options):
        about = {"Date": None, "Description": source(drawn[name])}
        ax.figure.savefig(DOCS / name, metadata=about, **options)

    save(plot_ladder(drawn["ladder.svg"]), "ladder.svg")
    ax, costs = new_axes(None, (6, 3.4)), drawn["fleet.svg"]
    kinds = dict.fromkeys(row["model"] for row in costs)
    for kind, colour, marker in zip(kinds, COLOURS, MARKERS, strict=False):
        rows = [row for row in costs if row["model"] == kind]
        sizes, times = zip(*((r["n_models"], r["step_per_model_s"]) for r in rows), strict=True)
        ax.plot(sizes, [t / times[0] for t in times], color=colour, marker=marker, label=kind)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("models in the fleet")
    ax.set_ylabel(f"time per model and step,\nbeside that in a fleet of {sizes[0]}")
    ax.legend(frameon=False)
    save(ax, "fleet.svg")
    save(plot_search(drawn["search.svg"]), "search.svg", dpi=80)


GENERATED = {"_build", "gallery", "learn"}  # by Sphinx

# For each page its tables, in marked places of their names, and the record of each.
PAGES = {
    ROOT / "README.md": {ladder: LADDER},
    DOCS / "course" / "index.md": {all_rungs: LADDER},
    DOCS / "course" / "loops.md": {rung_loops: LADDER},
    DOCS / "course" / "vectorised.md": {rung_vectorised: LADDER},
    DOCS / "course" / "compiled.md": {rung_compiled: LADDER},
    DOCS / "course" / "gpu.md": {rung_gpu: LADDER},
    DOCS / "performance.md": {
        **dict.fromkeys((machine, profile, peers, rows, times_to_accuracy), CPU_LIMIT),
        **dict.fromkeys(
            (fleet_sizes, full_batches, fleet_penalties, fleet_searches, course_search), FLEET
        ),
        embeddings: EMBEDDINGS,
        neighbors: NEIGHBORS,
    },
    DOCS / "accuracy.md": {recipes: ACCURACY},
    DOCS / "embeddings.md": {embeddings: EMBEDDINGS},
    DOCS / "scaling.md": {scaling: SCALING},
}


# ------------------------------------------------------------------------- figures in prose

PLACE = re.compile(r"<!-- ([a-z ]+) -->\n.*?<!-- end\b", re.S)
CODE = re.compile(r"^```.*?^```|^    .*?$", re.S | re.M)
QUOTED = re.compile(r"`[^`]*`")  # an option of a command is no figure
NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?")
FIGURE = re.compile(
    r"\b(\d+(?:\.\d+)?)(?:x\b| (?:ms|us|ns|s|min|GFLOP/s|GB/s)\b| ?%)"
    r"|\b(\d+\.\d+) times|\b(0\.\d{3,})\b"
)
DECIMAL = re.compile(r"\b\d+\.\d+\b")
RECORD = re.compile(r"\b(\w+\.json)\b")
PROSE = [
    *ROOT.glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.rst",
    *sorted(DOCS.rglob("*.md")),
    *DOCS.glob("*/*.rst"),
    *sorted((ROOT / "examples").glob("*.py")),  # pages of the gallery
    *sorted((DOCS / "notebooks").glob("*.py")),
]


def figures_of(record: dict) -> set[str]:
    """Return what prose may say of a record: times, factors, shares of the floor, its tables."""
    cases: dict[tuple, list[dict]] = {}
    found = set()
    for row in [*record.get("rows", ()), *record.get("profile", ())]:
        if row.get("median_s"):
            case = row.get("case") or (row.get("operation"), row.get("samples"))
            cases.setdefault(case, []).append(row)
            found.add(format_seconds(row["median_s"]).split()[0])
            if row.get("floor_s"):
                found.add(f"{100 * row['floor_s'] / row['median_s']:.0f}")
    for of_case in cases.values():
        ours = [row for row in of_case if row.get("implementation", "").startswith("gpuclf")]
        others = [row for row in of_case if row not in ours]
        pairs = itertools.product(others, ours)
        found |= {format_number(other["median_s"] / own["median_s"]) for other, own in pairs}
    return found


def known_of(file: str) -> set[str]:
    """Return the figures of a record, and those of the tables that are written from it."""
    record, found = load(file), set()
    for tables in PAGES.values():
        for table in (table for table, of_file in tables.items() if of_file == file):
            found |= set(NUMBER.findall(table(record)))
    return found | figures_of(record)


def prose_of(page: Path) -> str:
    """Return what a page says; of a script its docstring and its lines of comment."""
    text = page.read_text()
    if page.suffix != ".py":
        return text
    comments = re.findall(r"^# ?(.*)", text, re.M)
    return "\n".join([ast.get_docstring(ast.parse(text)) or "", "", *comments])


def place_of(table: Callable[[dict], str]) -> str:
    """Return the name of a table's place in a page."""
    return table.__name__.replace("_", " ")


def places_of(page: Path) -> set[str]:
    """Return the places of a page that are written from records."""
    return set(map(place_of, PAGES.get(page, ())))


def loose_figures(text: str, tables: Container[str] = ()) -> list[str]:
    """Return the figures outside the written `tables` that no record beside them holds.

    A figure is a time, a rate, a share, an accuracy, or a factor with decimals. Its paragraph, or
    line of a table, must name the record, or say that the figure is estimated.
    """
    text = PLACE.sub(lambda place: "" if place[1] in tables else place[0], text)
    text = CODE.sub("", text)
    blocks = [
        block
        for part in text.split("\n\n")
        for block in (part.split("\n") if part.startswith("|") else [part])
    ]
    loose = []
    for block in blocks:
        said = QUOTED.sub("", block)
        wanted = {figure for groups in FIGURE.findall(said) for figure in groups if figure}
        if not wanted or "estimated, not measured" in block:
            continue
        records = [file for file in RECORD.findall(block) if (RESULTS / file).exists()]
        if records:
            wanted |= set(DECIMAL.findall(said))
        known = set().union(*map(known_of, records))
        loose += [f"{figure} in: {block.strip()[:70]}" for figure in sorted(wanted - known)]
    return loose


def load(file: str) -> dict:
    """Read a record, which must be there."""
    if not (RESULTS / file).exists():
        sys.exit(f"benchmarks/results/{file} is missing, and its tables with it")
    if file.startswith("ladder"):  # the others are of scripts of their own
        return read_record(RESULTS / file)
    return json.loads((RESULTS / file).read_text())


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    files = LADDER, CPU_LIMIT, FLEET, ACCURACY, EMBEDDINGS, NEIGHBORS, SCALING
    records = {file: load(file) for file in files}
    if "course_search" not in records[FLEET]:  # fleet.py --try
        sys.exit(f"benchmarks/results/{FLEET} lacks the course's search")
    for page, tables in PAGES.items():
        found = expected = page.read_text()
        for table, file in tables.items():
            name = place_of(table)
            place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end\b)", re.S)
            before, *after = place.split(expected, 1)
            if not after:
                sys.exit(f"{page.name} has no place for the table '{name}'")
            written = table(records[file]).rstrip("\n") + "\n"
            expected = "".join([before, after[0], written, *after[1:]])
        if not check:
            page.write_text(expected)
        elif found != expected:
            sys.exit(f"{page.name} is not the record's: python benchmarks/performance_tables.py")
    if not check:
        draw(records)
        return
    for page in PROSE:
        if not GENERATED & set(page.relative_to(ROOT).parts):
            for figure in loose_figures(prose_of(page), places_of(page)):
                sys.exit(f"{page.name}: no record named beside it holds {figure}")
    for name, values in shown(records).items():
        if source(values) not in (DOCS / name).read_text():
            sys.exit(f"docs/{name} is not the record's: python benchmarks/performance_tables.py")


if __name__ == "__main__":
    main()
