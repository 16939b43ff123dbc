"""The tables of docs/performance.md are those of the records, which must be there."""

import json
import runpy
from pathlib import Path

import pytest

from gpuclf.bench.report.records import read_record

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "performance_tables.py"


@pytest.fixture
def tables(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--check"])
    names = runpy.run_path(str(SCRIPT))
    names["main"].__globals__.update(RESULTS=tmp_path)
    return names


def test_a_missing_record_fails_the_check(tables, tmp_path):
    with pytest.raises(SystemExit, match=r"cpu_limit\.json is missing"):
        tables["main"]()
    tables["main"].__globals__["TABLES"].pop("cpu_limit.json")
    with pytest.raises(SystemExit, match=r"fleet\.json is missing"):
        tables["main"]()
    rows = [{"model": "softmax", "n_models": 2, "step_per_model_s": 1e-3}]
    tables["main"].__globals__["TABLES"]["fleet.json"] = (tables["course_search"],)
    (tmp_path / "fleet.json").write_text(json.dumps({"cost_per_model": rows}))
    with pytest.raises(SystemExit, match="lacks the course's search"):
        tables["main"]()


def test_fleets_without_one_model_alone_are_a_table_too(tables, monkeypatch):
    rows = [{"model": "softmax", "n_models": n, "step_per_model_s": 1e-3 / n} for n in (2, 4)]
    monkeypatch.setitem(tables["fleet_sizes"].__globals__, "hardware", lambda _: "a machine")
    assert "| 4 | 250 us |" in tables["fleet_sizes"]({"cost_per_model": rows})
    alone = {"model": "softmax", "n_models": 1, "step_per_model_s": 1e-3}
    assert "| 4 | 250 us (4.00x) |" in tables["fleet_sizes"]({"cost_per_model": [alone, *rows]})


def test_a_ladder_in_which_a_case_lacks_a_rung_is_a_table_too():
    table = runpy.run_path(str(SCRIPT.parent / "draw_ladder.py"))["table"]
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
