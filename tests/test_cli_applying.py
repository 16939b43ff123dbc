"""A model from a user's pictures to predictions in another process, by the commands of README."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import gpuclf
from gpuclf.cli import app, following, output
from gpuclf.cli.applying import as_trained, class_names
from gpuclf.cli.runs import read_log
from gpuclf.datasets import load_image_folder, make_synthetic

COLOURS = {"leaf": (20, 200, 30), "sky": (40, 90, 240), "brick": (190, 60, 40)}


def draw_pictures(folder, rng, n=8):
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(-20, 20, (20 + 5 * i, 50 - 4 * i, 3))
            image = np.clip(noise + colour, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{i}{'.jpg' if i % 2 else '.png'}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 24 PNG and JPEG files of mixed sizes, others to predict, and models of them."""
    place = tmp_path_factory.mktemp("place")
    draw_pictures(place / "pictures", np.random.default_rng(0))
    draw_pictures(place / "new", np.random.default_rng(1), n=2)
    for model, *more in (("softmax", "--log", place / "logs" / "a.jsonl"), ("svm",), ("knn",)):
        code, text = run(
            *("train", model, "--data", place / "pictures", "--backend", "numpy", *more),
            *("--save", place / f"{model}.safetensors"),
        )
        assert code == 0, text
    return place


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    error = "" if result.exception is None else f" {result.exception}"
    return result.exit_code, re.sub(r"[\s│]+", " ", result.output) + error


def run_to_json(path, *arguments):
    code, text = run(*arguments, "--json", path)
    assert code == 0, text
    return json.loads(path.read_text())


# ------------------------------------------------------------------ from pictures to predictions


@pytest.mark.nightly
@pytest.mark.slow
def test_train_save_and_predict_in_new_processes(tmp_path):
    draw_pictures(tmp_path / "pictures", np.random.default_rng(0))
    draw_pictures(tmp_path / "new", np.random.default_rng(1), n=2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("GPUCLF_DATA", None)

    def gpuclf_(command):
        done = subprocess.run(
            [sys.executable, "-m", "gpuclf", *command.split()],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    gpuclf_("train softmax --data pictures --save model.safetensors")
    rows = list(csv.DictReader(io.StringIO(gpuclf_("predict model.safetensors new --csv -"))))
    assert [row["input"] for row in rows] == sorted(
        f"new{os.sep}{name}{os.sep}{i}" for name in COLOURS for i in ("0.png", "1.jpg")
    )
    assert [row["class"] for row in rows] == ["brick"] * 2 + ["leaf"] * 2 + ["sky"] * 2
    assert all(float(row["probability"]) > 0.9 for row in rows)
    assert "accuracy 1.0000" in gpuclf_("evaluate model.safetensors --data new")


@pytest.mark.parametrize("model", ["softmax", "svm", "knn"])
def test_predictions_are_the_loaded_model_s_own(place, tmp_path, model):
    path = place / f"{model}.safetensors"
    found = run_to_json(
        *(tmp_path / "a.json", "predict", path, place / "new", place / "new/sky/0.png"),
        *("--top", 3, "--backend", "numpy"),
    )
    kept, data = gpuclf.load(path), load_image_folder(place / "new", test_fraction=0)
    X = np.concatenate([data.X_train, data.X_train[4:5]])
    predicted = [kept.class_names_[k] for k in kept.predict(X)]
    assert [row["class"] for row in found["predictions"]] == predicted
    of_all = (kept.decision_function if model == "svm" else kept.predict_proba)(X)
    for row, values in zip(found["predictions"], of_all, strict=True):
        order = np.argsort(-values, kind="stable")
        assert [best["class"] for best in row["top"]] == [kept.class_names_[k] for k in order]
        name = "score" if model == "svm" else "probability"
        np.testing.assert_allclose([best[name] for best in row["top"]], values[order], rtol=1e-6)
        assert row["top"][0] == {key: row[key] for key in ("class", name)}
    code, text = run("predict", path, place / "new" / "leaf" / "0.png")
    assert code == 0
    assert "0.png leaf" in text


def test_arrays_in_any_layout_and_size_are_predicted_alike(place, tmp_path):
    with Image.open(place / "new/sky/0.png") as picture:
        image = np.asarray(picture)
    np.save(tmp_path / "a.npy", image[None])
    np.savez(tmp_path / "b.npz", X=image.transpose(2, 0, 1)[None] / 255)
    rows = load_image_folder(place / "new", test_fraction=0).X_train
    np.savez(tmp_path / "c.npz", rows)
    names = ["a.npy", "b.npz", "c.npz"]
    found = run_to_json(
        tmp_path / "a.json",
        *("predict", place / "softmax.safetensors", *(tmp_path / name for name in names)),
    )["predictions"]
    assert [row["input"].removeprefix(str(tmp_path) + os.sep) for row in found] == [
        *("a.npy[0]", "b.npz[0]"), *(f"c.npz[{i}]" for i in range(6)),
    ]  # fmt: skip
    assert [row["class"] for row in found] == ["sky"] * 2 + ["brick"] * 2 + ["leaf"] * 2 + [
        "sky"
    ] * 2
    assert found[0]["probability"] == found[1]["probability"]


def test_standard_output_holds_the_predictions_alone(place, tmp_path):
    model, image = str(place / "softmax.safetensors"), str(place / "new/leaf/0.png")
    result = CliRunner().invoke(app, ["predict", model, image, "--json", "-"])
    content = json.loads(result.stdout)
    assert content["model"] == model
    assert content["predictions"][0]["class"] == "leaf"
    path = tmp_path / "a.csv"
    arguments = ["predict", model, image, "--csv", str(path), "--top", "2", "--json", "-"]
    json.loads(CliRunner().invoke(app, arguments).stdout)
    (row,) = csv.DictReader(io.StringIO(path.read_text()))
    assert [*row] == ["input", "class", "probability", "class_2", "probability_2"]
    assert (row["input"], row["class"]) == (image, "leaf")
    assert float(row["probability_2"]) < float(row["probability"])
    error = (
        CliRunner().invoke(app, ["predict", model, image, "--json", "-", "--csv", "-"]).exception
    )
    assert str(error) == "--json and --csv name the same file, -: name two"


def test_files_that_cannot_be_read_are_named_and_the_others_predicted(place, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "broken.png").write_bytes(b"no image")
    (tmp_path / "some" / "good.png").write_bytes((place / "new/leaf/0.png").read_bytes())
    code, text = run("predict", place / "softmax.safetensors", tmp_path / "some")
    assert code == 1
    assert "good.png leaf" in text
    assert re.search(r"error: \S*broken.png: not an image in PNG", text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 9, 9, 4), "has 4 channels, the model was trained on 3"),
        ((2, 100), r"samples of 100 numbers, the model was trained on 3,072, images of \(3, 32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(place, tmp_path, shape, message):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    code, text = run("predict", place / "softmax.safetensors", tmp_path / "a.npy")
    assert code == 1
    assert re.search(message, text)


def test_a_folder_without_images_and_a_model_without_a_shape_are_refused(place, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no images" in run("predict", place / "svm.safetensors", tmp_path / "empty")[1]
    X, y = make_synthetic(50)
    model = gpuclf.SoftmaxClassifier(max_iter=1).fit(X, y)
    model.save(tmp_path / "m")
    code, text = run("predict", tmp_path / "m", place / "new")
    assert (code, "set model.image_shape_ = (channels, height, width)" in text) == (1, True)
    model.image_shape_ = (3, 32, 32)  # the remedy
    model.save(tmp_path / "m")
    assert run("predict", tmp_path / "m", place / "new")[0] == 0


def test_grey_and_colour_become_what_the_model_was_trained_on():
    class Model:
        n_features_in_, training_ = 4, {}

    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (5, 3 * 4), dtype=np.uint8)
    Model.image_shape_ = (1, 2, 2)
    found = as_trained(Model, colour, (3, 2, 2), "X")
    pictures = colour.reshape(-1, 3, 2, 2).transpose(0, 2, 3, 1)
    for row, picture in zip(found, pictures, strict=True):
        grey = np.asarray(Image.fromarray(picture).convert("L")).reshape(-1)
        assert np.abs(row.astype(int) - grey).max() <= 1  # Pillow's sums have 16 bits
    assert found.dtype == np.uint8
    Model.image_shape_, Model.n_features_in_ = (3, 2, 2), 12
    found = as_trained(Model, colour[:, :4], (1, 2, 2), "X")
    np.testing.assert_array_equal(found, np.tile(colour[:, :4], 3))


def test_names_of_classes(place):
    kept = gpuclf.load(place / "svm.safetensors")
    assert class_names(kept) == ["brick", "leaf", "sky"]
    kept.class_names_ = ["too few"]
    assert class_names(kept) == ["0", "1", "2"]
    kept.fit(np.eye(4), np.array(["a", "b", "a", "b"]))
    assert not hasattr(kept, "class_names_")
    assert not hasattr(kept, "training_")
    assert class_names(kept) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_shape_", (3, 32), r"image_shape_ must be \(channels, height, width\) of 3072"),
        ("image_shape_", (3, 32, 31), "image_shape_ must be"),
        ("image_shape_", "3", "image_shape_ must be"),
        ("class_names_", [1, 2], "class_names_ must be a list of strings"),
        ("training_", [], "training_ must be a dict, with dicts for split, data_sha256"),
        ("training_", {"split": 3}, "training_ must be a dict"),
    ],
)
def test_what_a_kept_model_says_of_itself_is_checked(place, tmp_path, name, value, message):
    kept = gpuclf.load(place / "svm.safetensors")
    setattr(kept, name, value)
    with pytest.raises(ValueError, match=message):
        kept.save(tmp_path / "m")
    setattr(kept, name, None if name != "training_" else {})
    kept.save(tmp_path / "m")


def test_a_vote_has_a_class_and_nothing_else(tmp_path):
    X, y = make_synthetic(60)
    svm = gpuclf.LinearSVMClassifier(max_iter=1, random_state=0)
    model = gpuclf.FleetEnsemble(svm, [{"reg": 0.1}, {"reg": 0.2}], voting="hard").fit(X, y)
    model.save(tmp_path / "m")
    np.save(tmp_path / "a.npy", X[:9])
    found = run_to_json(tmp_path / "a.json", "predict", tmp_path / "m", tmp_path / "a.npy")
    assert [row["class"] for row in found["predictions"]] == [str(k) for k in model.predict(X[:9])]
    assert {*found["predictions"][0]} == {"input", "class"}


# ---------------------------------------------------------------------------------- evaluate


def test_what_was_kept_back_is_evaluated_and_other_data_whole(place, tmp_path):
    path = place / "softmax.safetensors"
    found = run_to_json(tmp_path / "a.json", "evaluate", path, "--data", place / "pictures")
    assert (found["dataset"]["part"], found["samples"]) == ("not trained on", 6)
    again = run_to_json(tmp_path / "a.json", "evaluate", path, "--data", place / "new")
    assert (again["dataset"]["part"], again["samples"]) == ("all of it", 6)
    assert found["accuracy"] == again["accuracy"] == 1.0
    assert found["mistakes"] == []
    assert found["confusion_matrix"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]


def test_an_evaluation_counts_what_the_model_predicts(place, tmp_path):
    path, plot = place / "softmax.safetensors", tmp_path / "a.png"
    X = load_image_folder(place / "new", test_fraction=0).X_train
    y = np.array(["leaf", "brick", "leaf", "leaf", "sky", "brick"])  # 3 of them wrong
    np.savez(tmp_path / "a.npz", X=X.reshape(-1, 3, 32, 32), y=y)
    data = ("--data", tmp_path / "a.npz")
    code, text = run("evaluate", path, *data, "--plot", plot, "--json", tmp_path / "a.json")
    assert code == 0, text
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["classes"] == [
        {"class": "brick", "samples": 2, "precision": 0.5, "recall": 0.5},
        {"class": "leaf", "samples": 3, "precision": 1.0, "recall": pytest.approx(2 / 3)},
        {"class": "sky", "samples": 1, "precision": 0.5, "recall": 1.0},
    ]
    probabilities = gpuclf.load(path).predict_proba(X)
    wrong = [
        (probabilities[i].max() - probabilities[i][true], i, true) for i, true in ((0, 1), (5, 0))
    ]
    names = ["brick", "leaf", "sky"]
    assert [(m["sample"], m["true"]) for m in found["mistakes"]] == [
        (i, names[true]) for _, i, true in sorted(wrong, reverse=True)
    ]
    assert found["calibration"]["expected_error"] == pytest.approx(
        gpuclf.evaluation.calibration(probabilities, np.array([1, 0, 1, 1, 2, 0])).error
    )
    assert sum(row["samples"] for row in found["calibration"]["bins"]) == 6
    assert "mistake: sample" in text
    assert plot.stat().st_size > 1000
    assert (
        run_to_json(tmp_path / "b.json", "evaluate", place / "svm.safetensors", *data).get(
            "calibration"
        )
        is None
    )  # scores are no probabilities


def test_a_model_of_rows_says_how_it_can_take_pictures(place, tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (30, 3 * 7 * 7), dtype=np.uint8)
    names = np.array(["brick", "leaf", "sky"])[np.arange(30) % 3]
    model = gpuclf.KNeighborsClassifier(1).fit(X, names)
    model.save(tmp_path / "rows")
    code, text = run("evaluate", tmp_path / "rows", "--data", place / "new")
    assert (code, "set model.image_shape_ = (channels" in text) == (1, True)
    model.image_shape_ = (3, 7, 7)
    model.save(tmp_path / "rows")
    assert run("evaluate", tmp_path / "rows", "--data", place / "new")[0] == 0


def test_own_data_are_asked_for(place):
    code, text = run("evaluate", place / "knn.safetensors")
    assert code == 2
    assert "trained on own samples (images in " in text
    assert "by --data" in text


def test_a_model_of_numbers_is_evaluated_by_numbers(tmp_path):
    X, y = make_synthetic(60)
    model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=0).fit(X, y)
    model.save(tmp_path / "m")
    np.savez(tmp_path / "a.npz", X=X, y=y)
    found = run_to_json(
        tmp_path / "a.json", "evaluate", tmp_path / "m", "--data", tmp_path / "a.npz"
    )
    assert found["accuracy"] == model.score(X, y)
    assert found["dataset"]["part"] == "all of it"


def test_classes_that_the_model_does_not_have_are_refused(place, tmp_path):
    draw_pictures(tmp_path / "other", np.random.default_rng(0), n=1)
    (tmp_path / "other" / "sky").rename(tmp_path / "other" / "sea")
    code, text = run("evaluate", place / "knn.safetensors", "--data", tmp_path / "other")
    assert (code, "has the classes sea" in text) == (1, True)


# -------------------------------------------------------------------------- train: what is kept


def test_a_kept_model_knows_its_training(place):
    training = gpuclf.load(place / "softmax.safetensors").training_
    assert training["command"].split()[0] == "gpuclf"
    assert training["test_accuracy"] == 1.0
    assert training["dataset"]["train_samples"] == 18
    assert re.fullmatch("[0-9a-f]{64}", training["data_sha256"]["train"])
    assert training["split"] == {"seed": 0, "test_fraction": None}
    assert not gpuclf.load(place / "knn.safetensors").verbose


def test_a_log_has_a_line_an_epoch(place):
    lines = [json.loads(line) for line in (place / "logs/a.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["epoch"] * 10, "result"]
    assert lines[0]["settings"]["max_iter"] == 10
    assert lines[0]["environment"]["versions"]["numpy"] == np.__version__
    history = gpuclf.load(place / "softmax.safetensors").history_
    assert [line["epoch"] for line in lines[1:-1]] == list(range(1, 11))
    assert [line["val_accuracy"] for line in lines[1:-1]] == history.val_accuracy
    assert [line["loss"] for line in lines[1:-1]] == history.loss  # one step an epoch
    assert lines[-1]["test_accuracy"] == 1.0


def test_a_line_of_a_log_is_there_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "a.jsonl"

    def train():
        with following.logging_to(path) as log:
            log.write("start", {"model": "svm"})
            assert json.loads(path.read_text())["model"] == "svm"
            raise FloatingPointError("it diverged")

    with pytest.raises(FloatingPointError):
        train()
    assert json.loads(path.read_text().splitlines()[-1])["error"] == (
        "FloatingPointError: it diverged"
    )
    assert read_log(path)["state"] == "failed"


def test_train_draws_its_history_and_knn_has_none(place, tmp_path):
    arguments = ("train", "softmax", "--data", place / "pictures", "--epochs", 2)
    assert run(*arguments, "--plot", tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    code, text = run("train", "knn", "--data", place / "pictures", "--plot", tmp_path / "b.png")
    assert (code, "--plot does not apply to knn" in text) == (2, True)


def test_the_lines_of_epochs_stay_on_a_terminal(place, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(output, "console", terminal)
    assert run("train", "softmax", "--data", place / "pictures", "--epochs", 3)[0] == 0
    for epoch in (1, 2, 3):
        assert re.search(
            rf"epoch {epoch}: loss [0-9.]+, validation accuracy [0-9.]+\n", screen.getvalue()
        )


@pytest.mark.parametrize(
    "model", [("knn", "--neighbors", 1), ("softmax", "--rounds", 1, "--candidates", 2)]
)
def test_a_search_keeps_its_best(place, tmp_path, model):
    code, text = run(
        *("search", *model, "--data", place / "pictures", "--save", tmp_path / "m"),
        *("--backend", "numpy"),
    )
    assert code == 0, text
    code, text = run("predict", tmp_path / "m", place / "new/sky/1.jpg")
    assert "1.jpg sky" in text


# -------------------------------------------------------------------------------------- runs


def test_trainings_are_compared(place, tmp_path, monkeypatch):
    for name, rate in (("slow", 1e-6), ("fast", 3e-3)):
        code, text = run(
            *("train", "softmax", "--data", place / "pictures", "--epochs", 3),
            *("--learning-rate", rate, "--log", tmp_path / "logs" / f"{name}.jsonl"),
        )
        assert code == 0, text
    log = (tmp_path / "logs/slow.jsonl").read_text()
    cut = log[: log.index('"event": "result"') + 30]  # as by a kill
    (tmp_path / "logs/cut.jsonl").write_text(cut)
    (tmp_path / "logs/other.jsonl").write_text('{"a": 1}\n')
    code, text = run(
        "runs", tmp_path / "logs", "--plot", tmp_path / "a.png", "--json", tmp_path / "j"
    )
    assert code == 0, text
    found = {row["name"]: row for row in json.loads((tmp_path / "j").read_text())["runs"]}
    assert {*found} == {"slow", "fast", "cut"}
    assert [found[name]["state"] for name in ("fast", "cut")] == ["finished", "unfinished"]
    assert found["fast"]["val_accuracy_history"][-1] == found["fast"]["val_accuracy"]
    assert found["cut"]["epochs"] == 3
    best = max(found.values(), key=lambda row: row["val_accuracy"])
    assert (
        json.loads((tmp_path / "j").read_text())["runs"][0]["val_accuracy"] == best["val_accuracy"]
    )
    assert "0.003" in text
    assert "batch" not in text
    # Where a terminal is narrow, names are broken and figures are not.
    monkeypatch.setattr(output.console, "width", 80)
    code, text = run("runs", tmp_path / "logs")
    assert f"{best['val_accuracy']:.4f}" in text
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_folder_without_logs_is_refused(tmp_path):
    code, text = run("runs", tmp_path)
    assert (code, "has no log of a training" in text) == (1, True)
