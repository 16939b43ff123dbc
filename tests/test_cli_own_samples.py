import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gpuclf
from gpuclf.cli import app, output
from gpuclf.datasets import make_synthetic

COLOURS = {"leaf": (20, 200, 30), "sky": (40, 90, 240), "brick": (190, 60, 40)}


@pytest.fixture
def pictures(tmp_path):
    """24 PNG and JPEG files of mixed sizes, eight of each colour."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            noise = rng.integers(-20, 20, (20 + 5 * i, 50 - 4 * i, 3))
            image = np.clip(noise + colour, 0, 255).astype(np.uint8)
            suffix = ".jpg" if i % 2 else ".png"
            Image.fromarray(image).save(tmp_path / "pictures" / name / f"{i}{suffix}")
    return tmp_path / "pictures"


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, re.sub(r"[\s│]+", " ", result.output)


def run_to_json(path, *arguments):
    code, text = run(*arguments, "--json", path, "--backend", "numpy")
    assert code == 0, text
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "model", ["softmax", pytest.param("two-layer", marks=pytest.mark.slow), "knn"]
)
def test_training_on_a_folder_of_pictures(tmp_path, pictures, model):
    found = run_to_json(
        *(tmp_path / "a.json", "train", model, "--data", pictures),
        *(("--dtype", "float64") if model != "knn" else ("--neighbors", 1)),
    )
    assert found["test_accuracy"] == 1.0
    assert (found["dataset"]["train_samples"], found["dataset"]["test_samples"]) == (18, 6)
    assert str(pictures) in found["dataset"]["source"]
    assert "0.2 of each class" in found["dataset"]["source"]
    assert found["settings"].get("augment") is None
    assert found["settings"].get("batch_size", "auto") == "auto"


def test_pictures_are_mirrored_and_moved(tmp_path, pictures):
    arguments = ("train", "softmax", "--data", pictures, "--image-size", 6, "--epochs", 2)
    plain = run_to_json(tmp_path / "a.json", *arguments)
    found = run_to_json(
        tmp_path / "a.json", *arguments, "--flip", "--shift", 2, "--save", tmp_path / "model"
    )
    assert found["settings"]["augment"] == "horizontal_flip, then random_shift of 2"
    assert found["loss_history"] != plain["loss_history"]
    steps = gpuclf.load(tmp_path / "model").augment.keywords["steps"]
    assert [step.keywords for step in steps] == [
        {"image_shape": (3, 6, 6)},
        {"image_shape": (3, 6, 6), "pixels": 2},
    ]
    np.savez(tmp_path / "rows.npz", X=np.ones((9, 4)), y=np.arange(9) % 3)
    for option in (["--flip"], ["--shift", 1]):
        code, text = run("train", "softmax", "--data", tmp_path / "rows.npz", *option)
        assert (code, f"{option[0]} is for images" in text) == (2, True)
        code, text = run("train", "softmax", "--data", pictures, *option, "--solver", "lbfgs")
        assert (code, f"{option[0]} draws anew for each batch" in text) == (2, True)
        code, text = run("train", "knn", "--data", pictures, *option)
        assert (code, f"{option[0]} does not apply to knn" in text) == (2, True)


def test_options_of_own_samples(tmp_path, pictures):
    X, y = np.full((3, 9, 9, 3), COLOURS["leaf"], np.uint8), np.array(["leaf"] * 3)
    np.savez(tmp_path / "test.npz", X=X, y=y)
    arguments = ("train", "knn", "--data", pictures, "--neighbors", 1, "--image-size", 9)
    found = run_to_json(tmp_path / "a.json", *arguments, "--test-data", tmp_path / "test.npz")
    assert (found["dataset"]["train_samples"], found["dataset"]["test_samples"]) == (24, 3)
    assert found["test_accuracy"] == 1.0
    found = run_to_json(tmp_path / "a.json", *arguments, "--test-fraction", 0.5)
    assert found["dataset"]["test_samples"] == 12


def test_a_search_over_own_samples(tmp_path):
    X, y = make_synthetic(300)
    np.savez(tmp_path / "a.npz", X=X[:, ::8], y=y)
    found = run_to_json(
        *(tmp_path / "a.json", "search", "knn", "--data", tmp_path / "a.npz"),
        *("--neighbors", 1, "--neighbors", 3),
    )
    assert found["dataset"]["train_samples"] + found["dataset"]["test_samples"] == 300
    assert found["best_params"]["n_neighbors"] in (1, 3)


def test_what_is_kept_back_is_mixed_and_leaves_each_class_something():
    y = np.repeat([0, 1, 2], [1, 10, 100])
    order = output._mixed(y, seed=0)
    assert sorted(order) == list(range(111))
    assert set(y[order[:3]]) == {0, 1, 2}
    assert set(y[order[-22:]]) == {1, 2}
    assert output._mixed(y, seed=0).tolist() == order.tolist()
    assert output._mixed(y, seed=1).tolist() != order.tolist()


@pytest.mark.parametrize(("n", "kept"), [(50_000, 1000), (5000, 1000), (100, 20), (18, 3), (2, 1)])
def test_a_fifth_at_most_is_kept_back(n, kept):
    class Data:
        X_train = range(n)

    assert output.n_validation(Data) == kept


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("command", [("train", "knn"), ("search", "knn")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing"], "auto, cifar10, synthetic or the path of own samples; there is no"),
        (["--data", "synthetic", "--image-size", 8], "--image-size is for own samples"),
        (["--test-fraction", 0.1], "--test-fraction is for own samples; --data is auto"),
        (["--data", ".", "--data-dir", "."], "--data-dir is the folder of CIFAR-10"),
        (["--data", ".", "--test-data", ".", "--test-fraction", 0.1], "not both"),
        (["--data", ".", "--test-fraction", 1], "--test-fraction"),
        (["--data", ".", "--image-size", 0], "--image-size"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(monkeypatch, tmp_path, command, options, message):
    monkeypatch.chdir(tmp_path)
    code, text = run(*command, *options)
    assert code == 2
    assert message in text
