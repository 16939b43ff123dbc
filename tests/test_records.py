"""Records that are not as they should be: each wrong key is named before anything is measured."""

import json
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from gpuclf.bench.measure import break_even
from gpuclf.bench.measure.break_even import measured_break_even, parse_break_even
from gpuclf.bench.report import records
from gpuclf.bench.report.comparison import compare_records
from gpuclf.bench.report.markdown import rows_markdown
from gpuclf.bench.report.page import render_page
from gpuclf.bench.report.records import parse_record, read_record

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
ROW = {
    "operation": "softmax loss+gradient",
    "implementation": "gpuclf on NumPy",
    "samples": 200,
    "times_s": [1.0, 1.1, 1.2],
}
RECORD = {"version": 3, "environment": {}, "settings": {}, "rows": [ROW, ROW | {"samples": 9}]}
BREAK_EVEN = {"operation": "softmax", "between": ["NumPy"], "samples": 9, "reason": None}
HUGE = 10**400


def parsed(record):
    return parse_record(json.dumps(record).encode())


def refusal(record):
    with pytest.raises(
        ValueError, match=r"expected what `gpuclf bench --json`|is of version"
    ) as caught:
        parsed(record)
    return str(caught.value)


@pytest.mark.parametrize("file", ["ladder.json", "ladder_intel_amx.json"])
def test_the_recorded_runs_are_as_the_schema_says(file):
    assert len(read_record(RESULTS / file)["rows"]) > 50


@pytest.mark.parametrize("file", ["cpu_limit.json", "fleet.json"])
def test_records_of_other_scripts_are_refused(file):
    with pytest.raises(ValueError, match=f"{file} .*expected what"):
        read_record(RESULTS / file)


@pytest.mark.parametrize(
    ("key", "value", "must_be"),
    [
        ("samples", None, "a whole number of 1 or more, got null"),
        ("samples", 0, "a whole number"),
        ("samples", True, "a whole number"),
        ("samples", 1.5, "a whole number"),
        ("samples", HUGE, "a whole number"),
        ("samples", "200", "a whole number of 1 or more, got '200'"),
        ("operation", 3, "text, got 3"),
        ("operation", None, "text, got null"),
        ("implementation", ["gpuclf"], "text, got a list"),
        ("implementation", "\x1b[31mgpuclf", "text"),
        ("implementation", "gpuclf \ud800", "text"),
        ("case", {}, "text, got an object"),
        ("times_s", None, "a list, got null"),
        ("times_s", 1.0, "a list"),
        ("times_s", {"0": 1.0}, "a list, got an object"),
        ("status", "quick", "one of timed, unavailable"),
        ("status", [], "one of timed"),
        ("device", "tpu", "cpu or cuda"),
        ("calls_a_turn", 0, "a whole number of 1 or more"),
        ("median_s", -1.0, "a number, finite and above 0, got -1.0"),
        ("median_s", math.inf, "a number, finite and above 0"),
        ("floor_s", 0, "a number, finite and above 0"),
        ("bytes", -1, "a number, finite and 0 or more"),
        ("errors", [1], "an object"),
        ("errors", {"loss": "1"}, "a number"),
        ("device_s", {"median": 0.0}, "a number, finite and above 0"),
        ("device_s", {}, "no 'median'"),
        ("queued_s", 7, "an object"),
        ("reason", 7, "text"),
        ("unavailable", False, "text"),
        ("hidden_units", "50", "a whole number"),
        ("extrapolated", 1, "true or false"),
    ],
)
def test_a_wrong_key_is_named_with_its_row(key, value, must_be):
    message = refusal(RECORD | {"rows": [ROW, ROW | {"samples": 9, key: value}]})
    assert "row 2" in message
    assert key in message
    assert must_be in message


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, 0, -1.0, HUGE, None, "1", True])
def test_times_are_finite_and_above_0(time):
    message = refusal(RECORD | {"rows": [ROW | {"times_s": [1.0, time]}]})
    assert "row 1: times_s[1] must be a number, finite and above 0" in message


@pytest.mark.parametrize("key", ["operation", "implementation", "samples", "times_s"])
def test_a_missing_key_is_named_with_its_row(key):
    row = {name: value for name, value in ROW.items() if name != key}
    assert f"row 2 has no '{key}'" in refusal(RECORD | {"rows": [ROW, row]})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 9, "is of version 9"),
        ("version", "3", "is of version '3'"),
        ("version", None, "is of version None"),
        ("rows", [], "has 'version', 'environment', 'settings', 'rows'"),
        ("rows", ["a", "b"], "has 'version'"),
        ("rows", {"0": ROW}, "has 'version'"),
        ("environment", [], "environment must be an object, got a list"),
        ("environment", {"cpu": 1}, "environment: cpu must be text"),
        ("environment", {"blas": {}}, "environment: blas must be a list"),
        ("environment", {"blas": [{"library": "mkl"}]}, "environment: blas[0] has no 'version'"),
        ("environment", {"gpu": "none"}, "environment: gpu must be an object"),
        ("environment", {"versions": {"numpy": 2}}, "environment: versions: numpy must be text"),
        ("settings", [], "settings must be an object"),
        ("settings", {"peers": "yes"}, "settings: peers must be true or false"),
        ("dataset", 3, "dataset must be an object"),
        ("dataset", {"name": 3}, "dataset: name must be text"),
        ("ceilings", {"bytes_per_s": {"copy": 0}}, "bytes_per_s: copy must be a number"),
        ("break_even", [{}], "break_even[0] has no 'operation'"),
        ("break_even", [BREAK_EVEN], "break_even[0]: between must name two"),
        ("unfinished", 1, "unfinished must be text"),
        ("by_turns", None, "by_turns must be true or false"),
        ("profile", [], "it has 'profile', which no record has"),
    ],
)
def test_a_wrong_key_of_the_record_is_named(key, value, said):
    assert said in refusal(RECORD | {key: value})


def test_what_is_timed_has_a_time():
    message = refusal(RECORD | {"rows": [ROW | {"status": "timed", "times_s": []}]})
    assert "row 1: times_s must have a time, because status is timed" in message
    parsed(RECORD | {"rows": [ROW | {"status": "unavailable", "times_s": []}]})


def test_a_median_has_percentiles_beside_it():
    assert "row 1: median_s needs p20_s and p80_s" in refusal(
        RECORD | {"rows": [ROW | {"median_s": 1.0, "p20_s": 1.0}]}
    )


@pytest.mark.parametrize(("p20", "p80"), [(1.1, 1.2), (0.8, 0.9)])
def test_a_median_lies_between_its_percentiles(p20, p80):
    assert "row 1: median_s must lie between p20_s and p80_s" in refusal(
        RECORD | {"rows": [ROW | {"median_s": 1.0, "p20_s": p20, "p80_s": p80}]}
    )


def test_what_is_extrapolated_says_from_what():
    assert "row 1 has no 'measured_samples', but is extrapolated" in refusal(
        RECORD | {"rows": [ROW | {"extrapolated": True}]}
    )


def test_a_row_of_only_what_it_must_have_is_compared_and_written():
    record = parsed(RECORD)
    assert compare_records(record, record).passed
    assert "gpuclf on NumPy" in rows_markdown(record)
    assert "loss+gradient" in render_page(record)


def test_a_row_that_hides_another_is_refused():
    assert "row 3: implementation and case are those of row 1" in refusal(
        RECORD | {"rows": [ROW, ROW | {"samples": 9}, ROW]}
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a":' * 200_000, "is nested too deeply"),
        (b'{"rows": ' + b"1" * 10_000 + b"}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b"null", "holds a NoneType"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(content, said):
    with pytest.raises(ValueError, match="expected what") as caught:
        parse_record(content)
    assert said in str(caught.value)


def test_a_file_that_is_much_too_large_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 1 << 20)
    (tmp_path / "r.json").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(ValueError, match="has over 1 MiB"):
        read_record(tmp_path / "r.json")


def test_a_record_written_by_a_windows_shell_is_read(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "r.json").write_text(json.dumps(RECORD), encoding=encoding)
        assert len(read_record(tmp_path / "r.json")["rows"]) == 2


# ----------------------------------------------------------------------------- pytest-benchmark


def of_pytest(**changes):
    info = ROW | {"measured_samples": 200}
    del info["times_s"]
    entry = {"group": "a case", "extra_info": info, "stats": {"data": [1.0, 2.0]}}
    return {"machine_info": {}, "benchmarks": [entry | changes]}


def test_an_empty_run_of_pytest_benchmark_says_so():
    with pytest.raises(ValueError, match="holds no benchmarks: the run that wrote it was empty"):
        parsed({"machine_info": {}, "benchmarks": []})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": None}, "benchmark 1: group must be text"),
        ({"stats": {"data": [math.nan]}}, "benchmark 1: stats: data[0] must be a number, finite"),
        ({"stats": {"data": 3}}, "benchmark 1: stats: data must be a list"),
        ({"extra_info": {"operation": "a"}}, "benchmark 1: extra_info has no 'samples'"),
        (
            {"extra_info": {"operation": "a", "samples": 1, "measured_samples": 0}},
            "extra_info: measured_samples must be a whole number of 1 or more, got 0",
        ),
    ],
)
def test_a_wrong_key_of_pytest_benchmark_is_named(changes, said):
    with pytest.raises(ValueError, match="benchmark 1") as caught:
        parsed(of_pytest(**changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("machine", [None, [], {"cpu": "fast"}, {"cpu": {"count": 2}}])
def test_what_pytest_benchmark_says_of_the_machine_may_be_anything(machine):
    assert len(parsed(of_pytest() | {"machine_info": machine})["rows"]) == 1


def test_entries_of_other_benchmarks_are_left_out():
    record = of_pytest()
    record["benchmarks"] += [{}, 3, {"extra_info": {}, "stats": {"data": ["a"]}}]
    assert len(parsed(record)["rows"]) == 1


# ------------------------------------------------------------------------------------ judging


def with_times(times):
    rows = [ROW | {"samples": n, "times_s": times} for n in (200, 9)]
    return parsed(RECORD | {"rows": rows})


@pytest.mark.parametrize("times", [[5e-324] * 9, [1.7e308] * 9, [5e-324, 1.7e308] * 9])
def test_times_that_no_clock_gives_are_compared_without_an_error(times):
    old, new = with_times([1.0, 1.1, 1.2] * 3), with_times(times)
    for pair in ((old, new), (new, old), (new, new)):
        compared = compare_records(*pair)
        assert compared.passed is (bool(compared.judged) and not compared.regressions)


@pytest.mark.parametrize("time", [math.nan, math.inf, 0.0])
def test_what_cannot_be_judged_is_never_no_change(time):
    old, new = with_times([1.0, 1.1, 1.2] * 3), with_times([1.0, 1.1, 1.2] * 3)
    broken = deepcopy(new)
    for row in broken["rows"]:  # of a measurement: a file with them is refused
        row["times_s"] = [time] * 9
    with np.errstate(all="ignore"):
        for pair in ((old, broken), (broken, old), (broken, broken)):
            compared = compare_records(*pair)
            assert {row.verdict for row in compared.rows} == {"not comparable"}
            assert not compared.passed
            assert "nothing could be compared" in compared.summary
    assert compare_records(old, new).passed


# --------------------------------------------------------------------------------- break-even


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 200_000,
        b"[]",
        b'{"machine": "a machine", "bytes": Infinity}',
        b'{"machine": "a machine", "bytes": NaN}',
        b'{"machine": "a machine", "bytes": -1}',
        b'{"machine": "a machine", "bytes": true}',
        b'{"machine": "a machine", "bytes": "5"}',
        b'{"machine": "a machine", "bytes": 1' + b"0" * 400 + b"}",
        b'{"machine": ["a machine"], "bytes": 5}',
        b"\xff",
    ],
)
def test_a_break_even_that_is_none_is_as_if_never_measured(monkeypatch, tmp_path, content):
    path = tmp_path / "break_even.json"
    monkeypatch.setattr(break_even, "_file", lambda: path)
    monkeypatch.setattr(break_even, "_machine_id", lambda: "a machine")
    path.write_bytes(b'{"machine": "a machine", "bytes": 5}')
    assert measured_break_even() == 5
    path.write_bytes(content)
    assert measured_break_even() is None
    with pytest.raises(ValueError, match=r"."):
        parse_break_even(content)


def test_a_cache_that_cannot_be_written_costs_no_result(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(break_even, "_file", lambda: tmp_path / "file" / "break_even.json")
    break_even.remember_break_even(5)
    assert measured_break_even() is None
