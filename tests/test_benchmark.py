import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tiny_cases import OF_NET, OF_SOFTMAX, OF_SVM, STEPS

from gpuclf.bench import (
    IMPLEMENTATIONS,
    PEERS,
    Case,
    Implementation,
    Inputs,
    Row,
    Unavailable,
    default_cases,
    peer_cases,
    run_case,
    scaling_cases,
)
from gpuclf.bench.measure import devices, timing
from gpuclf.bench.measure.cases import EPOCH, KINDS, LOSS, NET, SCALING, net_of
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.measure.implementations import gpuclf_floats, textbook_numpy
from gpuclf.bench.measure.record import break_even, make_record
from gpuclf.bench.report.table import print_rows
from gpuclf.devices.cupy import CupyProbe, probe_cupy
from gpuclf.files import format_seconds, write_json
from gpuclf.models import SOFTMAX, SVM, LinearModel

LOSSES = [OF_SOFTMAX, OF_SVM, OF_NET]
BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}
PYTHON, NAIVE, TEXTBOOK, FLOATS, BYTES = (
    BY_NAME[name]
    for name in (
        "pure Python loops",
        "naive loops",
        "textbook NumPy",
        "gpuclf on NumPy",
        "gpuclf on NumPy, uint8",
    )
)
REASON = "CuPy is not installed: pip install 'cupy-cuda13x[ctk]' or 'cupy-cuda12x[ctk]'"


def make_inputs(dtype="float32", n=40, n_features=12):
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(n, n_features), dtype=np.uint8)
    return Inputs(X, np.arange(n) % 10, dtype)


def tiny_case(of=OF_SOFTMAX, samples=40, naive_samples=10, rounds=3):
    return Case(*of, samples, naive_samples, rounds)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(
        "gpuclf.devices.cupy.probe_cupy", lambda: CupyProbe(False, "no CuPy in tests")
    )


@pytest.fixture
def clock(monkeypatch):
    """Replace the benchmark's clock by one that only moves when a call moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(HostDevice, "settle", lambda self: None)
    monkeypatch.setattr(timing, "WARM_UPS", 0)
    monkeypatch.setattr(timing, "check_in_float64", lambda *_: None)
    monkeypatch.setattr(timing.Reference, "check_again", lambda *_: {})
    monkeypatch.setattr(timing.Reference, "check", lambda self, _, call: call() and {})
    return clock


def timed(clock, name, seconds, loops=0, calls=None):
    """Return an implementation whose calls take the given seconds on the replaced clock."""

    def prepare(case, inputs):
        durations = iter([0.0, *seconds])  # the first call is the check

        def call():
            clock.now += next(durations)
            if calls is not None:
                calls.append(name)
            return np.float64(1.0), np.ones(3)

        return call

    return Implementation(name, "numpy", "float", prepare, loops)


# ------------------------------------------------------------------------------------- cases


def test_the_main_job_has_two_models_on_the_training_set_and_on_a_mini_batch():
    found = [(case.model, case.samples) for case in default_cases(50_000)]
    assert found == [(SOFTMAX, 50_000), (SOFTMAX, 200), (NET, 50_000), (NET, 200)]
    assert all(case.naive_samples < 200 for case in default_cases(50_000))
    assert default_cases(50_000)[0].title == "softmax loss+gradient, 50,000 samples"


TITLES = {
    Case(SVM, LOSS, 40, 1, 1): "svm loss+gradient, 40 samples",
    Case(SOFTMAX, EPOCH, 4000, 1, 1): "softmax epoch, 4,000 samples",
    Case(*STEPS, 200, 1, 1): "two-layer training step, 200 samples",
    Case(net_of(100), LOSS, 9, 1, 1): "two-layer loss+gradient, 9 samples, 100 hidden units",
    Case(SOFTMAX, LOSS, 9, 1, 1, models=8): "softmax loss+gradient, 9 samples, 8 models",
    Case(SOFTMAX, LOSS, 9, 1, 1, classes=2): "softmax loss+gradient, 9 samples, 2 classes",
    Case(None, "l1", 20, 1, 1): "k-NN l1, 20 samples",
}


@pytest.mark.parametrize(("case", "title"), TITLES.items(), ids=TITLES.values())
def test_titles_and_records_name_operations_as_old_records_do(case, title):
    assert case.title == title
    found = case.as_dict()
    assert found["operation"] == title.partition(",")[0]
    assert json.loads(json.dumps(found)) == found
    assert found["hidden_units"] == (
        None if case.model in (SOFTMAX, SVM, None) else case.model.hidden_size
    )


@pytest.mark.parametrize(("model", "kind"), [(SOFTMAX, "nap"), (None, LOSS), (SVM, "l2")])
def test_a_case_of_which_nothing_is_known_is_refused(model, kind):
    with pytest.raises(ValueError, match=f"is called '{re.escape(kind)}'; there are"):
        Case(model, kind, 40, 10, 1)


def test_a_model_of_one_s_own_is_timed_where_somebody_has_written_it():
    own = LinearModel("own", SOFTMAX.data_loss.reference, textbook=SOFTMAX.textbook)
    rows = run_case(Case(own, LOSS, 40, 10, 1), make_inputs(), [PYTHON, NAIVE, FLOATS, *PEERS[1:3]])
    assert [row.status for row in rows] == ["unavailable"] * 2 + ["timed"] + ["unavailable"] * 2
    assert "nobody has written" in rows[0].reason


def test_a_model_of_the_same_name_is_not_timed_by_the_library_s_loops():
    other = replace(SOFTMAX, data_loss=SVM.data_loss)
    (row,) = run_case(Case(other, LOSS, 40, 10, 1), make_inputs(), [PYTHON])
    assert (row.status, row.reason) == ("unavailable", "nobody has written its loops")


def test_a_kind_that_was_added_to_the_cases_alone_is_not_timed_as_a_training_step(monkeypatch):
    monkeypatch.setitem(KINDS, "scores", 1)
    case = Case(SOFTMAX, "scores", 40, 10, 1)
    reason = "nobody has written its scores"
    for prepare in (textbook_numpy, gpuclf_floats):
        with pytest.raises(Unavailable, match=reason):
            prepare(case, make_inputs(), "numpy")
    for row in run_case(case, make_inputs(), [PEERS[1], PEERS[2]]):
        assert row.status == "unavailable"
        assert reason in row.reason or "not installed" in row.reason


def test_a_mini_batch_is_never_larger_than_the_training_set():
    assert [case.samples for case in default_cases(120)] == [120] * 4
    assert [case.samples for case in default_cases(1000, batch_size=32)] == [1000, 32, 1000, 32]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_are_the_same_numbers_in_every_form(dtype):
    inputs = make_inputs(dtype)
    assert (
        inputs.floats.dtype == inputs.W.dtype == inputs.params(NET)["W1"].dtype == np.dtype(dtype)
    )
    X = inputs.bytes_.X.astype(np.float64)
    # The rounding of the dtype, on numbers of size 1.
    atol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(
        inputs.floats, (X - X.mean(axis=0)) / X.std(axis=0), rtol=0, atol=atol
    )
    again = make_inputs(dtype)
    np.testing.assert_array_equal(inputs.W, again.W)


def test_the_seed_draws_the_parameters():
    inputs = make_inputs()
    other = Inputs(inputs.bytes_.X, inputs.y, seed=1)
    assert not np.array_equal(inputs.W, other.W)


def test_inputs_longer_than_a_piece_are_written_out_whole():
    inputs = make_inputs(n=2500)
    np.testing.assert_array_equal(inputs.floats, inputs.bytes_.to_array(np.float32))


# ---------------------------------------------------------------------------------- agreement


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of", LOSSES, ids=lambda of: of[0].name)
@pytest.mark.parametrize("samples", [40, 10], ids=["extrapolated", "whole"])
def test_every_implementation_agrees(no_gpu, of, dtype, samples):
    rows = run_case(tiny_case(of, samples), make_inputs(dtype), IMPLEMENTATIONS)
    assert [row.implementation for row in rows] == [i.name for i in IMPLEMENTATIONS]
    for row in rows:
        assert row.operation == f"{of[0].name} loss+gradient"
        assert row.samples == samples
        assert row.dtype == dtype
        if row.array_library == "cupy":
            assert (row.status, row.median_s) == ("unavailable", None)
        else:
            assert 0 < row.p20_s <= row.median_s <= row.p80_s
            assert len(row.times_s) == row.n == 3
            assert (row.status, row.reason) == ("timed", None)
            assert row.cold_s > 0


@pytest.mark.gpu
@pytest.mark.parametrize("of", LOSSES, ids=lambda of: of[0].name)
def test_every_implementation_agrees_on_the_gpu(of):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    rows = run_case(tiny_case(of), make_inputs(), IMPLEMENTATIONS)
    assert all(row.median_s > 0 and row.status == "timed" for row in rows)


def spoil_loss(loss, gradient):
    return loss * (1 + 1e-3), gradient


def spoil_gradient(loss, gradient):
    return loss, {name: value * 1.001 for name, value in gradient.items()}


def spoil_with_nan(loss, gradient):
    return np.float64(np.nan), gradient


def spoiled(implementation, spoil, name="the wrong one"):
    def prepare(case, inputs):
        call = implementation.prepare(case, inputs)
        return lambda: spoil(*call())

    return replace(implementation, name=name, prepare=prepare)


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("of", LOSSES, ids=lambda of: of[0].name)
@pytest.mark.parametrize(
    ("spoil", "what"),
    [(spoil_loss, "loss"), (spoil_gradient, "gradient"), (spoil_with_nan, "loss")],
)
@pytest.mark.parametrize("kind", [FLOATS, BYTES, NAIVE, PYTHON], ids=lambda kind: kind.name)
def test_a_wrong_implementation_is_refused_and_not_timed(kind, spoil, what, of):
    right, wrong = run_case(tiny_case(of), make_inputs(), [TEXTBOOK, spoiled(kind, spoil)])
    assert (right.status, wrong.status, wrong.median_s) == ("timed", "wrong", None)
    assert f"the wrong one and the reference disagree on the {what}" in wrong.reason


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_one_wrong_gradient_among_several_is_found(name):
    def spoil(loss, gradients):
        return loss, gradients | {name: 0 * gradients[name]}

    (row,) = run_case(tiny_case(OF_NET), make_inputs(), [spoiled(FLOATS, spoil)])
    assert row.status == "wrong"
    assert "disagree on the gradient" in row.reason


@pytest.mark.parametrize(
    "spoil", [lambda loss, grads: (loss, grads["W"][:, :-1]), lambda loss, _: (loss, 1)]
)
def test_a_gradient_of_another_shape_is_refused(spoil):
    (row,) = run_case(tiny_case(), make_inputs(), [spoiled(FLOATS, spoil)])
    assert row.status == "wrong"
    assert "numbers against 120" in row.reason


def test_loops_are_checked_on_their_own_samples_although_they_come_first():
    wrong, right = run_case(tiny_case(), make_inputs(), [spoiled(NAIVE, spoil_gradient), TEXTBOOK])
    assert (wrong.status, right.status) == ("wrong", "timed")


def test_what_float32_would_hide_is_found_in_float64():
    """A loss that is wrong by less than float32 tells, as a constant forgotten would be."""
    spoil = spoiled(FLOATS, lambda loss, dW: (loss * (1 + 1e-7), dW))
    (row,) = run_case(tiny_case(), make_inputs(), [spoil])
    assert row.status == "wrong"
    assert "in float64" in row.reason


# ------------------------------------------------------------------------------------- timing


def test_an_unavailable_implementation_gives_a_row_with_the_reason():
    def prepare(case, inputs):
        raise Unavailable(REASON)

    missing = Implementation("missing", "cupy", "uint8", prepare)
    rows = run_case(tiny_case(), make_inputs(), [missing, TEXTBOOK])
    assert (rows[0].status, rows[0].reason, rows[0].median_s) == ("unavailable", REASON, None)
    assert rows[1].median_s > 0


def test_without_a_gpu_the_reason_has_the_install_command(no_gpu):
    rows = run_case(tiny_case(), make_inputs(), IMPLEMENTATIONS)
    reasons = {row.reason for row in rows if row.array_library == "cupy"}
    assert len(reasons) == 1
    reason = reasons.pop()
    assert "no CuPy in tests" in reason
    assert "pip install 'cupy-cuda13x[ctk]'" in reason


def test_median_and_percentiles_are_of_the_calls_after_the_warm_up(clock):
    seconds = [5.0, 1.0, 2.0, 4.0, 3.0, 6.0]
    (row,) = run_case(
        tiny_case(rounds=6), make_inputs(), [timed(clock, "a", seconds)], time_budget_s=1e9
    )
    assert row.times_s == seconds
    assert (row.p20_s, row.median_s, row.p80_s) == (2.0, 3.5, 5.0)
    assert not row.extrapolated
    assert row.measured_samples == row.samples == 40


def test_extrapolated_times_are_scaled_and_marked(clock):
    whole = timed(clock, "whole", [1.0] * 5)
    part = timed(clock, "part", [0.25, 0.5, 0.75], loops=1)
    rows = run_case(tiny_case(rounds=5), make_inputs(), [whole, part], time_budget_s=1e9)
    assert [row.extrapolated for row in rows] == [False, True]
    assert (rows[1].samples, rows[1].measured_samples) == (40, 10)
    assert rows[1].times_s == [1.0, 2.0, 3.0]  # 40 / 10 times as long
    assert rows[1].median_s == 2.0
    assert rows[0].median_s == 1.0


@pytest.mark.parametrize("samples", [10, 6])
def test_loops_on_all_samples_are_not_extrapolated(clock, samples):
    part = timed(clock, "part", [0.5] * 3, loops=1)
    (row,) = run_case(tiny_case(samples=samples), make_inputs(), [part])
    assert not row.extrapolated
    assert row.measured_samples == row.samples == samples
    assert row.median_s == 0.5


def test_loops_run_on_no_more_samples_than_the_case_has():
    case = tiny_case(samples=6, naive_samples=10)
    inputs = make_inputs()  # holds 40: more than the case
    naive_loss, _ = NAIVE.prepare(case, inputs)()
    whole_loss, _ = TEXTBOOK.prepare(case, inputs)()
    assert float(naive_loss) == pytest.approx(float(whole_loss), rel=1e-4)  # float32


def test_rounds_alternate_between_implementations(clock):
    calls = []
    first = timed(clock, "a", [1.0] * 9, calls=calls)
    second = timed(clock, "b", [1.0, 2.0] * 5, calls=calls)
    run_case(tiny_case(rounds=9), make_inputs(), [first, second], time_budget_s=1e9)
    rounds = [calls[i : i + 2] for i in range(0, 20, 2)]  # the check, nine rounds
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    assert ["b", "a"] in rounds  # in an order that is drawn anew


def test_rounds_end_when_the_time_is_spent_but_not_before_five(clock):
    unsteady = [1.0, 2.0] * 25
    for budget, n in ((0.1, 5), (14.0, 10)):
        (row,) = run_case(
            tiny_case(rounds=50),
            make_inputs(),
            [timed(clock, "a", unsteady)],
            time_budget_s=budget,
        )
        assert row.n == n


def test_rounds_end_when_the_median_is_steady(clock):
    steady, unsteady = [1.0] * 50, [1.0, 2.0] * 25
    for seconds, n in ((steady, 10), (unsteady, 50)):
        (row,) = run_case(
            tiny_case(rounds=50), make_inputs(), [timed(clock, "a", seconds)], time_budget_s=1e9
        )
        assert row.n == n


def test_progress_is_told_what_is_done_next():
    said = []
    run_case(tiny_case(), make_inputs(), [TEXTBOOK, FLOATS], advance=said.append)
    what = (TEXTBOOK.name, FLOATS.name, "timing")
    assert said == [f"{tiny_case().title}: {name}" for name in what]


# ------------------------------------------------------------------------------------- report


def make_row(name="textbook NumPy", median_s=0.25, **changes):
    row = Row(
        case="softmax loss+gradient, 50,000 samples",
        group="ladder",
        operation="softmax loss+gradient",
        implementation=name,
        array_library="numpy",
        device="cpu",
        stored="float",
        dtype="float32",
        precision="float32",
        samples=50_000,
        measured_samples=50_000,
        extrapolated=False,
        classes=10,
        models=1,
        hidden_units=None,
        uploads=False,
        bytes=10**8,
        operations=10**9,
        calls_a_turn=1,
    )
    if median_s is None:
        return replace(row, **({"status": "unavailable", "reason": REASON} | changes))
    times = {"median_s": median_s, "p20_s": 0.9 * median_s, "p80_s": 1.1 * median_s}
    return replace(row, **(times | {"times_s": [median_s] * 3, "n": 3} | changes))


ROWS = [
    make_row("naive loops", 812.5, extrapolated=True, measured_samples=16),
    make_row("textbook NumPy", 0.25),
    make_row("gpuclf on NumPy", 0.1),
    make_row("gpuclf on NumPy, uint8", 0.05),
    make_row("gpuclf on CuPy", None, array_library="cupy"),
    make_row("gpuclf on CuPy, uint8", None, array_library="cupy"),
]


def printed(rows, width=80):
    out = io.StringIO()
    print_rows(rows, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (3e-9, "3 ns"),
        (999e-9, "999 ns"),
        (1e-6, "1.00 us"),
        (0.0734, "73.4 ms"),
        (0.0009990, "999 us"),
        (0.0009999, "1.00 ms"),
        (0.001, "1.00 ms"),
        (0.09996, "100 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.00 s"),
        (1.0, "1.00 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.99, "1.00 min"),
        (60.0, "1.00 min"),
        (3599.9, "1.00 h"),
        (3600.0, "1.00 h"),
        (4000.0, "1.11 h"),
        (36_000.0, "10.0 h"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_format_seconds_has_three_digits_that_are_right():
    sizes = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    for seconds in np.geomspace(1e-7, 3e5, 4001):
        number, unit = format_seconds(seconds).split(" ")
        assert re.fullmatch(r"\d\.\d\d|\d\d\.\d|\d{2,3}", number), number
        limit = 60 if unit in ("s", "min") else 1000
        assert float(number) <= limit
        # Half of the third digit; nanoseconds are whole, hence half of one.
        assert float(number) * sizes[unit] == pytest.approx(seconds, rel=5.1e-3, abs=0.5e-9)


def test_the_table_fits_80_columns_and_cuts_nothing():
    text = printed(ROWS)
    lines = text.splitlines()
    # Reasons are prose and may be longer; the table may not.
    assert max(len(line.rstrip()) for line in lines if "not run:" not in line) <= 80
    assert "…" not in text
    for row in ROWS:
        (line,) = [
            line for line in lines if re.match(rf"\s*{re.escape(row.implementation)}( \*|  )", line)
        ]
        assert ("not run" if row.median_s is None else format_seconds(row.median_s)) in line
    assert "softmax loss+gradient, 50,000 samples" in text


def test_the_table_compares_with_the_textbook():
    lines = printed(ROWS).splitlines()

    def line_of(name):
        return next(line for line in lines if line.strip().startswith(name + "  "))

    assert "1.00x" in line_of("textbook NumPy")
    assert "2.50x" in line_of("gpuclf on NumPy")
    assert "5.00x" in line_of("gpuclf on NumPy, uint8")
    assert "-10..+10%" in line_of("textbook NumPy")
    naive = next(line for line in lines if "naive loops" in line)
    assert "1/3,250" in naive
    bars = [line_of(i).count("█") for i in ("textbook NumPy", "gpuclf on NumPy")]
    assert 0 < naive.count("█") < bars[0] < bars[1]


def test_extrapolated_rows_are_marked_and_explained():
    text = printed(ROWS)
    assert "naive loops * (16)" in text
    assert "* extrapolated" in text
    assert "extrapolated" not in printed(ROWS[1:])


def test_reasons_are_shown_literally_and_once():
    # Joined again where the console may have wrapped it.
    text = " ".join(printed(ROWS).split())
    assert text.count(f"not run: {REASON}") == 1
    assert "not run:" not in printed(ROWS[:4])


def test_each_case_has_its_own_table():
    others = [replace(row, case="two-layer loss+gradient, 200 samples") for row in ROWS]
    text = printed(ROWS + others)
    assert "softmax loss+gradient, 50,000 samples" in text
    assert "two-layer loss+gradient, 200 samples" in text
    assert text.count("naive loops * (16)") == 2


def test_without_the_textbook_there_is_no_comparison_with_it():
    text = printed([row for row in ROWS if row.implementation != "textbook NumPy"])
    assert "nan" not in text
    assert "100 ms" in text


def test_a_table_in_which_nothing_could_run():
    assert "not run" in printed(ROWS[4:])


def test_rows_survive_json(no_gpu, tmp_path):
    rows = run_case(tiny_case(), make_inputs(), IMPLEMENTATIONS)
    path = tmp_path / "not" / "there" / "yet.json"
    write_json(path, {"rows": [row.as_dict() for row in rows]})
    text = path.read_text()
    assert text.endswith("\n")
    assert [Row(**row) for row in json.loads(text)["rows"]] == rows


# ------------------------------------------------------------------------------------- peers

EPOCHS = [Case(model, EPOCH, 60, 20, 1, batch_size=20) for model in (SOFTMAX, NET)]
SUPPORTED = {
    "scikit-learn": ["softmax loss+gradient", "k-NN l2", "k-NN l1"],
    "PyTorch": [case.operation for case in peer_cases(1000) + EPOCHS],
    "JAX": [case.operation for case in peer_cases(1000) + EPOCHS if case.operation != "k-NN l1"],
}
MODULES = {"scikit-learn": "sklearn", "PyTorch": "torch", "JAX": "jax"}


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("peer", PEERS[:3], ids=lambda peer: peer.name)
def test_peers_compute_the_same_in_every_case(peer, dtype):
    pytest.importorskip(MODULES[peer.name], reason=f"{peer.name} is not installed")
    inputs = make_inputs(dtype, n=60)
    for case in peer_cases(60, batch_size=20) + EPOCHS:
        once = replace(case, rounds=1, calls_a_turn=1)
        (found,) = run_case(once, inputs, [peer])
        expected = "timed" if case.operation in SUPPORTED[peer.name] else "unavailable"
        assert found.status == expected, found.reason


@pytest.mark.parametrize("ours", [FLOATS, BYTES], ids=lambda ours: ours.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_this_library_computes_the_same_in_every_case(ours, dtype):
    for case in peer_cases(60, batch_size=20) + EPOCHS:
        once = replace(case, rounds=1, calls_a_turn=1)
        rows = run_case(once, make_inputs(dtype, n=60), [TEXTBOOK, ours])
        assert [row.status for row in rows] == ["timed"] * 2, rows


@pytest.mark.parametrize("ours", [FLOATS, BYTES], ids=lambda ours: ours.name)
@pytest.mark.parametrize("case", EPOCHS, ids=lambda case: case.operation)
def test_an_epoch_on_ragged_batches_is_the_textbook_s(case, ours):
    ragged = replace(case, batch_size=25)
    rows = run_case(ragged, make_inputs(n=60), [TEXTBOOK, ours])
    assert [row.status for row in rows] == ["timed"] * 2, rows
    calls = [i.prepare(ragged, make_inputs("float64", n=60)) for i in (TEXTBOOK, ours)]
    for _ in range(3):  # orders take turns
        (losses, params), (found_losses, found) = (call() for call in calls)
        assert losses.shape == found_losses.shape == (3,)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-12)
        for name, value in params.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12)


def test_a_training_step_moves_the_parameters_by_momentum():
    case = tiny_case(STEPS)
    step = FLOATS.prepare(case, make_inputs("float64"))
    before = make_inputs("float64").params(NET)["W1"]
    _, params = step()
    first = params["W1"] - before
    after_one = params["W1"].copy()
    _, params = step()
    # Nesterov: 1.9 gradients the first time, 2.71 the second.
    assert np.linalg.norm(params["W1"] - after_one) == pytest.approx(
        2.71 / 1.9 * np.linalg.norm(first), rel=1e-2
    )


def test_other_labels_are_a_disagreement():
    def labelled(case, inputs):
        labels = inputs.y[: case.samples].copy()
        labels[::2] += 1
        return lambda: (0.0, labels)

    (row,) = run_case(
        tiny_case((None, "l2")), make_inputs(), [Implementation("x", "numpy", "float", labelled)]
    )
    assert row.status == "wrong"
    assert "of the labels" in row.reason


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    (row,) = run_case(tiny_case(), make_inputs(), [PEERS[2]])
    assert row.median_s is None
    assert row.reason == "JAX is not installed: pip install jax"


def test_settling_waits_for_threads_that_spin(monkeypatch):
    """A thread keeps the processor busy for three pauses."""
    clock = SimpleNamespace(process=0.0, pauses=0)

    def sleep(seconds):
        clock.pauses += 1
        clock.process += seconds if clock.pauses <= 3 else seconds / 100

    made_up = SimpleNamespace(sleep=sleep, process_time=lambda: clock.process)
    monkeypatch.setattr(devices, "time", made_up)
    HostDevice().settle()
    assert clock.pauses == 4
    clock.pauses = -1000  # a thread that never rests is not waited for
    HostDevice().settle()
    assert clock.pauses == -1000 + devices.SETTLE_STEPS


def test_peers_on_a_gpu_say_why_there_is_none():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    (row,) = run_case(tiny_case(), make_inputs(), [p for p in PEERS if p.name == "PyTorch on GPU"])
    assert row.status == "unavailable"
    assert row.reason.endswith("sees no CUDA device")


# ------------------------------------------------------------------- curves and the record


def test_each_axis_has_sizes_that_no_other_case_has():
    cases = default_cases(50_000) + scaling_cases(50_000)
    assert len({case.title for case in cases}) == len(cases)
    for axis in SCALING:
        assert sum(case.group == axis for case in cases) >= 3
    assert all(case.samples <= 1000 for case in scaling_cases(1000))


@pytest.mark.parametrize(
    "case",
    [
        Case(SOFTMAX, LOSS, 40, 10, 1, models=3, group="models"),
        Case(SOFTMAX, LOSS, 40, 10, 1, classes=4, group="classes"),
        Case(SVM, LOSS, 40, 10, 1, classes=25),
        Case(net_of(7), LOSS, 40, 4, 1, group="hidden units"),
    ],
    ids=lambda case: case.group,
)
def test_models_classes_and_hidden_units_are_sizes_too(case):
    rows = run_case(case, make_inputs(), [TEXTBOOK, FLOATS, BYTES])
    assert [row.status for row in rows] == ["timed"] * 3, [row.reason for row in rows]
    assert {row.classes for row in rows} == {case.classes or 10}
    params = 12 * (case.classes or 10) * case.models
    if case.hidden_units is None:
        assert rows[0].operations == 4 * 40 * params
        assert rows[0].bytes == 40 * (12 * 4 + 8) + 2 * 4 * params


def test_a_fleet_is_held_against_each_model_alone():
    def forget_one(losses, gradients):
        dW = gradients["W"].copy()
        dW[1] = dW[0]
        return losses, {"W": dW}

    case = Case(SOFTMAX, LOSS, 40, 10, 1, models=3)
    (row,) = run_case(case, make_inputs(), [spoiled(FLOATS, forget_one)])
    assert row.status == "wrong"


def curve(sizes, numpy_s, cupy_s):
    rows = []
    for n, *seconds in zip(sizes, numpy_s, cupy_s, strict=True):
        for name, median in zip(("NumPy", "CuPy"), seconds, strict=True):
            rows.append(make_row(f"gpuclf on {name}, uint8", median, samples=n, case=f"{n}"))
    return rows


def test_the_break_even_lies_between_the_sizes_where_the_lead_changes():
    # NumPy takes n, CuPy 1000 whatever n.
    found = break_even(curve([10, 100, 10_000], [10.0, 100.0, 10_000.0], [1000.0] * 3))
    assert found["samples"] == 1000
    never = break_even(curve([10, 100], [1.0, 1.0], [2.0, 2.0]))
    assert never["samples"] is None
    assert "up to 100" in never["reason"]
    always = break_even(curve([10, 100], [3.0, 3.0], [2.0, 2.0]))
    assert always["samples"] == 10
    assert break_even(ROWS)["reason"] == REASON


def test_the_curves_have_a_column_for_each_size():
    rows = [
        make_row(name, seconds, group="models", models=models, case=f"{models}")
        for name, times in (("textbook NumPy", (1.0, 8.0)), ("gpuclf on NumPy", (0.5, 1.0)))
        for models, seconds in zip((1, 8), times, strict=True)
    ]
    text = printed(rows)
    assert "time a model, against models" in " ".join(text.split())
    (line,) = [line for line in text.splitlines() if line.strip().startswith("gpuclf on NumPy")]
    assert line.split()[-4:] == ["500", "ms", "125", "ms"]


def test_what_was_refused_is_printed_with_its_reason():
    rows = [*ROWS[:2], make_row("gpuclf on NumPy", 1e-9, status="rejected", reason="too fast")]
    text = printed(rows)
    assert "rejected: gpuclf on NumPy, softmax loss+gradient, 50,000 samples: too fast" in " ".join(
        text.split()
    )
    assert "1.00 ns" not in text


def test_the_record_says_how_to_reproduce_it():
    common = {"dataset": {}, "settings": {}, "environment": {"cpu": "x"}, "ceilings": {}}
    record = make_record(ROWS, command="gpuclf bench", unfinished=None, **common)
    assert record["version"] == 3
    assert record["command"] == "gpuclf bench"
    assert set(record["environment"]) == {"cpu", "commit"}
    assert json.loads(json.dumps(record)) == record
    assert [Row(**row) for row in record["rows"]] == ROWS
