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


@pytest.mark.parametrize("file", ["ladder.json", "cpu_limit.json", "fleet.json", "embeddings.json"])
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


@pytest.mark.parametrize(
    ("file", "part", "page"),
    [
        ("ladder.json", "settings", "README.md"),
        ("cpu_limit.json", "scaling", "performance.md"),
        ("fleet.json", "searches", "performance.md"),
        ("embeddings.json", "rows", "performance.md"),
    ],
)
def test_another_record_than_the_pages_show_fails_the_check(tables, tmp_path, file, part, page):
    tables["main"]()
    record = json.loads((tmp_path / file).read_text())
    if part == "settings":
        record[part]["dtype"] = "float16"
    else:
        record[part][0]["cpu_s" if file == "embeddings.json" else "median_s"] *= 2
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
