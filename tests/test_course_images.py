"""The course's images, pictures and features, and its notebook as an example."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

import gpuclf
from gpuclf import course
from gpuclf.course import images as course_images
from gpuclf.datasets import DatasetNotFoundError, ImageDataset, make_synthetic

NOTEBOOK = Path(__file__).parents[1] / "examples" / "course_notebook.py"

# ----------------------------------------------------------------------------- data and pictures


def test_cifar10_comes_in_the_course_s_layout(monkeypatch, tmp_path):
    X, y = np.random.default_rng(0).integers(256, size=(7, 3072), dtype=np.uint8), np.arange(7)
    calls = []

    def load(root, download):
        calls.append((root, download))
        return ImageDataset(X[:5], y[:5], X[5:], y[5:])

    monkeypatch.setattr(course_images, "load_cifar10", load)
    X_train, y_train, X_test, y_test = course.load_CIFAR10(tmp_path)
    assert calls == [(tmp_path, False)]
    assert (X_train.shape, X_test.shape) == ((5, 32, 32, 3), (2, 32, 32, 3))
    assert X_train.dtype == X_test.dtype == np.float64
    assert X_train.flags.c_contiguous
    for image, row in zip([*X_train, *X_test], X, strict=True):
        for colour in range(3):
            np.testing.assert_array_equal(image[..., colour].ravel(), row.reshape(3, -1)[colour])
    np.testing.assert_array_equal([*y_train, *y_test], y)


def test_where_cifar10_is_not_the_way_to_it_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError) as caught:
        course.load_CIFAR10(tmp_path / "cifar-10-batches-py")
    assert "gpuclf.datasets.load_cifar10(ROOT) does" in "".join(caught.value.__notes__)


def test_the_grid_of_images(lib):
    Xs = np.random.default_rng(0).standard_normal((5, 4, 3, 2))
    Xs[3] = 7.0  # constant: nothing to stretch
    grid = course.visualize_grid(lib.asarray(Xs), ubound=100.0, padding=2)
    expected = np.zeros((3 * 4 + 2 * 2, 3 * 3 + 2 * 2, 2))
    for i, image in enumerate(Xs):
        row, column = divmod(i, 3)
        stretched = 100 * (image - image.min()) / (np.ptp(image) or 1)
        expected[row * 6 : row * 6 + 4, column * 5 : column * 5 + 3] = stretched
    np.testing.assert_allclose(grid, expected, rtol=1e-14)
    many = np.random.default_rng(1).standard_normal((64, 4, 3, 2))
    assert course.visualize_grid(many).max() == 255.0  # a rounding more, and imshow complains
    assert course.visualize_grid(Xs[:1], padding=0).shape == (4, 3, 2)
    with pytest.raises(ValueError, match=r"W1\.reshape\(32, 32, 3, -1\)"):
        course.visualize_grid(Xs[0])


# ------------------------------------------------------------------------------------- features


def test_the_features_are_the_library_s(lib, capsys, monkeypatch):
    monkeypatch.setattr(course_images, "REPORT_EVERY", 2)
    rows, _ = make_synthetic(5)
    images = rows.reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)
    functions = [course.hog_feature, lambda im: course.color_histogram_hsv(im, nbin=10)]
    expected = gpuclf.extract_features(rows)
    for dtype in (np.float64, np.uint8):
        found = course.extract_features(lib.asarray(images.astype(dtype)), functions, verbose=True)
        assert found.dtype == lib.xp.float64
        np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=1e-6, atol=1e-6)
    done = [f"Done extracting features for {n} / 5 images" for n in (2, 4)]
    assert capsys.readouterr().out.splitlines() == 2 * done


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: course.hog_feature(np.ones((32, 32, 3)) / 2), "before the mean is subtracted"),
        (lambda: course.hog_feature(np.full((32, 32, 3), np.nan)), "must hold pixels"),
        (lambda: course.color_histogram_hsv(-np.ones((32, 32, 3))), r"values from -1 to -1"),
        (lambda: course.hog_feature(np.ones((2, 32, 32, 3))), r"one of many is imgs\[i\]"),
        (lambda: course.hog_feature(np.ones(3072)), r"im\.reshape\(32, 32, 3\)"),
        (lambda: course.color_histogram_hsv(np.ones((32, 32, 3)), 20), "nbin must be 10, got 20"),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------ notebook


def run_notebook(monkeypatch, *arguments):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("sys.argv", [str(NOTEBOOK), *map(str, arguments)])
    return runpy.run_path(str(NOTEBOOK), run_name="__main__")


@pytest.mark.nightly
@pytest.mark.slow  # tests/test_examples.py runs it too, but looks at nothing that it found
def test_the_notebook_runs_on_small_data(monkeypatch, tmp_path, capsys):
    cells = run_notebook(monkeypatch, "--quick", "--out", tmp_path / "grid.png")
    images, labels = make_synthetic(500)
    known, asked = slice(200), slice(400, 450)
    for k, right in cells["right_of_k"].items():
        same = gpuclf.KNeighborsClassifier(k).fit(images[known], labels[known])
        assert right == np.sum(same.predict(images[asked]) == labels[asked])
    assert cells["first_loss"] == pytest.approx(np.log(10), abs=0.1)
    assert cells["best"]["svm"].W.shape == (3073, 10)
    assert cells["stats"]["loss_history"][-1] < cells["stats"]["loss_history"][0]
    assert cells["validation"].keys() == {
        "svm", "softmax", "net", "svm on features", "net on features"
    }  # fmt: skip
    assert "synthetic" in capsys.readouterr().out
    assert (tmp_path / "grid.png").exists()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(
    not os.environ.get("GPUCLF_DATA"),
    reason="set GPUCLF_DATA to a folder with CIFAR-10 to run this",
)
def test_the_notebook_has_the_published_figures_on_cifar10(monkeypatch, tmp_path):
    cells = run_notebook(monkeypatch, "--data", "cifar10", "--out", tmp_path / "grid.png")
    assert cells["right_of_k"] == {1: 137, 5: 139}
    assert cells["first_loss"] == pytest.approx(2.302, abs=0.1)
    least = {
        "svm": 0.375, "softmax": 0.375, "net": 0.45, "svm on features": 0.49,
        "net on features": 0.63,
    }  # fmt: skip
    for name, accuracy in least.items():
        assert cells["validation"][name] > accuracy, name
