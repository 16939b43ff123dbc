import subprocess
import sys

import numpy as np
import pytest

import gpuclf
from gpuclf import plots
from gpuclf.explanation import Explanation
from gpuclf.training import History

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


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
    assert "pip install matplotlib" in done.stdout


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


# ---------------------------------------------------------------------- templates and samples


def test_each_template_is_stretched_by_itself_from_planes_to_pixels(lib):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((3 * 2 * 4, 3)).astype(np.float32) * [1, 100, 0.01]
    ax = plots.plot_templates(lib.asarray(W), (3, 2, 4), ("a", "b", "c"))
    assert len(ax.images) == 3
    for m, image in enumerate(ax.images):
        pixels = np.asarray(image.get_array())
        assert pixels.shape == (2, 4, 3)
        assert pixels.dtype == np.uint8
        assert (pixels.min(), pixels.max()) == (0, 255)
        low, high = W[:, m].min(), W[:, m].max()
        for plane, row, column in np.ndindex(3, 2, 4):
            value = 255 * (W[plane * 8 + row * 4 + column, m] - low) / (high - low)
            assert abs(int(pixels[row, column, plane]) - value) <= 0.51
    assert texts(ax) == ["a", "b", "c"]


def test_hidden_units_of_grey_images_have_no_titles():
    W1 = np.ones((6, 7))
    W1[:, 2] = [0, 1, 2, 3, 4, 5]
    ax = plots.plot_templates(W1, (2, 3))
    assert texts(ax) == []
    assert len(ax.images) == 7
    np.testing.assert_array_equal(ax.images[0].get_array(), np.full((2, 3, 3), 128))  # constant
    grey = np.asarray(ax.images[2].get_array())
    np.testing.assert_array_equal(grey[..., 0], [[0, 51, 102], [153, 204, 255]])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])


def overlaps(a, b):
    left, right, bottom, top = zip(a, b, strict=True)
    return max(left) < min(right) and max(top) < min(bottom)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("n", [1, 9, 10, 11, 40])
@pytest.mark.parametrize("titled", [False, True])
def test_the_images_of_a_grid_lie_apart_and_within_the_picture(n, titled):
    names = [str(i) for i in range(n)] if titled else None
    ax = plots.plot_templates(np.random.default_rng(0).random((3 * 16, n)), (3, 4, 4), names)
    extents = [image.get_extent() for image in ax.images]
    assert not any(overlaps(a, b) for i, a in enumerate(extents) for b in extents[:i])
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    assert top < bottom  # the first row is above the second
    for a in extents:
        assert left <= a[0] < a[1] <= right
        assert top <= a[3] < a[2] <= bottom


@pytest.mark.parametrize(
    ("W", "shape", "names", "message"),
    [
        (np.zeros((12, 2)), (3, 2, 3), None, r"12 values.*got \(3, 2, 3\)"),
        (np.zeros((12, 2)), (2, 2, 3), None, r"got \(2, 2, 3\)"),
        (np.zeros((12, 2)), (3, 2, 2), ("a",), "one name for each of 2 templates, got 1"),
        (np.zeros(12), (3, 2, 2), None, r"W must have shape \(D, M\)"),
    ],
)
def test_templates_that_do_not_fit_are_refused(W, shape, names, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_templates(W, shape, names)


def test_wrong_predictions_are_framed_and_say_both(lib):
    X = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12)
    ax = plots.plot_samples(
        lib.asarray(X),
        np.array([0, 1, 1, 0]),
        lib.asarray(np.array([0, 0, 1, 1])),
        ("cat", "dog"),
        image_shape=(3, 2, 2),
    )
    assert texts(ax) == ["cat", "cat\nnot dog", "dog", "dog\nnot cat"]
    np.testing.assert_array_equal(  # bytes as they are
        ax.images[1].get_array(), X[1].reshape(3, 2, 2).transpose(1, 2, 0)
    )
    frames = [(p.get_x(), p.get_y()) for p in ax.patches]
    assert frames == [(ax.images[i].get_extent()[0], ax.images[i].get_extent()[3]) for i in (1, 3)]
    assert "2 of 4 right" in ax.get_title(loc="left")


def test_samples_may_be_standardised_and_have_true_labels_only():
    X = np.random.default_rng(0).integers(0, 256, (3, 12), np.uint8)
    ax = plots.plot_samples(gpuclf.Standardized.fit(X), [2, 0, 1], image_shape=(3, 2, 2))
    assert texts(ax) == ["2", "0", "1"]
    assert not ax.patches
    np.testing.assert_array_equal(ax.images[2].get_array()[1, 0], X[2].reshape(3, 4)[:, 2])
    ax = plots.plot_samples(X / 255.0, image_shape=(3, 2, 2))
    drawn = np.stack([image.get_array() for image in ax.images])
    assert (drawn.min(), drawn.max()) == (0, 255)  # stretched together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": [0]}, r"y must have shape \(2,\)"),
        ({"y": [0, 1], "predicted": [0, 1, 1]}, r"predicted must have shape \(2,\)"),
        ({"image_shape": (32, 32)}, "image_shape"),
    ],
)
def test_samples_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_samples(np.zeros((2, 12)), **{"image_shape": (3, 2, 2)} | options)


# --------------------------------------------------------------------------------- training


def test_the_history_has_the_loss_its_running_mean_and_the_accuracy_at_the_epochs():
    loss = np.random.default_rng(0).random(200)
    history = History(loss.tolist(), [0.1] * 200, [0.3, 0.4])
    ax = plots.plot_history(history)
    raw, smooth = ax.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.column_stack([np.arange(1, 201), loss]))
    window = 200 // 50
    expected = [np.mean(loss[max(0, i - window // 2) : i + (window + 1) // 2]) for i in range(200)]
    np.testing.assert_allclose(smooth.get_ydata(), expected, rtol=1e-12)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[100, 0.3], [200, 0.4]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert right.get_ylabel() == "accuracy"
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["loss, mean of 4 steps", "validation accuracy"]


def test_the_history_of_lbfgs_counts_iterations():
    ax = plots.plot_history(History([2.0, 1.0, 0.5], [], [0.3, 0.4]))
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [2.0, 1.0, 0.5])
    np.testing.assert_array_equal(ax.figure.axes[1].lines[0].get_xdata(), [1, 2])
    assert ax.get_xlabel() == "iteration"


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="no loss to draw"):
        plots.plot_history(History())


def test_cross_validation_shows_every_fold_and_the_mean_with_its_deviation():
    folds = {5: [0.2, 0.4], 1: [0.1, 0.1, 0.4], 20: [0.1]}
    ax = plots.plot_knn_cross_validation(folds)
    scatters = [c for c in ax.collections if isinstance(c, matplotlib.collections.PathCollection)]
    drawn = np.concatenate([c.get_offsets() for c in scatters])
    assert sorted(map(tuple, drawn)) == sorted((k, a) for k in folds for a in folds[k])
    (container,) = ax.containers
    line, _, (bars,) = container.lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.2], [5, 0.3], [20, 0.1]])
    half = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
    np.testing.assert_allclose(half, [np.std(folds[k]) for k in (1, 5, 20)])
    assert "best mean 0.300 at k = 5" in ax.get_title(loc="left")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "5", "20"]


@pytest.mark.parametrize("accuracies", [{}, {1: [0.5], 3: []}])
def test_cross_validation_without_accuracies_is_refused(accuracies):
    with pytest.raises(ValueError, match="needs its accuracies"):
        plots.plot_knn_cross_validation(accuracies)


# ----------------------------------------------------------------------------------- search


def candidate(accuracy, **params):
    return {"params": params, "val_accuracy": accuracy, "diverged": accuracy is None}


SEARCHED = [
    candidate(0.30, learning_rate=1e-3, reg=1e-2),
    candidate(0.40, learning_rate=1e-2, reg=1e-3),
    candidate(None, learning_rate=1e-1, reg=1e1),
    candidate(0.12, learning_rate=1e-4, reg=1e-4),
]


def test_the_heat_map_shows_the_candidates_the_best_and_those_that_diverged():
    ax = plots.plot_search(SEARCHED)
    surface, points, diverged, star = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), [[1e-3, 1e-2], [1e-2, 1e-3], [1e-4, 1e-4]])
    np.testing.assert_array_equal(points.get_array(), [0.30, 0.40, 0.12])
    np.testing.assert_array_equal(diverged.get_offsets(), [[1e-1, 1e1]])
    np.testing.assert_array_equal(star.get_offsets(), [[1e-2, 1e-3]])
    assert points.norm is surface.norm
    assert surface.norm.vmax == 0.40
    assert surface.norm.vmin == pytest.approx(0.30)  # 0.12 does not flatten the others
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "reg")
    assert "best 0.400 at learning rate 0.01, reg 0.001" in ax.get_title(loc="left")
    assert ax.figure.axes[1].get_ylabel() == "validation accuracy"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["diverged", "best"]


def test_colours_of_a_search_span_more_than_noise():
    rows = [
        {"params": {"learning_rate": r, "reg": g}, "val_accuracy": a, "diverged": False}
        for r, g, a in ((0.01, 0.1, 0.189), (0.1, 0.1, 0.190), (0.1, 1.0, 0.191))
    ]
    surface = plots.plot_search(rows).collections[0]
    assert surface.norm.vmax == 0.191
    assert surface.norm.vmin == pytest.approx(0.141)


def test_the_surface_has_a_candidate_s_colour_where_the_candidate_is():
    surface = plots.plot_search(SEARCHED).collections[0]
    corners = np.asarray(surface.get_coordinates()).reshape(-1, 2)
    values = np.asarray(surface.get_array()).ravel()
    for row in SEARCHED:
        at = np.log10([row["params"]["learning_rate"], row["params"]["reg"]])
        nearest = np.argmin(np.linalg.norm(np.log10(corners) - at, axis=1))
        expected = 0.12 if row["diverged"] else row["val_accuracy"]  # as the worst
        assert values[nearest] == pytest.approx(expected, abs=0.005)
    assert values.min() >= 0.12
    assert values.max() <= 0.40


def test_a_search_over_one_hyper_parameter_is_a_line():
    rows = [candidate(a, n_neighbors=k) for k, a in ((10, 0.3), (1, 0.2), (100, 0.25))]
    ax = plots.plot_search(rows, "n_neighbors", None)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.2], [10, 0.3], [100, 0.25]])
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[10, 0.3]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "10", "100"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "nothing to draw"),
        (SEARCHED[2:3], "nothing to draw"),
        ([candidate(0.3, n_neighbors=3)], "no learning_rate, only n_neighbors"),
        ([candidate(0.3, learning_rate=0.1, reg=0.0)], "logarithmic, but a candidate has reg 0.0"),
    ],
)
def test_a_search_that_cannot_be_drawn_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_search(rows)


# ------------------------------------------------------------------------------ every picture


def explanation(image_shape=(3, 2, 2)):
    shares = np.arange(12) - 4.0
    x = np.arange(12, dtype=np.uint8)
    return Explanation("cat", "dog", 1.5, shares, 0.25, x, image_shape)


def test_an_explanation_is_drawn_beside_its_image():
    ax = plots.plot_explanation(explanation())
    image, heat = ax.images
    np.testing.assert_array_equal(
        image.get_array(), np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(heat.get_array(), [[0, 3], [6, 9]])  # the planes added up
    assert heat.get_clim() == (-9, 9)
    (left, right, *_), (_, width, *_) = heat.get_extent(), image.get_extent()
    assert width < left < right
    assert ax.get_title(loc="left") == "what spoke for cat, which leads dog by 1.5"
    blue, orange = (heat.cmap(end)[:3] for end in (1.0, 0.0))
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_an_explanation_of_features_is_bars_the_largest_first():
    ax = plots.plot_explanation(explanation(None), names=[f"n{d}" for d in range(12)])
    assert [text.get_text() for text in ax.get_yticklabels()][:3] == ["n11", "n10", "n9"]
    assert ax.patches[0].get_width() == 7
    assert "feature 11" in plots.plot_explanation(explanation(None)).get_yticklabels()[0].get_text()
    assert len(plots.plot_explanation(explanation(None), image_shape=(3, 4)).images) == 2
    with pytest.raises(ValueError, match="names must be one for each of 12 features, got 1"):
        plots.plot_explanation(explanation(None), names=["a"])
    with pytest.raises(ValueError, match="image_shape must be"):
        plots.plot_explanation(explanation(), image_shape=(3, 5))


def test_trainings_are_compared_in_lines():
    ax = plots.plot_runs({"a": [0.1, 0.3], "none": [], "b": [0.2, 0.25, 0.4]})
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.2, 0.25, 0.4])
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert ax.get_title(loc="left") == "validation accuracy of 2 trainings"
    with pytest.raises(ValueError, match="no training has a loss to draw"):
        plots.plot_runs({"a": []}, "loss")


PICTURES = {
    "boundary": lambda **options: plots.plot_decision_boundary(
        above_the_diagonal, np.eye(2), np.array(["above", "below"]), **options
    ),
    "confusion": lambda **options: plots.plot_confusion_matrix([0, 1], [0, 0], **options),
    "templates": lambda **options: plots.plot_templates(np.eye(12, 3), (3, 2, 2), **options),
    "samples": lambda **options: plots.plot_samples(
        np.eye(3, 12), [0, 1, 2], [0, 1, 1], image_shape=(3, 2, 2), **options
    ),
    "history": lambda **options: plots.plot_history(
        History([2.0] * 300, [0.1] * 300, [0.3, 0.4]), **options
    ),
    "cross-validation": lambda **options: plots.plot_knn_cross_validation({1: [0.1]}, **options),
    "explanation": lambda **options: plots.plot_explanation(explanation(), **options),
    "explanation of features": lambda **options: plots.plot_explanation(
        explanation(None), **options
    ),
    "runs": lambda **options: plots.plot_runs({"a": [0.1, 0.2]}, **options),
    "search": lambda **options: plots.plot_search(SEARCHED, **options),
    "search of one candidate": lambda **options: plots.plot_search(SEARCHED[:1], **options),
}


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_drawn_where_it_is_told(draw, tmp_path):
    figure, (left, right) = pyplot.subplots(1, 2)
    assert draw(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert right.get_title(loc="left")
    figure.savefig(tmp_path / "picture.png")  # warnings are errors
    assert draw().figure is not figure


# ------------------------------------------------------------------------------- estimators


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 2)), np.arange(40) % 2
    options = {"max_iter": 3, "random_state": 0}
    softmax = gpuclf.SoftmaxClassifier(**options).fit(X, y, X_val=X[:10] + 1, y_val=y[:10])
    net = gpuclf.TwoLayerNetClassifier(hidden_size=5, **options).fit(X, y)
    return softmax, net, X, y


def test_pictures_take_the_classifier_itself(fitted):
    softmax, net, X, y = fitted
    drawn, expected = plots.plot_history(softmax), plots.plot_history(softmax.history_)
    np.testing.assert_array_equal(drawn.lines[0].get_ydata(), expected.lines[0].get_ydata())
    assert len(plots.plot_templates(softmax, (1, 2)).images) == 2
    assert len(plots.plot_templates(net, (1, 2)).images) == 5
    drawn, expected = (plots.plot_decision_boundary(p, X, y) for p in (softmax, softmax.predict))
    np.testing.assert_array_equal(drawn.images[0].get_array(), expected.images[0].get_array())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda c: plots.plot_history(c), "history_.*fitted"),
        (lambda c: plots.plot_history([1.0]), r"classifier or its history_, got list"),
        (lambda c: plots.plot_templates(c), "params_.*fitted"),
        (lambda c: plots.plot_decision_boundary(3, np.zeros((2, 2)), np.zeros(2)), "predict.*int"),
    ],
)
def test_what_is_no_fitted_classifier_is_refused_with_what_to_pass(draw, message):
    with pytest.raises(TypeError, match=message):
        draw(gpuclf.SoftmaxClassifier())


def test_the_history_has_both_accuracies():
    history = History([2.0, 1.0], [0.1, 0.1], val_accuracy=[0.3, 0.4], train_accuracy=[0.5, 0.9])
    ax = plots.plot_history(history)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    lines = {line.get_label(): line.get_ydata().tolist() for line in right.lines}
    assert lines == {"validation accuracy": [0.3, 0.4], "train accuracy": [0.5, 0.9]}
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["loss", "validation accuracy", "train accuracy"]


def test_one_sample_is_no_plural():
    assert plots.plot_samples(np.zeros((1, 3072))).get_title(loc="left") == "1 sample"


def test_candidates_that_failed_are_drawn_as_crosses():
    rows = [
        {"params": {"a": 1.0, "b": 1.0}, "val_accuracy": 0.5, "diverged": False},
        {"params": {"a": 9.0, "b": 3.0}, "val_accuracy": None, "diverged": False, "error": "no"},
    ]
    ax = plots.plot_search(rows, "a", "b")
    assert "failed" in [text.get_text() for text in ax.get_legend().get_texts()]
