import subprocess
import sys

import numpy as np
import pytest

from gpuclf import plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def offsets(ax):
    """Return the points of each scatter that has any."""
    return [np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) > 1]


def texts(ax):
    return [text.get_text() for text in ax.texts]


# ------------------------------------------------------------------------------- matplotlib


def test_importing_the_pictures_needs_no_matplotlib_and_drawing_names_the_remedy():
    code = """
import sys
sys.modules["matplotlib"] = None
from gpuclf.plots import plot_confusion_matrix
assert "sklearn" not in sys.modules
try:
    plot_confusion_matrix([0], [0])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'gpuclf[plots]'" in done.stdout


# --------------------------------------------------------------------------------- boundary


def above_the_diagonal(X):
    assert X.shape[1:] == (2,)
    return np.where(X[:, 1] > X[:, 0], "above", "below")


def test_the_boundary_lies_where_the_prediction_changes(lib):
    X = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.5], [1.0, 0.4]])
    ax = plots.plot_decision_boundary(
        above_the_diagonal, lib.asarray(X), np.array(["above", "below", "below", "below"])
    )
    (image,) = ax.images
    left, right, bottom, top = image.get_extent()
    assert (left, right) == ax.get_xlim()
    assert (bottom, top) == ax.get_ylim()
    assert left < 0 < 1 < right
    region = np.asarray(image.get_array())
    n_rows, n_columns = region.shape
    x, y = np.meshgrid(np.linspace(left, right, n_columns), np.linspace(bottom, top, n_rows))
    np.testing.assert_array_equal(region, np.where(y > x, 0, 1))
    assert image.origin == "lower"
    above, below = ax.collections
    np.testing.assert_array_equal(above.get_offsets(), X[:1])
    np.testing.assert_array_equal(below.get_offsets(), X[1:])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["above", "below"]
    assert "75.0% of 4 samples right" in ax.get_title(loc="left")


def test_points_and_regions_of_a_label_have_one_colour():
    X, y = np.random.default_rng(0).random((60, 2)), np.arange(60) % 3
    ax = plots.plot_decision_boundary(lambda X: (3 * X[:, 0]).clip(0, 2.99).astype(int), X, y)
    (image,) = ax.images
    for label, points in enumerate(ax.collections):
        np.testing.assert_allclose(points.get_facecolor()[0][:3], image.cmap(label)[:3])
        assert points.get_label() == str(label)
    assert len({c.get_paths()[0].vertices.tobytes() for c in ax.collections}) == 3  # markers


def test_the_boundary_of_a_label_without_samples_and_of_one_point():
    ax = plots.plot_decision_boundary(
        lambda X: np.full(len(X), 7), np.array([[1.0, 2.0]]), np.array([3])
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["3", "7"]


@pytest.mark.parametrize(
    ("X", "y", "predict", "message"),
    [
        (np.zeros((3, 4)), np.zeros(3), above_the_diagonal, r"two features to draw, got \(3, 4\)"),
        (np.zeros((0, 2)), np.zeros(0), above_the_diagonal, r"got \(0, 2\)"),
        (np.zeros((3, 2)), np.zeros(2), above_the_diagonal, r"y must have shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros(3), lambda X: X, r"predict must return one label for each"),
    ],
)
def test_what_has_no_boundary_is_refused(X, y, predict, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_decision_boundary(predict, X, y)


# ------------------------------------------------------------------------- confusion matrix


def test_the_confusion_matrix_counts_true_by_predicted(lib):
    y_true, y_pred = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 0])
    ax = plots.plot_confusion_matrix(lib.asarray(y_true), lib.asarray(y_pred), ("a", "b", "c", "d"))
    counts = np.zeros((4, 4), int)
    for t, p in zip(y_true, y_pred, strict=True):
        counts[t, p] += 1
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(p, t): str(counts[t, p]) for t in range(4) for p in range(4)}
    shares = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shares[:3], counts[:3] / counts[:3].sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(shares[3], 0)  # no sample, no division by 0
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c", "d"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert "57.1% of 7 samples right" in ax.get_title(loc="left")


def test_the_confusion_matrix_of_labels_without_names():
    ax = plots.plot_confusion_matrix(["x", "z"], ["x", "y"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x", "y", "z"]
    assert ax.images[0].get_array()[2, 1] == 1


@pytest.mark.parametrize(
    ("y_true", "y_pred", "names", "message"),
    [
        ([0, 1], [0], None, r"got \(2,\) and \(1,\)"),
        ([], [], None, "at least one sample"),
        ([0, 3], [0, 0], ("a", "b"), "2 names, none for label 3"),
        ([0, -1], [0, 0], ("a", "b"), "none for label -1"),
    ],
)
def test_what_has_no_confusion_matrix_is_refused(y_true, y_pred, names, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_confusion_matrix(y_true, y_pred, names)


# ------------------------------------------------------------------------------ every picture

PICTURES = {
    "boundary": lambda **options: plots.plot_decision_boundary(
        above_the_diagonal, np.eye(2), np.array(["above", "below"]), **options
    ),
    "confusion": lambda **options: plots.plot_confusion_matrix([0, 1], [0, 0], **options),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_drawn_where_it_is_told(draw, tmp_path):
    figure, (left, right) = pyplot.subplots(1, 2)
    assert draw(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert right.get_title(loc="left")
    figure.savefig(tmp_path / "picture.png")  # warnings are errors
    assert draw().figure is not figure
