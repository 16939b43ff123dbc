import io
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gpuclf.bench.report.comparison import compare_records, print_comparison, undisturbed
from gpuclf.bench.report.markdown import rows_markdown
from gpuclf.bench.report.records import read_record

ROOT = Path(__file__).parent.parent
FULL, BATCH = "softmax loss+gradient, 50,000 samples", "softmax loss+gradient, 200 samples"
TEXTBOOK, FLOATS, BYTES = "textbook NumPy", "gpuclf on NumPy", "gpuclf on NumPy, uint8"
SECONDS = {TEXTBOOK: 0.2, FLOATS: 0.05, BYTES: 0.025}
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux",
    "cpu": "a processor",
    "cpu_count": 2,
    "threads": 2,
    "blas": [{"library": "openblas", "version": "0.3", "architecture": "SkylakeX"}],
    "gpu": {"usable": False},
    "versions": {"numpy": "2.4", "torch": "2.8", "gpuclf": "0.1"},
}


def times(rng, seconds, turns=24, calls=10, of_turn=0.05, tail=0.2):
    """Return times as a shared machine gives them.

    Calls of a turn are disturbed together; some turns last much longer; nothing is faster than
    `seconds` but for the noise of a turn.
    """
    of_turns = np.exp(of_turn * rng.standard_normal(turns))
    of_turns *= np.where(rng.random(turns) < tail, 1 + rng.pareto(1.5, turns), 1)
    of_calls = 1 + 0.1 * rng.exponential(size=(turns, calls))
    return (seconds * of_turns[:, None] * of_calls).ravel().tolist()


def make_row(rng, case, implementation, seconds, calls=10, **changes):
    known = {"turns", "of_turn", "tail"} & changes.keys()
    measured = times(rng, seconds, calls=calls, **{name: changes.pop(name) for name in known})
    return {
        "case": case,
        "operation": case.partition(",")[0],
        "implementation": implementation,
        "array_library": "numpy",
        "device": "cpu",
        "stored": "uint8" if "uint8" in implementation else "float",
        "dtype": "float32",
        "samples": 200,
        "measured_samples": 200,
        "extrapolated": False,
        "hidden_units": None,
        "status": "timed",
        "reason": None,
        "median_s": float(np.median(measured)),
        "p20_s": min(measured),
        "p80_s": max(measured),
        "times_s": measured,
        "calls_a_turn": calls,
    } | changes


def make_record(seed=0, machine=1.0, own=1.0, cases=(FULL, BATCH), **changes):
    """Return a record; `machine` multiplies all times (or those of a case), `own` gpuclf's."""
    rng = np.random.default_rng([seed, 7])
    rows = []
    for case in cases:
        factor = machine.get(case, 1.0) if isinstance(machine, dict) else machine
        for name, seconds in SECONDS.items():
            ours = own if name.startswith("gpuclf") else 1.0
            rows.append(make_row(rng, case, name, seconds * factor * ours, **changes))
    return {
        "version": 3,
        "dataset": {"name": "CIFAR-10"},
        "environment": deepcopy(ENVIRONMENT),
        "rows": rows,
    }


def only(compared, implementation, case=FULL):
    (row,) = [r for r in compared.rows if (r.case, r.implementation) == (case, implementation)]
    return row


def verdicts(compared):
    """Return the verdicts of single rows."""
    return [row.verdict for row in compared.judged if row.case != "all cases"]


def is_quiet(compared):
    return {row.verdict for row in compared.judged} == {"no change"}


# ---------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("machine", [1.0, 1.3, 0.75, {FULL: 1.5}], ids=str)
def test_the_same_code_is_no_change_whatever_the_machine_does(machine):
    alarms = sum(
        not is_quiet(compare_records(make_record(seed), make_record(100 + seed, machine)))
        for seed in range(10)
    )
    assert alarms == 0


@pytest.mark.parametrize("machine", [1.0, 1.2, 0.83])
def test_20_percent_slower_is_seen_with_the_right_sign(machine):
    # On a machine that became as much faster, the times themselves are the same.
    slower = faster = 0
    for seed in range(10):
        old, new = make_record(seed), make_record(100 + seed, machine, own=1.2)
        compared, swapped = compare_records(old, new), compare_records(new, old)
        slower += not compared.passed
        faster += "faster" in {row.verdict for row in swapped.judged}
        assert "faster" not in {row.verdict for row in compared.judged}
        assert swapped.passed
    assert slower >= 9
    assert faster >= 9


def test_ratios_are_of_this_library_after_what_the_machine_did():
    tight = {"of_turn": 0.005, "tail": 0.0, "turns": 40}
    compared = compare_records(make_record(0, **tight), make_record(1, 1.5, own=1.2, **tight))
    for name in (FLOATS, BYTES):
        row = only(compared, name)
        assert row.ratio == pytest.approx(1.2, rel=0.03)
        assert row.measured == pytest.approx(1.8, rel=0.03)
        assert row.low < row.ratio < row.high
    assert only(compared, TEXTBOOK).ratio == pytest.approx(1.5, rel=0.03)


def test_a_change_of_one_row_is_reported_of_that_row():
    old, new = make_record(0), make_record(1)
    slow = next(row for row in new["rows"] if row["implementation"] == BYTES)
    slow["times_s"] = [1.4 * t for t in slow["times_s"]]
    compared = compare_records(old, new)
    assert compared.regressions == [only(compared, BYTES, FULL)]
    assert "1 of 5 became slower; worst: gpuclf on NumPy, uint8, softmax" in compared.summary


def test_a_change_of_all_rows_is_surest_of_all_together():
    old, new = make_record(0), make_record(100, own=1.2)
    together, *rows = sorted(compare_records(old, new).judged, key=lambda row: row.high / row.low)
    assert (together.case, together.implementation) == ("all cases", "gpuclf")
    assert together.verdict == "slower"
    assert min(row.ratio for row in rows) < together.ratio < max(row.ratio for row in rows)
    one_row = (record | {"rows": record["rows"][:2]} for record in (old, new))
    assert [row.case for row in compare_records(*one_row).judged] == [FULL]


def test_calls_of_a_turn_count_once():
    # Drawing single calls again would take 500 of them for as many independent measurements.
    noisy = {"of_turn": 0.25, "turns": 5, "calls": 100, "tail": 0.0}
    alarms = sum(
        not is_quiet(compare_records(make_record(seed, **noisy), make_record(100 + seed, **noisy)))
        for seed in range(10)
    )
    assert alarms == 0


def test_turns_that_a_neighbour_disturbed_do_not_count():
    old, new = make_record(0, tail=0.0), make_record(1, tail=0.0)
    for row in new["rows"]:
        turns = np.reshape(row["times_s"], (-1, row["calls_a_turn"]))
        turns[::3] *= 8  # whole turns, and some calls of the others
        turns[:, 8:] *= 8
        row["times_s"] = turns.ravel().tolist()
    assert verdicts(compare_records(old, new)) == ["no change"] * 4


def test_a_noisy_yardstick_spoils_nothing():
    old, new = make_record(0, tail=0.0), make_record(1, own=1.35, tail=0.0)
    rng = np.random.default_rng(3)
    for record in (old, new):
        for row in record["rows"]:
            if row["implementation"] == TEXTBOOK:
                row["times_s"] = times(rng, 0.2, of_turn=1.0, tail=0.5)
    assert verdicts(compare_records(old, new)) == ["slower"] * 4


def test_the_more_rows_are_judged_the_wider_each_interval():
    few = compare_records(make_record(0), make_record(1))
    cases = [FULL, BATCH, *(f"case {i}, 1 samples" for i in range(20))]
    many = compare_records(make_record(0, cases=cases), make_record(1, cases=cases))

    def width(compared):
        return np.log(only(compared, FLOATS).high / only(compared, FLOATS).low)

    assert width(many) > 1.2 * width(few)


def test_a_change_must_be_both_significant_and_beyond_the_threshold():
    tight = {"of_turn": 0.005, "tail": 0.0, "turns": 40}
    old, new = make_record(0, **tight), make_record(1, own=1.2, **tight)
    assert verdicts(compare_records(old, new, 0.1)) == ["slower"] * 4
    below = compare_records(old, new, 0.3)
    assert verdicts(below) == ["no change"] * 4
    assert {row.reason for row in below.judged} == {"significant, but less than 30%"}
    noisy = {"of_turn": 0.3, "turns": 4, "tail": 0.0}
    beyond = compare_records(make_record(0, **noisy), make_record(1, own=1.2, **noisy), 0.01)
    assert verdicts(beyond) == ["no change"] * 4
    assert all(row.reason.startswith("blind below ") for row in beyond.judged)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_means_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be finite, 0 or more"):
        compare_records(make_record(), make_record(), threshold)


def test_a_record_compared_with_itself_is_1_and_records_are_left_alone():
    record = make_record()
    copy = deepcopy(record)
    compared = compare_records(record, record)
    assert record == copy
    assert {row.ratio for row in compared.rows} == {1.0}
    assert compared.passed
    assert compared == compare_records(record, record)


# -------------------------------------------------------------------------------- the yardstick


def without_yardstick(record):
    return record | {"rows": [r for r in record["rows"] if r["implementation"] != TEXTBOOK]}


def test_others_are_not_judged():
    old, new = make_record(0), make_record(1)
    for row in new["rows"]:
        if row["implementation"] == TEXTBOOK:
            row["times_s"] = [3 * t for t in row["times_s"]]
    compared = compare_records(old, new)
    assert only(compared, TEXTBOOK).verdict == "not judged"
    assert all(row.implementation.startswith("gpuclf") for row in compared.judged)
    assert not compared.regressions


def width_of(compared):
    return np.log(only(compared, FLOATS).high / only(compared, FLOATS).low)


def test_without_a_yardstick_in_the_case_less_is_sure():
    old, new = make_record(0), make_record(1)
    own = width_of(compare_records(old, new))
    elsewhere = width_of(
        compare_records(
            *(
                r | {"rows": [w for w in r["rows"] if (w["case"], w["implementation"]) != key]}
                for r in (old, new)
                for key in [(FULL, TEXTBOOK)]
            )
        )
    )
    nowhere = width_of(compare_records(without_yardstick(old), without_yardstick(new)))
    assert own < elsewhere < nowhere


@pytest.mark.parametrize(
    "change",
    [{"extrapolated": True}, {"array_library": "python"}, {"device": "cuda"}],
    ids=["few samples", "loops", "of the GPU"],
)
def test_what_says_nothing_of_the_machine_is_no_yardstick(change):
    old, new = make_record(0), make_record(1, 1.5)
    expected = compare_records(without_yardstick(old), without_yardstick(new))
    for record in (old, new):
        for row in record["rows"]:
            if row["implementation"] == TEXTBOOK:
                row |= change
    found = compare_records(old, new)
    assert only(found, FLOATS).ratio == pytest.approx(only(expected, FLOATS).measured)


def test_a_library_of_another_version_is_no_yardstick():
    old, new = make_record(0), make_record(1, 1.5)
    new["environment"]["versions"]["numpy"] = "2.5"
    compared = compare_records(old, new)
    assert only(compared, FLOATS).ratio == only(compared, FLOATS).measured
    (warning,) = compared.warnings
    assert "other numpy: 2.4" in warning
    assert "now 2.5" in warning


def test_another_blas_is_another_numpy_in_whatever_order_they_are_listed():
    old, new = make_record(0), make_record(1)
    of_scipy = {"library": "openblas", "version": "0.2", "architecture": "SkylakeX"}
    new["environment"]["blas"].insert(0, of_scipy)
    assert compare_records(old, new).warnings == []
    new["environment"]["blas"] = [of_scipy]
    (warning,) = compare_records(old, new).warnings
    assert "numpy: 2.4 with openblas 0.3 SkylakeX, now 2.4 with openblas 0.2" in warning


def test_what_could_not_run_before_either_is_left_out():
    old, new = make_record(0), make_record(1)
    for record in (old, new):
        record["rows"][1] |= {"status": "unavailable", "reason": "no GPU", "times_s": []}
    assert all(row.verdict != "not comparable" for row in compare_records(old, new).rows)
    old["rows"][1] |= {"status": "timed", "times_s": new["rows"][2]["times_s"]}
    assert only(compare_records(old, new), FLOATS).reason == "unavailable in the new run: no GPU"


def test_what_this_library_is_made_of_may_change():
    old, new = make_record(0), make_record(1)
    new["environment"]["versions"]["gpuclf"] = "0.2"
    assert compare_records(old, new).warnings == []


# --------------------------------------------------------------------------- what is comparable


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cpu", "another", "other cpu: a processor, now another"),
        ("cpu_count", 64, "other cpu count: 2, now 64"),
        ("threads", 1, "other threads: 2, now 1"),
    ],
)
def test_another_machine_is_not_comparable(name, value, reason):
    old, new = make_record(0), make_record(1)
    new["environment"][name] = value
    compared = compare_records(old, new)
    assert {(row.verdict, row.reason) for row in compared.rows} == {("not comparable", reason)}
    assert not compared.passed
    assert compared.summary == "nothing could be compared"


def test_another_gpu_forbids_the_rows_of_the_gpu_only():
    old, new = make_record(0), make_record(1)
    for record, gpu in ((old, "a GPU"), (new, "another")):
        record["environment"]["gpu"] = {"usable": True, "name": gpu}
        row = make_row(np.random.default_rng(0), FULL, "gpuclf on CuPy", 1e-3)
        record["rows"].append(row | {"device": "cuda", "array_library": "cupy"})
    compared = compare_records(old, new)
    assert only(compared, "gpuclf on CuPy").reason == "other gpu: a GPU, now another"
    assert len(compared.judged) == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "other dtype: float32, now float64"),
        ({"measured_samples": 16}, "other measured samples: 200, now 16"),
        ({"hidden_units": 100}, "other hidden units: None, now 100"),
        ({"status": "unavailable", "reason": "no GPU"}, "unavailable in the new run: no GPU"),
        ({"times_s": [0.1] * 29}, "fewer than 3 turns in the new run"),
    ],
)
def test_another_measurement_is_not_comparable(change, reason):
    old, new = make_record(0), make_record(1)
    next(row for row in new["rows"] if row["implementation"] == FLOATS).update(change)
    row = only(compare_records(old, new), FLOATS)
    assert (row.verdict, row.reason, row.ratio) == ("not comparable", reason, None)


def disturb(row, share=0.6):
    times = np.array(row["times_s"])
    times[: int(share * len(times))] *= 8
    row["times_s"] = np.random.default_rng(0).permutation(times).tolist()


def test_a_row_that_was_disturbed_most_of_the_time_is_not_comparable():
    old, new = make_record(0), make_record(1)
    disturb(new["rows"][1])
    compared = compare_records(old, new)
    assert only(compared, FLOATS).reason == (
        "disturbed in the new run: most calls lasted 3 times the fastest"
    )
    assert verdicts(compared) == ["no change"] * 3


@pytest.mark.parametrize("which", ["old", "new"])
def test_nothing_can_be_compared_with_an_overloaded_machine(which):
    old, new = make_record(0), make_record(1, own=1.5)
    for row in {"old": old, "new": new}[which]["rows"][::2]:
        disturb(row)
    compared = compare_records(old, new)
    assert not compared.judged
    assert not compared.passed
    overloaded = f"the machine was overloaded in the {which} run"
    assert overloaded in {row.reason for row in compared.rows}


@pytest.mark.parametrize("status", ["wrong", "failed", "rejected"])
def test_what_was_timed_and_now_fails_is_broken(status):
    old, new = make_record(0), make_record(1)
    broken = {"status": status, "reason": "because", "times_s": []}
    next(row for row in new["rows"] if row["implementation"] == FLOATS).update(broken)
    compared = compare_records(old, new)
    assert compared.broken == [only(compared, FLOATS)]
    assert not compared.passed
    assert compared.summary.endswith("(4 compared); 1 broken")
    assert not compare_records(new, old).broken


def test_rows_of_one_run_only_are_named():
    old, new = make_record(0, cases=(FULL,)), make_record(1, cases=(BATCH,))
    compared = compare_records(old, new)
    assert only(compared, FLOATS, FULL).reason == "only in the old run"
    assert only(compared, FLOATS, BATCH).reason == "only in the new run"


def test_other_data_and_platforms_are_warned_of():
    old, new = make_record(0), make_record(1)
    new["dataset"]["name"], new["environment"]["platform"] = "synthetic", "Darwin"
    assert compare_records(old, new).warnings == [
        "other data: CIFAR-10, now synthetic",
        "other platform: Linux, now Darwin",
    ]


# ------------------------------------------------------------------------------------- reading


def test_a_record_of_the_present_is_read(tmp_path):
    path = tmp_path / "new.json"
    path.write_text(json.dumps(make_record()))
    assert compare_records(read_record(path), make_record()).passed


def test_the_recorded_ladder_of_before_is_read():
    record = read_record(ROOT / "benchmarks" / "results" / "ladder.json")
    assert compare_records(record, record).passed
    assert {row["status"] for row in record["rows"]} >= {"timed"}


def test_what_was_called_naive_before_is_pure_python(tmp_path):
    path, names = tmp_path / "old.json", []
    for version in (1, 2, 3):
        rows = [row | {"implementation": "naive loops"} for row in make_record()["rows"][:1]]
        path.write_text(json.dumps({"version": version, "dataset": "CIFAR-10", "rows": rows}))
        found = read_record(path)
        names += [row["implementation"] for row in found["rows"]]
        assert found["dataset"] == {"name": "CIFAR-10"}
    assert names == ["pure Python loops"] * 2 + ["naive loops"]


def test_records_of_before_have_no_turns():
    old, new = make_record(0), make_record(1)
    bare = deepcopy(old)
    del bare["version"]
    for row in bare["rows"]:
        for name in ("case", "device", "status", "reason", "calls_a_turn"):
            row[name] = None
            del row[name]
        row["samples"] = row["measured_samples"] = 200
    new["rows"] = [row | {"case": BATCH} for row in new["rows"][3:]]
    old["rows"] = [row | {"case": BATCH} for row in old["rows"][3:]]
    bare["rows"] = bare["rows"][3:]
    assert compare_records(bare, new).rows == compare_records(old, new).rows


def pytest_record(record):
    return {
        "machine_info": {"gpuclf": record["environment"], "cpu": {}},
        "commit_info": {},
        "benchmarks": [
            {
                "group": row["case"],
                "name": "test_case",
                "extra_info": {
                    name: row[name]
                    for name in ("operation", "implementation", "array_library", "stored",
                                 "dtype", "samples", "measured_samples", "extrapolated")
                },
                "stats": {"data": row["times_s"], "median": row["median_s"]},
            }
            for row in record["rows"]
        ],
        "datetime": "2026-01-01T00:00:00",
        "version": "5.3.1",
    }  # fmt: skip


def test_what_pytest_benchmark_wrote_is_read(tmp_path):
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(pytest_record(make_record(0, 2.0))))
    record = read_record(path)
    compared = compare_records(record, make_record(1, 2.0, own=4.0))
    assert verdicts(compared) == ["slower"] * 4
    assert "by turns" in "".join(compared.warnings)
    by_turns = compare_records(make_record(0, 2.0), make_record(1, 2.0, own=4.0))
    assert only(compared, BYTES).ratio == pytest.approx(only(by_turns, BYTES).ratio, rel=0.02)
    assert width_of(compared) > 1.5 * width_of(by_turns)


def test_times_of_pytest_benchmark_are_of_the_samples_that_ran(tmp_path):
    written = pytest_record(make_record())
    entry = written["benchmarks"][0]
    entry["extra_info"] |= {"samples": 800, "extrapolated": True}  # measured on 200
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(written))
    assert read_record(path)["rows"][0]["times_s"] == [4 * t for t in entry["stats"]["data"]]


def test_an_unknown_machine_is_warned_of(tmp_path):
    written = pytest_record(make_record())
    del written["machine_info"]["gpuclf"]
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(written))
    warnings = compare_records(read_record(path), make_record(1)).warnings
    assert "the old run does not say on what it ran: cpu and threads" in warnings


def drop_times(written):
    for entry in written["benchmarks"]:
        del entry["stats"]["data"]
    return written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list; expected what `gpuclf bench --json`"),
        ("{}", "has nothing; expected"),
        ('{"steps": [], "status": 1}', "has 'steps', 'status'; expected"),
        ('{"rows": [{"median_s": 1}]}', "row 1 has no 'operation'; expected"),
        ('{"version": 9, "rows": []}', "is of version 9, known are 1 to 3"),
        (json.dumps(drop_times(pytest_record(make_record()))), "--benchmark-save-data"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json") as caught:
        read_record(path)
    assert message in str(caught.value)


# -------------------------------------------------------------------------------------- report


def printed(compared):
    console = Console(file=io.StringIO(), width=110)
    print_comparison(compared, console)
    return console.file.getvalue()


def test_the_report_has_rows_reasons_warnings_and_a_sentence():
    old, new = make_record(0), make_record(1, own=1.4)
    new["rows"][1] |= {"status": "failed", "reason": "ValueError: [brackets]"}
    new["dataset"]["name"] = "synthetic [seed 0]"
    compared = compare_records(old, new)
    text = printed(compared)
    for said in (
        "other data: CIFAR-10, now synthetic [seed 0]",
        "failed in the new run: ValueError: [brackets]",
        *(BATCH, BYTES, "slower", compared.summary),
    ):
        assert said in text


def test_nothing_to_report_is_reported():
    compared = replace(compare_records(make_record(0), make_record(0)), rows=[])
    assert "nothing could be compared" in printed(compared)


def test_rows_as_markdown():
    record = make_record()
    naive = record["rows"][0] | {"implementation": "naive loops", "extrapolated": True}
    missing = record["rows"][0] | {"implementation": "JAX", "status": "unavailable"}
    record["rows"] += [naive | {"measured_samples": 16}, missing | {"reason": "not | installed"}]
    for row in record["rows"]:
        row |= {"median_s": SECONDS.get(row["implementation"], 100.0), "share_of_floor": 0.5}
    text = rows_markdown(record)
    assert text.count("**") == 4
    assert "| gpuclf on NumPy | 50 ms |" in text or "| gpuclf on NumPy | 50.0 ms |" in text
    assert "4.00x | 50% |" in text
    assert r"| naive loops \* (16) |" in text
    assert "| 1/500 |" in text
    assert "unavailable: not | installed" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6}


def test_of_two_measurements_the_faster_counts_case_by_case():
    def row(case, name, seconds, **changes):
        times = {"times_s": [seconds] * 5}
        return {"case": case, "implementation": name, "status": "timed"} | times | changes

    a, b, c = ("gpuclf on NumPy", "gpuclf on NumPy, uint8", "textbook NumPy")
    first = {
        "cpu": "x",
        "rows": [row("1", a, 1.0), row("1", b, 2.0), row("1", c, 3.0), row("2", a, 4.0)],
    }
    again = {"rows": [row("1", a, 1.1), row("1", b, 1.5), row("1", c, 3.5)]}
    found = undisturbed(first, again)
    # The yardstick comes from the run of the rows that it is a yardstick for.
    assert [r["times_s"][0] for r in found["rows"]] == [1.1, 1.5, 3.5, 4.0]
    assert found["cpu"] == "x"
    wrong = {"rows": [row("1", a, 0.1, status="wrong"), row("1", b, 2.5), row("1", c, 3.5)]}
    assert undisturbed(first, wrong) == first
