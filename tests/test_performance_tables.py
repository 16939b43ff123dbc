"""The tables of README and docs are those of the records, which must be there."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from gpuclf.bench.report.records import read_record

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "performance_tables.py"


@pytest.fixture
def tables(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--check"])
    names = runpy.run_path(str(SCRIPT))
    shutil.copytree(names["RESULTS"], tmp_path, dirs_exist_ok=True)
    names["main"].__globals__.update(RESULTS=tmp_path)
    return names


@pytest.mark.parametrize("file", ["ladder.json", "cpu_limit.json", "fleet.json", "scaling.json"])
def test_a_missing_record_fails_the_check(tables, tmp_path, file):
    (tmp_path / file).unlink()
    with pytest.raises(SystemExit, match=f"{file} is missing"):
        tables["main"]()


def test_a_ladder_with_a_wrong_key_names_its_row(tables, tmp_path):
    record = json.loads((tmp_path / "ladder.json").read_text())
    record["rows"][6]["median_s"] = "fast"
    (tmp_path / "ladder.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"ladder\.json cannot be used: row 7: median_s must be"):
        tables["main"]()


def test_a_record_without_the_courses_search_fails_the_check(tables, tmp_path):
    record = json.loads((tmp_path / "fleet.json").read_text())
    del record["course_search"]
    (tmp_path / "fleet.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="lacks the course's search"):
        tables["main"]()


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize(
    ("file", "part", "page"),
    [
        ("ladder.json", "settings", "README.md"),
        ("cpu_limit.json", "scaling", "performance.md"),
        ("fleet.json", "searches", "performance.md"),
        ("accuracy.json", "recipes", "accuracy.md"),
        ("embeddings.json", "rows", "performance.md"),
        ("neighbors.json", "rows", "performance.md"),
        ("scaling.json", "rows", "scaling.md"),
    ],
)
def test_another_record_than_the_pages_show_fails_the_check(tables, tmp_path, file, part, page):
    tables["main"]()
    record = json.loads((tmp_path / file).read_text())
    if part == "settings":
        record[part]["dtype"] = "float16"
    elif part == "recipes":
        record[part]["softmax regression"]["test_accuracy"] += 0.01
    elif file == "scaling.json":
        times = record[part][0]["times_s"]
        times["here"] = [2 * seconds for seconds in times["here"]]
    else:
        time = {"embeddings.json": "cpu_s", "neighbors.json": "fastest_s"}.get(file, "median_s")
        record[part][0][time] *= 2
    (tmp_path / file).write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=f"{page} is not the record's"):
        tables["main"]()


def test_fleets_without_one_model_alone_are_a_table_too(tables, monkeypatch):
    rows = [{"model": "softmax", "n_models": n, "step_per_model_s": 1e-3 / n} for n in (2, 4)]
    monkeypatch.setitem(tables["fleet_sizes"].__globals__, "processor", lambda _: "a machine")
    assert "| 4 | 250 us |" in tables["fleet_sizes"]({"dataset": "", "cost_per_model": rows})
    alone = {"model": "softmax", "n_models": 1, "step_per_model_s": 1e-3}
    assert "| 4 | 250 us (4.00x) |" in tables["fleet_sizes"](
        {"dataset": "", "cost_per_model": [alone, *rows]}
    )


def test_a_ladder_in_which_a_case_lacks_a_rung_is_a_table_too():
    table = runpy.run_path(str(SCRIPT))["ladder"]
    record = read_record(SCRIPT.parent / "results" / "ladder.json")
    known = {row["implementation"]: row for row in reversed(record["rows"])}  # the first of each
    record["rows"] = rows = [known[name] for name in ("pure Python loops", "textbook NumPy")]
    naive = {"implementation": "naive loops", "median_s": 3.55, "samples": 7}
    rows.append(rows[1] | naive | {"case": "another"})
    header, _, pure, textbook, loops = table(record).splitlines()[:5]
    assert header == "|  | softmax, 50,000 | softmax, 7 |"
    assert pure.startswith("| pure Python loops | about ")
    assert pure.endswith(" samples | not measured |")
    assert textbook.endswith(" | not measured |")
    assert loops == "| naive loops | not measured | 3.55 s |"


def test_rows_of_a_gpu_are_in_the_ladder_as_soon_as_a_record_has_them():
    names = runpy.run_path(str(SCRIPT))
    record = read_record(SCRIPT.parent / "results" / "ladder.json")
    on_gpu = [row for row in record["rows"] if row["device"] == "cuda"]
    assert on_gpu
    for row in on_gpu:
        row["median_s"] = None
    without = names["ladder"](record)
    assert names["NO_GPU_YET"] in without
    assert not [line for line in without.splitlines() if line.startswith("|") and "CuPy" in line]
    on_gpu[-1]["median_s"] = 1e-3
    found = names["ladder"](record)
    assert names["NO_GPU_YET"] not in found
    (line,) = [line for line in found.splitlines() if "CuPy" in line]
    assert line.startswith(f"| {on_gpu[-1]['implementation']} |")
    assert "1.00 ms" in line


ROOT = SCRIPT.parent.parent
PROSE = {
    "README.md": ["3.80 times", "7.22 times"],
    "docs/design.md": ["99.7 %", "3.80 and", "2.10 and", "2.80 on", "2.19 times", "15.4 and"],
    "docs/performance.md": ["67 %", "22.7 ms of", "57 %"],
}


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize(
    ("page", "figure"), [(page, figure) for page, figures in PROSE.items() for figure in figures]
)
def test_a_figure_in_prose_that_no_record_holds_is_found(tables, page, figure):
    text = (ROOT / page).read_text()
    assert figure in text
    places = tables["places_of"](ROOT / page)
    assert not tables["loose_figures"](text, places)
    # Three digits are written; a figure changed to another of the record's would not be noticed.
    changed = text.replace(figure, figure.replace(" ", "7 ", 1), 1)
    assert len(tables["loose_figures"](changed, places)) == 1


def test_a_figure_that_names_no_record_is_found(tables):
    assert tables["loose_figures"]("It takes 3.5 ms, 1.30x as fast.\n\nPython 3.11 is needed.")
    assert not tables["loose_figures"]("Perhaps 3.50 times faster (estimated, not measured).")
    assert not tables["loose_figures"]("```\nx = 2.5 s\n```\nIt takes a while.")
    assert tables["loose_figures"]("Right are 0.5977 of the images.")
    assert tables["loose_figures"]("It gains 30 %, see `fleet.json`.")
    assert tables["loose_figures"]("Loads take 9.5 ms (`accuracy.json`, of `--dropout 0.4`).")
    assert not tables["loose_figures"]("0.6624 (`accuracy.json`, of `--dropout 0.4`).")


def test_a_table_counts_as_checked_where_it_is_written_only(tables):
    text = "<!-- ladder -->\n| 3.5 ms |\n<!-- end -->"
    assert tables["loose_figures"](text)
    assert not tables["loose_figures"](text, {"ladder"})


def test_every_page_is_looked_at(tables):
    pages = {path.relative_to(ROOT).as_posix() for path in tables["PROSE"]}
    assert pages >= {"README.md", "CHANGELOG.md", "benchmarks/README.md", "examples/README.rst"}
    assert pages >= {"examples/knn.py", "docs/notebooks/pictures.py"}
    assert pages >= {"docs/scaling.md", "docs/course/gpu.md", "docs/reference/index.rst"}


def test_of_a_script_the_prose_is_looked_at(tables, tmp_path):
    script = tmp_path / "page.py"
    script.write_text('"""It takes 3 ms."""\n# %%\n# It is 2.5 times faster.\nx = "4 ms"\n')
    found = tables["loose_figures"](tables["prose_of"](script))
    assert [figure.split()[0] for figure in found] == ["3", "2.5"]


@pytest.mark.parametrize("name", ["ladder.svg", "fleet.svg", "search.svg"])
def test_a_picture_of_another_record_fails_the_check(tables, tmp_path, name):
    for path in (ROOT / "docs").glob("*.svg"):
        text = path.read_text()
        if path.name == name:
            text = text.replace("of the record ", "of the record 1")
        (tmp_path / path.name).write_text(text)
    tables["main"].__globals__["DOCS"] = tmp_path
    with pytest.raises(SystemExit, match=f"{name} is not the record's"):
        tables["main"]()


def test_a_changed_cell_of_a_table_fails_the_check(tables, monkeypatch, tmp_path):
    page = tmp_path / "loops.md"
    tables["main"]()
    text = (ROOT / "docs" / "course" / "loops.md").read_text()
    cell = next(line for line in text.split("\n") if line.startswith("| naive loops"))
    page.write_text(text.replace(cell, cell.replace("ms", "us")))
    pages = {page: {tables["rung_loops"]: "ladder.json"}}
    tables["main"].__globals__["PAGES"] = pages
    with pytest.raises(SystemExit, match=r"loops\.md is not the record's"):
        tables["main"]()


def test_the_recipes_of_the_record_are_those_of_the_script():
    script = runpy.run_path(str(SCRIPT.parent / "accuracy.py"))
    record = json.loads((SCRIPT.parent / "results" / "accuracy.json").read_text())
    found = {name: (of["command"], of["wanted_accuracy"]) for name, of in record["recipes"].items()}
    assert found == script["RECIPES"]
