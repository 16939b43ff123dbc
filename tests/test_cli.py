import io
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from typer.testing import CliRunner

import gpuclf
import gpuclf.cli.output
import gpuclf.datasets
from gpuclf.augment import horizontal_flip
from gpuclf.bench import IMPLEMENTATIONS, Implementation, default_cases, run_case, scaling_cases
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.measure.timing import new_row
from gpuclf.cli import app
from gpuclf.datasets import ImageDataset, make_synthetic
from gpuclf.devices.cupy import CupyProbe
from gpuclf.preprocessing import subtract_mean_image

N_TRAIN, N_TEST, N_VALIDATION = 1400, 120, 280
PRECISE = "float64"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(
        "gpuclf.devices.cupy.probe_cupy", lambda: CupyProbe(False, "no CuPy in tests")
    )


@pytest.fixture(scope="module")
def images():
    X, y = make_synthetic(N_TRAIN + N_TEST, seed=0)
    return ImageDataset(
        *(X[:N_TRAIN], y[:N_TRAIN], X[N_TRAIN:], y[N_TRAIN:]),
        name="small", source="small, in memory", image_shape=(3, 32, 32),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch, images):
    """Replace the synthetic data by few images; other data are looked for as ever."""
    load = gpuclf.datasets.load_dataset
    asked = []

    def load_small(name="auto", data_dir=None, seed=0):
        asked.append((name, data_dir, seed))
        return images if name == "synthetic" and seed >= 0 else load(name, data_dir, seed)

    monkeypatch.setattr(gpuclf.datasets, "load_dataset", load_small)
    return asked


@pytest.fixture
def narrow(monkeypatch, images):
    """The same with every 64th pixel only, where the loops run."""
    few = images._replace(X_train=images.X_train[:, ::64].copy(), X_test=images.X_test[:, ::64])
    monkeypatch.setattr(gpuclf.datasets, "load_dataset", lambda *args: few)
    # Ceilings that nothing beats: those of a busy machine are now and then too low.
    ceilings = {"bytes_per_s": {"read": 1e15}, "operations_per_s": {"float32": 1e18}}
    monkeypatch.setattr("gpuclf.bench.measure.roofline.measure_ceilings", lambda *args: ceilings)
    monkeypatch.setattr(HostDevice, "settle", lambda self: None)


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def run_main(monkeypatch, capfd, *arguments):
    """Run the entry point itself, in which expected errors become one line."""
    monkeypatch.setattr(sys, "argv", ["gpuclf", *map(str, arguments)])
    # The module's console may have been made for a stream of another test.
    monkeypatch.setattr(gpuclf.cli.output, "console", Console())
    with pytest.raises(SystemExit) as ended:
        gpuclf.cli.main()
    out, err = capfd.readouterr()
    return ended.value.code, out, err


def in_a_new_process(code):
    environment = {k: v for k, v in os.environ.items() if k != "GPUCLF_DATA"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


# ---------------------------------------------------------------------------------- --help


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["search", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["gpuclf", *{arguments!r}]
from gpuclf.cli import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = ("sklearn", "scipy", "cupy", "torch", "gpuclf.estimators", "gpuclf.bench")
print("loaded:", [name for name in heavy if name in sys.modules])
"""
    done = in_a_new_process(code)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert "loaded: []" in done.stdout


def test_help_names_the_commands():
    output = run("--help")
    for command in ("bench", "train", "search", "info"):
        assert command in output


# ------------------------------------------------------------------------------------ info


def test_info_shows_versions_and_why_there_is_no_gpu():
    output = " ".join(run("info").split())
    assert f"gpuclf {gpuclf.__version__}" in output
    assert f"numpy {np.__version__}" in output
    assert "no CuPy in tests" in output
    assert "pip install 'cupy-cuda13x[ctk]'" in output
    assert "BLAS" in output


def test_info_writes_json(tmp_path):
    path = tmp_path / "info.json"
    run("info", "--json", path)
    found = json.loads(path.read_text())
    assert {"python", "platform", "cpu", "cpu_count", "blas", "threads", "gpu", "versions"} <= set(
        found
    )
    assert (found["gpu"]["usable"], found["gpu"]["reason"]) == (False, "no CuPy in tests")
    assert found["versions"]["numpy"] == np.__version__


@pytest.mark.nightly
@pytest.mark.slow
def test_what_is_compiled_ahead_is_not_announced_again(tmp_path):
    pytest.importorskip("numba", reason="numba is not installed")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    warm_up = ["-m", "gpuclf", "info", "--warm-up"]
    train = ["-m", "gpuclf", "train", "softmax", "--data", "synthetic", "--epochs", "1"]
    said = []
    for arguments in (warm_up, [*train, "--backend", "numpy"], ["-c", KNN], ["-c", LBFGS]):
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        said.append(done.stderr)
    assert said[0].replace("\n", " ").count("once, about ") >= 3
    assert "compiling" not in said[1] + said[2] + said[3]


KNN = """
import numpy, gpuclf
X = numpy.random.default_rng(0).standard_normal((2000, 128))
for dtype in ("float16", "float32", "float64"):
    for metric in ("l2", "l1", "cosine"):
        model = gpuclf.KNeighborsClassifier(metric=metric)
        model.fit(X.astype(dtype), numpy.arange(2000) % 2).predict(X.astype(dtype))
"""


LBFGS = """
import numpy
from gpuclf import FleetSearchCV, SoftmaxClassifier
X, y = numpy.random.default_rng(0).integers(0, 256, (25_000, 300)), numpy.arange(25_000) % 10
for n_models in (2, 8):
    grid = {"reg": numpy.geomspace(1e-3, 1, n_models)}
    for dtype in ("uint8", "float32"):
        classifier = SoftmaxClassifier(solver="lbfgs", max_iter=2)
        FleetSearchCV(classifier, grid, cv=2).fit(X.astype(dtype), y)
"""


# ----------------------------------------------------------------------------------- bench


BENCH = ("bench", "--data", "synthetic", "--time-budget", 0)


@pytest.mark.nightly
@pytest.mark.slow
def test_bench_writes_what_was_measured(narrow, tmp_path):
    path = tmp_path / "new folder" / "bench.json"
    output = run(*BENCH, "--samples", 600, "--seed", 5, "--json", path)
    found = json.loads(path.read_text())
    assert found["settings"] == {
        "dtype": "float32",
        "seed": 5,
        "samples": 600,
        "backend": "auto",
        "peers": False,
        "quick": False,
        "time_budget_s": 0.0,
        "only": [],
    }
    assert found["dataset"]["source"] == "small, in memory"
    assert found["environment"]["gpu"]["usable"] is False
    assert found["ceilings"]["operations_per_s"]["float32"] > 1e8
    assert "no CuPy in tests" in found["break_even"][0]["reason"]
    assert found["unfinished"] is None
    ladder = [row for row in found["rows"] if row["group"] == "ladder"]
    assert {(row["case"], row["implementation"]) for row in ladder} == {
        (case.title, implementation.name)
        for case in default_cases(600)
        for implementation in IMPLEMENTATIONS
    }
    curves = [row for row in found["rows"] if row["group"] != "ladder"]
    assert {row["case"] for row in curves} == {case.title for case in scaling_cases(600)}
    assert {row["device"] for row in curves} == {"cpu"}
    for row in found["rows"]:
        assert row["dtype"] == "float32"
        assert row["extrapolated"] is (row["measured_samples"] < row["samples"])
        assert row["array_library"] == "python" or not row["extrapolated"]
        if row["array_library"] == "cupy":
            assert row["median_s"] is row["p20_s"] is row["p80_s"] is None
            assert "no CuPy in tests" in row["reason"]
        else:
            assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
            assert 0 < row["share_of_floor"] < 1
    assert "data: small, in memory; 600 x 48, float32" in output
    assert "softmax loss+gradient, 600 samples" in output
    # Titles are broken where times are short, and with them the table.
    assert "two-layer training step, against batch size" in " ".join(output.split())
    assert "cupy-cuda13x[ctk]" in output
    assert str(path) in output.replace("\n", "")


def test_bench_on_numpy_lists_no_gpu(narrow, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ("--samples", 200, "--backend", "numpy", "--dtype", "float64", "--quick")
    output = run(*BENCH, *arguments, "--json", path)
    assert "CuPy, uint8" not in output
    rows = json.loads(path.read_text())["rows"]
    assert {row["array_library"] for row in rows} == {"python", "numpy"}
    assert {row["dtype"] for row in rows} == {"float64"}
    assert {row["samples"] for row in rows} == {200}
    assert {row["group"] for row in rows} == {"ladder"}


def test_bench_on_more_samples_than_there_are_takes_all(narrow, tmp_path):
    path = tmp_path / "bench.json"
    only = ("--only", f"softmax*{N_TRAIN:,} samples", "--only", "numpy", "--json", path)
    run(*BENCH, "--samples", 10**6, "--backend", "numpy", *only)
    found = json.loads(path.read_text())
    assert found["settings"]["samples"] == N_TRAIN
    names = ["textbook NumPy", "gpuclf on NumPy", "gpuclf on NumPy, uint8"]
    assert [(row["operation"], row["implementation"]) for row in found["rows"]] == [
        ("softmax loss+gradient", name) for name in names
    ]


def test_bench_lists_cases_and_implementations(narrow):
    output = run("bench", "--list")
    for case in default_cases(50_000) + scaling_cases(50_000):
        assert f"{case.title} ({case.group})" in output
    assert all(implementation.name in output for implementation in IMPLEMENTATIONS)
    assert "median" not in output
    output = run("bench", "--list", "--only", "models", "--only", "gpuclf on NumPy")
    lines = [line.strip() for line in output.splitlines()]
    axis = [case for case in scaling_cases(50_000) if case.group == "models"]
    cases = [f"{case.title} ({case.group})" for case in axis]
    assert lines == ["cases", *cases, "implementations", "gpuclf on NumPy"]


def test_bench_only_what_is_not_there_is_refused(monkeypatch, capfd, narrow):
    code, _, err = run_main(monkeypatch, capfd, *BENCH, "--only", "coffee")
    assert code == 2
    assert "--only 'coffee' names no case and no implementation" in " ".join(err.split())


def test_bench_with_a_wrong_implementation_exits_with_1(narrow, monkeypatch):
    def wrong(case, inputs):
        return lambda: (np.float64(0.0), inputs.W)

    listed = [Implementation("wrong", "numpy", "float", wrong)]
    monkeypatch.setattr("gpuclf.bench.IMPLEMENTATIONS", listed)
    result = CliRunner().invoke(app, [str(a) for a in (*BENCH, "--quick", "--samples", 200)])
    assert result.exit_code == 1
    assert "wrong: wrong, softmax loss+gradient, 200 samples: " in " ".join(result.output.split())


def test_bench_interrupted_keeps_what_is_finished(narrow, monkeypatch, tmp_path):
    asked = []

    def interrupted(case, *args, **options):
        asked.append(case)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run_case(case, *args, **options)

    monkeypatch.setattr("gpuclf.bench.run_case", interrupted)
    path = tmp_path / "bench.json"
    result = CliRunner().invoke(
        app, [str(a) for a in (*BENCH, "--quick", "--samples", 400, "--json", path)]
    )
    assert result.exit_code == 130
    found = json.loads(path.read_text())
    assert found["unfinished"] == "interrupted after 1 of 4 cases"
    assert {row["case"] for row in found["rows"]} == {asked[0].title}
    assert "softmax loss+gradient, 400 samples" in result.output


CASE = "two-layer loss+gradient, 400 samples"
OWN = "gpuclf on NumPy"
OF_CASE = (*BENCH, "--samples", 400, "--quick", "--only", CASE, "--only", "*numpy*")


@pytest.fixture
def made_up(monkeypatch, narrow):
    """Give rows the seconds that a test names, and run no clock."""
    seconds = {"textbook NumPy": 0.2, OWN: 0.05, f"{OWN}, uint8": 0.025}

    def run_case(case, inputs, implementations, **options):
        rows = [new_row(case, inputs, i, {}) for i in implementations]
        for number, row in enumerate(rows):
            row.times_s = [seconds[row.implementation] * (1 + 0.001 * (k % 7)) for k in range(60)]
            row.p20_s, row.median_s, row.p80_s = np.percentile(row.times_s, [20, 50, 80]).tolist()
            if seconds.get("wrong") == row.implementation:
                rows[number] = replace(row, status="wrong", reason="made up", times_s=[])
        return rows

    monkeypatch.setattr("gpuclf.bench.run_case", run_case)
    return seconds


def compared(old, *options):
    arguments = [str(a) for a in (*OF_CASE, *options, "--compare", old)]
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def old(made_up, tmp_path):
    path = tmp_path / "old.json"
    run(*OF_CASE, "--json", path)
    return path


@pytest.fixture
def again(monkeypatch, made_up):
    """Run the command that measures again here, with what the test adds to the seconds."""
    changes, commands = {}, []

    def run_here(command, **options):
        assert command[:3] == [sys.executable, "-m", "gpuclf.cli"]
        commands.append(command[3:])
        made_up.update(changes)
        result = CliRunner().invoke(app, command[3:])
        return subprocess.CompletedProcess(command, result.exit_code, "", result.output)

    # Not of the module `subprocess` itself: the record asks git for the commit.
    standing_in = SimpleNamespace(run=run_here)
    monkeypatch.setattr(sys.modules["gpuclf.cli.bench"], "subprocess", standing_in)
    return changes, commands


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize(
    ("now", "later", "code", "said"),
    [
        ({}, None, 0, "nothing became slower by 10% or more"),
        ({OWN: 0.03}, None, 0, "nothing became slower"),
        ({OWN: 0.1}, {}, 1, f"worst: {OWN}, {CASE}: +100%"),
        ({OWN: 0.1}, {OWN: 0.05}, 0, "nothing became slower"),
        ({OWN: 0.1}, {OWN: 0.075}, 1, f"worst: {OWN}, {CASE}: +50%"),
        ({"wrong": OWN}, None, 1, "broken"),
    ],
    ids=["as before", "faster", "slower twice", "slower once", "less slow", "broken"],
)
def test_bench_compares_and_measures_again_what_became_slower(
    now, later, code, said, old, again, made_up
):
    changes, commands = again
    changes.update(later or {})
    made_up.update(now)
    result = compared(old)
    assert result.exit_code == code, result.output
    output = " ".join(result.output.split())
    assert said in output
    assert ("slower rows are measured again" in output) == (later is not None)
    assert len(commands) == (later is not None)


def test_bench_measures_again_in_another_process_with_the_same_options(old, again, made_up):
    made_up[OWN] = 0.1
    options = ("--dtype", "float64", "--backend", "numpy", "--time-budget", 3, "--seed", 7)
    compared(old, *options)  # of another dtype than before
    assert not again[1]
    run(*OF_CASE, *options, "--json", old)
    made_up[OWN] = 0.2
    compared(old, *options)
    (command,) = again[1]
    assert command[0] == "bench"
    assert {
        *("--quick", "--data=synthetic", "--samples=400", "--dtype=float64", "--backend=numpy"),
        *("--time-budget=3.0", "--seed=7", f"--only={CASE}", "--only=*numpy*"),
    } <= set(command)
    assert "--peers" not in command


def test_bench_says_why_it_could_not_measure_again(old, made_up, monkeypatch):
    made_up[OWN] = 0.1
    failed = subprocess.CompletedProcess([], 1, "", "no memory")
    standing_in = SimpleNamespace(run=lambda *args, **options: failed)
    monkeypatch.setattr(sys.modules["gpuclf.cli.bench"], "subprocess", standing_in)
    assert "measuring again failed: no memory" in str(compared(old).exception)


def test_bench_refuses_what_is_no_record_before_it_measures(monkeypatch, capfd, narrow, tmp_path):
    path = tmp_path / "old.json"
    path.write_text("[]")
    code, out, err = run_main(monkeypatch, capfd, *BENCH, "--compare", path)
    assert code == 1
    assert "holds a list" in err
    assert "Traceback" not in out + err


# ----------------------------------------------------------------------------------- train


@pytest.mark.essential_cases(1, in_ci=1)
@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (
            "softmax",
            ["--epochs", 2, "--learning-rate", 0.002, "--batch-size", 50, "--reg", 0.01],
            {"max_iter": 2, "learning_rate": 0.002, "batch_size": 50, "reg": 0.01},
        ),
        (
            "softmax",
            ["--epochs", 3, "--solver", "lbfgs"],
            {"max_iter": 3, "solver": "lbfgs"},
        ),
        (
            "svm",
            ["--epochs", 2, "--learning-rate", 1e-4, "--flip"],
            {
                **{"max_iter": 2, "learning_rate": 1e-4, "batch_size": "auto"},
                "augment": "horizontal_flip",
            },
        ),
        (
            "two-layer",
            ["--epochs", 1, "--hidden-size", 8, "--dropout", 0.2],
            {
                **{"max_iter": 1, "hidden_size": 8, "batch_size": 256, "dropout": 0.2},
                "augment": "horizontal_flip",
            },
        ),
    ],
    ids=["softmax", "softmax-lbfgs", "svm", "two-layer"],
)
def test_train_reports_the_accuracy_on_each_part(small, images, tmp_path, model, options, expected):
    path = tmp_path / "train.json"
    output = run(
        *("train", model, "--data", "synthetic", "--dtype", PRECISE, "--seed", 3),
        *options,
        *("--json", path),
    )
    found = json.loads(path.read_text())
    assert found["model"] == model
    assert found["dataset"] == {
        "name": "small",
        "source": "small, in memory",
        "train_samples": N_TRAIN,
        "test_samples": N_TEST,
    }
    settings = found["settings"]
    wanted = {"precision": PRECISE, "random_state": 3, "backend": "numpy"} | expected
    assert {name: settings[name] for name in wanted} == wanted
    assert small == [("synthetic", None, 3)]

    # Trained again with the settings it reports, on the parts it should have used.
    kind = {
        "softmax": gpuclf.SoftmaxClassifier,
        "svm": gpuclf.LinearSVMClassifier,
        "two-layer": gpuclf.TwoLayerNetClassifier,
    }[model]
    params = {name: value for name, value in settings.items() if name != "backend"}
    params["augment"] = horizontal_flip if params["augment"] else None
    n_fit = N_TRAIN - N_VALIDATION
    X_val, y_val = images.X_train[n_fit:], images.y_train[n_fit:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = kind(**params).fit(
            images.X_train[:n_fit], images.y_train[:n_fit], X_val=X_val, y_val=y_val
        )
    assert found["loss_history"] == classifier.loss_history_
    assert found["val_accuracy_history"] == classifier.val_accuracy_history_
    assert len(found["val_accuracy_history"]) == expected["max_iter"]
    assert found["train_accuracy"] == classifier.score(
        images.X_train[:n_fit], images.y_train[:n_fit]
    )
    assert found["val_accuracy"] == classifier.score(X_val, y_val)
    assert found["test_accuracy"] == classifier.score(images.X_test, images.y_test)
    assert len({found[f"{part}_accuracy"] for part in ("train", "val", "test")}) == 3
    assert found["fit_seconds"] > 0
    assert found["environment"]["versions"]["numpy"] == np.__version__

    assert "data: small, in memory" in output
    assert "on: numpy" in output
    for part in ("train", "val", "test"):
        assert f"{found[f'{part}_accuracy']:.4f}" in output
    assert "validation accuracy" in output
    assert ("L-BFGS had not converged after 3 iterations" in output) is ("solver" in expected)
    assert str(path) in output.replace("\n", "")


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("options", "n_neighbors", "metric"),
    [((), 5, "l2"), (("--neighbors", 1, "--metric", "l1"), 1, "l1")],
)
def test_train_knn_classifies_the_test_images(
    small, images, tmp_path, options, n_neighbors, metric
):
    path = tmp_path / "knn.json"
    arguments = ("--data", "synthetic", "--backend", "numpy", "--json", path)
    output = run("train", "knn", *arguments, *options)
    found = json.loads(path.read_text())
    assert found["settings"] == {"n_neighbors": n_neighbors, "metric": metric, "backend": "numpy"}
    classifier = gpuclf.KNeighborsClassifier(n_neighbors, metric=metric)
    classifier.fit(images.X_train, images.y_train)
    assert found["test_accuracy"] == classifier.score(images.X_test, images.y_test)
    assert f"{found['test_accuracy']:.4f}" in output
    assert found["predict_seconds"] > 0
    assert str(path) in output.replace("\n", "")


def test_train_shows_each_epoch_where_there_is_no_terminal(small):
    output = run("train", "softmax", "--data", "synthetic", "--epochs", 2, "--backend", "numpy")
    for epoch in (1, 2):
        assert f"epoch {epoch}: loss" in output


def test_the_same_seed_trains_the_same_model(small, tmp_path):
    losses = []
    for seed in (1, 1, 2):
        path = tmp_path / "train.json"
        run(
            *("train", "softmax", "--data", "synthetic", "--epochs", 1),
            *("--seed", seed, "--json", path),
        )
        losses.append(json.loads(path.read_text())["loss_history"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("model", "accuracy"), [("softmax", 0.39), ("svm", 0.385), ("two-layer", 0.54)]
)
def test_the_defaults_learn_the_real_cifar10(tmp_path, model, accuracy):
    path = tmp_path / "train.json"
    output = run("train", model, "--data", "cifar10", "--json", path)
    found = json.loads(path.read_text())
    assert found["dataset"]["train_samples"] == 50_000
    assert found["test_accuracy"] >= accuracy
    assert "CIFAR-10" in output


# ---------------------------------------------------------------------------------- search


def searched(tmp_path, *arguments):
    path = tmp_path / "search.json"
    output = run("search", *arguments, "--data", "synthetic", "--json", path)
    return output, json.loads(path.read_text())


@pytest.mark.slow
def test_search_shares_its_candidates_among_processes(small, tmp_path):
    sizes = ("softmax", "--rounds", 1, "--candidates", 3, "--epochs", 1, "--dtype", "float64")
    _, alone = searched(tmp_path, *sizes)
    _, shared = searched(tmp_path, *sizes, "--n-jobs", 2)
    rows = [
        [(row["params"], row["val_accuracy"]) for row in of["results"]] for of in (alone, shared)
    ]
    assert rows[0] == rows[1]
    assert alone["test_accuracy"] == shared["test_accuracy"]


def test_search_trains_and_tests_the_best_it_found(small, images, tmp_path):
    picture = tmp_path / "new folder" / "search.png"
    output, found = searched(
        *(tmp_path, "softmax", "--rounds", 2, "--candidates", 3, "--epochs", 1),
        *("--final-epochs", 2, "--samples", 300, "--dtype", PRECISE, "--seed", 3),
        *("--learning-rate", 1e-4, 1e-1, "--plot", picture),
    )
    assert small == [("synthetic", None, 3)]
    assert found["model"] == "softmax"
    assert found["dataset"]["train_samples"] == N_TRAIN
    assert found["space"]["learning_rate"] == [1e-4, 1e-1]
    rows = found["results"]
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1]
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert found["best_params"] == best["params"]

    n_fit = N_TRAIN - N_VALIDATION
    X_val, y_val = images.X_train[n_fit:], images.y_train[n_fit:]
    features = gpuclf.Standardized.fit(images.X_train[:n_fit])
    options = {"precision": PRECISE, "random_state": 3} | found["best_params"]
    candidate = gpuclf.SoftmaxClassifier(max_iter=1, **options)
    candidate.fit(features[:300], images.y_train[:300])
    assert best["val_accuracy"] == candidate.score(X_val, y_val)
    final = gpuclf.SoftmaxClassifier(max_iter=2, **options).fit(features, images.y_train[:n_fit])
    assert found["val_accuracy"] == final.score(X_val, y_val)
    assert found["test_accuracy"] == final.score(images.X_test, images.y_test)
    wanted = options | {"max_iter": 2, "backend": "numpy", "samples": 300}
    assert {name: found["settings"][name] for name in wanted} == wanted
    assert found["search_seconds"] > 0
    assert found["fit_seconds"] > 0

    for number in range(1, 7):
        assert f"{number} of 6: learning_rate" in output
    assert output.count("3 candidates together: epoch 1 of 1, about") == 2  # once a round
    assert "6 of 6" in output
    assert output.count("searched)") == 1
    assert "of searching left" in output
    assert "best candidates" in output
    assert f"{found['test_accuracy']:.4f}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"drawn to {picture}" in output


@pytest.mark.slow
def test_search_of_the_net_takes_its_size(small, tmp_path):
    _, found = searched(
        *(tmp_path, "two-layer", "--rounds", 1, "--candidates", 2, "--epochs", 1),
        *("--final-epochs", 1, "--hidden-size", 5),
    )
    assert found["settings"]["hidden_size"] == 5
    assert len(found["results"]) == 2


@pytest.mark.slow
def test_search_by_lbfgs_searches_the_penalty_of_candidates_in_lockstep(small, tmp_path):
    options = ["softmax", "--solver", "lbfgs", "--rounds", 2, "--candidates", 3, "--epochs", 4]
    _, found = searched(tmp_path, *options)
    assert list(found["space"]) == ["reg"]
    assert len(found["results"]) == 6
    assert found["settings"]["solver"] == "lbfgs"
    assert found["settings"]["max_iter"] == 60
    seconds = [row["fit_seconds"] for row in found["results"]]
    assert len(set(seconds[:3])) == len(set(seconds[3:])) == 1  # shares of a fleet's time


def test_search_for_the_svm_trains_svms(small, images, tmp_path):
    _, found = searched(
        *(tmp_path, "svm", "--rounds", 1, "--candidates", 2, "--epochs", 1, "--final-epochs", 1)
    )
    n_fit = N_TRAIN - N_VALIDATION
    svm = gpuclf.LinearSVMClassifier(
        max_iter=1, precision="float32", random_state=0, **found["best_params"]
    ).fit(images.X_train[:n_fit], images.y_train[:n_fit])
    assert found["test_accuracy"] == svm.score(images.X_test, images.y_test)


def test_search_for_the_number_of_neighbours_tries_each(small, images, tmp_path):
    picture = tmp_path / "knn.png"
    output, found = searched(tmp_path, "knn", "--plot", picture)
    tried = [row["params"]["n_neighbors"] for row in found["results"]]
    assert tried == [1, 3, 5, 8, 10, 12, 15, 20, 50, 100]
    n_fit = N_TRAIN - N_VALIDATION
    classifier = gpuclf.KNeighborsClassifier(**found["best_params"])
    classifier.fit(images.X_train[:n_fit], images.y_train[:n_fit])
    assert found["val_accuracy"] == classifier.score(images.X_train[n_fit:], images.y_train[n_fit:])
    assert found["val_accuracy"] == max(row["val_accuracy"] for row in found["results"])
    assert found["test_accuracy"] == classifier.score(images.X_test, images.y_test)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "best candidates" in output


@pytest.mark.slow
def test_search_knn_takes_a_metric_and_numbers_of_neighbours(small, images, tmp_path, monkeypatch):
    searches = []
    k_neighbors = gpuclf.models.neighbors.k_neighbors
    monkeypatch.setattr(
        gpuclf.models.neighbors,
        "k_neighbors",
        lambda *given, **options: searches.append(given[2:4]) or k_neighbors(*given, **options),
    )
    options = ("--metric", "l1", "--neighbors", 4, "--neighbors", 2, "--samples", 10)
    _, found = searched(tmp_path, "knn", *options)
    assert searches == [(4, "l1")] * 2  # validation and training samples, once for all k
    n_fit = N_TRAIN - N_VALIDATION
    for row, k in zip(found["results"], (4, 2), strict=True):
        classifier = gpuclf.KNeighborsClassifier(k, metric="l1")
        classifier.fit(images.X_train[:10], images.y_train[:10])
        assert row["params"] == {"n_neighbors": k}
        assert row["val_accuracy"] == classifier.score(
            images.X_train[n_fit:], images.y_train[n_fit:]
        )
    assert found["settings"]["metric"] == "l1"
    assert found["settings"]["samples"] == 10


def test_search_knn_tries_the_numbers_that_there_are_samples_for(small, tmp_path):
    _, found = searched(tmp_path, "knn", "--samples", 10)
    assert [row["params"]["n_neighbors"] for row in found["results"]] == [1, 3, 5, 8, 10]


def test_search_says_which_candidates_diverged_and_goes_on(small, tmp_path):
    output, found = searched(
        *(tmp_path, "softmax", "--rounds", 1, "--candidates", 4, "--epochs", 3),
        *("--learning-rate", 1e-3, 1e9, "--reg", 1, 10, "--final-epochs", 1),
    )
    assert {row["diverged"] for row in found["results"]} == {True, False}
    assert ": diverged (" in output


@pytest.mark.slow
def test_search_on_a_terminal_shows_the_leaders_live(monkeypatch, small):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(gpuclf.cli.output, "console", console)
    run("search", "softmax", "--data", "synthetic", "--rounds", 1, "--candidates", 2)
    shown = screen.getvalue()
    assert shown.count("best candidates") >= 2  # drawn again and again
    assert "1 of 2, about" in shown
    assert "1 of 2: " not in shown  # lines are for where there is no terminal


@pytest.mark.parametrize(
    ("plot", "message"),
    [("search.gif2", "must end in one of"), ("search", "must end in one of")],
)
def test_a_picture_that_could_not_be_written_is_refused_at_once(
    monkeypatch, capfd, tmp_path, small, plot, message
):
    arguments = ("search", "softmax", "--data", "synthetic", "--plot", tmp_path / plot)
    code, _, err = run_main(monkeypatch, capfd, *arguments)
    assert code == 1
    assert message in err
    assert ".png" in err
    assert small == []
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_picture_is_refused_at_once(monkeypatch, capfd, tmp_path, small):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ("search", "softmax", "--data", "synthetic", "--plot", tmp_path / "x.png")
    code, out, err = run_main(monkeypatch, capfd, *arguments)
    assert code == 1
    assert "pip install matplotlib" in err
    assert "Traceback" not in out + err
    assert small == []


def test_a_search_in_which_all_diverge_ends_with_the_remedy(monkeypatch, capfd, small):
    code, _, err = run_main(
        *(monkeypatch, capfd, "search", "softmax", "--data", "synthetic", "--rounds", 1),
        *("--candidates", 2, "--learning-rate", 1e9, 1e12, "--reg", 1, 10),
    )
    assert code == 1
    assert "error: all 2 candidates diverged" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["softmax", "--learning-rate", 2, 1],
        ["softmax", "--reg", -1, 1],
        ["svm", "--learning-rate", "nan", 1],
        ["two-layer", "--learning-rate", 0, 1],
    ],
)
def test_ranges_that_cannot_be_searched_are_refused_before_the_data_are_loaded(
    monkeypatch, capfd, small, arguments
):
    code, _, err = run_main(monkeypatch, capfd, "search", *arguments, "--data", "synthetic")
    assert code == 1
    assert f"error: {arguments[1][2:].replace('-', '_')} must be searched in (low, high)" in err
    assert small == []


def test_search_may_subtract_the_mean_image_only_as_the_course_does(small, images, tmp_path):
    _, found = searched(
        *(tmp_path, "softmax", "--mean-image", "--rounds", 1, "--candidates", 2),
        *("--epochs", 1, "--final-epochs", 1),
    )
    assert found["settings"]["mean_image"] is True
    assert found["space"]["learning_rate"][1] < 1e-4  # pixels are some 64 times as large
    n_fit = N_TRAIN - N_VALIDATION
    train = subtract_mean_image(images.X_train[:n_fit])
    classifier = gpuclf.SoftmaxClassifier(
        max_iter=1, precision="float32", random_state=0, **found["best_params"]
    ).fit(train, images.y_train[:n_fit])
    assert found["test_accuracy"] == classifier.score(images.X_test, images.y_test)


def test_a_search_that_is_aborted_leaves_nothing_behind(monkeypatch, capfd, tmp_path, small):
    code, _, _ = run_main(
        *(monkeypatch, capfd, "search", "softmax", "--data", "synthetic", "--rounds", 1),
        *("--candidates", 2, "--learning-rate", 1e9, 1e12, "--reg", 1, 10),
        *("--plot", tmp_path / "new" / "folder" / "x.png", "--json", tmp_path / "a" / "x.json"),
    )
    assert code == 1
    assert not list(tmp_path.iterdir())


def test_preparing_a_file_that_is_there_keeps_it(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("before")
    gpuclf.cli.output.prepare(path)
    assert path.read_text() == "before"


def test_the_time_to_train_is_not_announced_from_so_few_samples_as_tell_nothing(small, monkeypatch):
    ticks = itertools.count(0.0, 0.01)  # a clock that no busy machine makes faster
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("gpuclf.search.time", clock)
    few = run(
        *("search", "softmax", "--data", "synthetic", "--rounds", 1, "--candidates", 2),
        *("--samples", 5, "--epochs", 1, "--final-epochs", 1),
    )
    seconds = re.search(r"training with .* images, about ([\d.]+) (\w+)", few)
    assert seconds is not None
    assert seconds[2] in ("us", "ms") or (seconds[2] == "s" and float(seconds[1]) < 3)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("model", "accuracy"), [("softmax", 0.39), ("svm", 0.385), ("two-layer", 0.52)]
)
def test_a_short_search_reaches_the_course_s_accuracies_on_the_real_cifar10(
    tmp_path, model, accuracy
):
    path = tmp_path / "search.json"
    run(
        *("search", model, "--data", "cifar10", "--rounds", 2, "--candidates", 4),
        *("--epochs", 1, "--json", path),
    )
    found = json.loads(path.read_text())
    assert found["val_accuracy"] >= accuracy
    assert found["test_accuracy"] >= accuracy - 0.02  # of ten times as many images


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("arguments", [["bench"], ["train", "softmax"], ["search", "softmax"]])
def test_cupy_without_a_gpu_ends_with_the_reason_and_the_remedy(
    monkeypatch, capfd, small, arguments
):
    code, out, err = run_main(
        monkeypatch, capfd, *arguments, "--data", "synthetic", "--backend", "cupy"
    )
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert "no CuPy in tests" in err
    assert "pip install 'cupy-cuda13x[ctk]'" in err
    assert "Traceback" not in out + err
    assert small == []  # it failed before any data were loaded


@pytest.mark.parametrize("arguments", [["bench"], ["train", "softmax"], ["search", "softmax"]])
def test_a_folder_without_cifar10_ends_with_where_was_looked(
    monkeypatch, capfd, tmp_path, arguments
):
    code, out, err = run_main(
        monkeypatch, capfd, *arguments, "--data", "auto", "--data-dir", tmp_path
    )
    assert code == 1
    assert err.startswith("error: CIFAR-10 was not found")
    assert str(tmp_path) in err
    assert "Traceback" not in out + err


def test_a_missing_folder_ends_in_the_shell_with_a_usage_error(tmp_path):
    done = in_a_new_process(
        "import sys; from gpuclf.cli import main;"
        f"sys.argv = ['gpuclf', 'train', 'softmax', '--data-dir', {str(tmp_path / 'x')!r}]; main()"
    )
    assert done.returncode == 2
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_result_that_could_not_be_written_is_refused_at_once(tmp_path):
    done = in_a_new_process(
        "import sys; from gpuclf.cli import main;"
        f"sys.argv = ['gpuclf', 'info', '--json', {str(tmp_path)!r}]; main()"
    )
    assert done.returncode == 2
    assert "--json" in done.stderr
    assert "Traceback" not in done.stderr


def test_version():
    done = in_a_new_process(
        "import sys; from gpuclf.cli import main; sys.argv = ['gpuclf', '--version']; main()"
    )
    assert done.stdout == f"gpuclf {gpuclf.__version__}\n"


def test_divergence_ends_with_the_remedy(monkeypatch, capfd, small):
    code, out, err = run_main(
        *(monkeypatch, capfd, "train", "softmax", "--data", "synthetic", "--epochs", 30),
        *("--learning-rate", 1e9, "--reg", 1),
    )
    assert code == 1
    assert "error: the loss became" in err
    assert "smaller learning_rate" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["softmax", "--learning-rate", 0],
        ["softmax", "--solver", "adam"],
        ["softmax", "--seed", -1],
    ],
    ids=lambda arguments: arguments[1],
)
def test_values_out_of_range_end_in_one_line(monkeypatch, capfd, small, arguments):
    code, out, err = run_main(monkeypatch, capfd, "train", "--data", "synthetic", *arguments)
    assert code in (1, 2)
    assert arguments[1].strip("-").replace("-", " ") in err.replace("_", " ").replace("-", " ")
    assert "Traceback" not in out + err


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "softmax", "--hidden-size", 3], "--hidden-size does not apply to softmax"),
        (["train", "svm", "--solver", "sgd"], "--solver does not apply to svm"),
        (["search", "knn", "--samples", 10, "--neighbors", 11], "above the 10 of --samples"),
        (["search", "softmax", "--rounds", 0], "--rounds"),
        (["search", "knn", "--n-jobs", 2], "--n-jobs does not apply to knn"),
        (["search", "softmax", "--n-jobs", 0], "--n-jobs"),
        (
            ["search", "softmax", "--n-jobs", 2, "--scheduler", "tcp://127.0.0.1:1"],
            "give --n-jobs or --scheduler, not both",
        ),
        (["train", "tree"], "'tree' is not one of"),
        (["train", "softmax", "--epochs", 0], "--epochs"),
        (["bench", "--samples", 100], "--samples"),
        (["bench", "--backend", "jax"], "--backend"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, capfd, small, arguments, message):
    code, _, err = run_main(monkeypatch, capfd, *arguments)
    assert code == 2
    assert message in err
    assert small == []
