"""The course's names: its published figures, its own loops written out, and its users' mistakes."""

import inspect
import random
import tracemalloc

import numpy as np
import pytest

import gpuclf
from gpuclf import course
from gpuclf.arrays import array_namespace
from gpuclf.datasets import make_synthetic

# The toy net and its scores, as printed in the course's notebook.
TOY_SCORES = [
    [-0.81233741, -1.27654624, -0.70335995],
    [-0.17129677, -1.18803311, -0.47310444],
    [-0.51590475, -1.01354314, -0.8504215],
    [-0.15419291, -0.48629638, -0.52901952],
    [-0.00618733, -0.12435261, -0.15226949],
]


def toy_net():
    np.random.seed(0)  # noqa: NPY002
    return course.TwoLayerNet(input_size=4, hidden_size=10, output_size=3, std=1e-1)


def toy_data():
    np.random.seed(1)  # noqa: NPY002
    return 10 * np.random.randn(5, 4), np.array([0, 1, 2, 2, 1])  # noqa: NPY002


def make_samples(n_samples=60, n_features=7, n_classes=4, seed=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_samples)
    y[0] = n_classes - 1
    return rng.standard_normal((n_samples, n_features)) + y[:, None], y


def softmax_written_out(W, X, y, reg):
    scores = X @ W
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y]).mean() + reg * np.sum(W**2)
    p[rows, y] -= 1
    return loss, X.T @ p / len(y) + 2 * reg * W


def svm_written_out(W, X, y, reg):
    scores = X @ W
    rows = np.arange(len(y))
    margins = np.maximum(0, scores - scores[rows, y][:, None] + 1)
    margins[rows, y] = 0
    d = (margins > 0).astype(float)
    d[rows, y] = -d.sum(axis=1)
    loss = margins.sum() / len(y) + reg * np.sum(W**2)
    return loss, X.T @ d / len(y) + 2 * reg * W


LINEAR = {
    "softmax": (course.Softmax, softmax_written_out, course.softmax_loss_naive),
    "svm": (course.LinearSVM, svm_written_out, course.svm_loss_naive),
}
VECTORIZED = {"softmax": course.softmax_loss_vectorized, "svm": course.svm_loss_vectorized}


# ------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (
            course.LinearClassifier.train,
            "self, X, y, learning_rate=0.001, reg=1e-05, num_iters=100, batch_size=200, "
            "verbose=False",
        ),
        (course.LinearClassifier.predict, "self, X"),
        (course.LinearClassifier.loss, "self, X_batch, y_batch, reg"),
        (course.KNearestNeighbor.train, "self, X, y"),
        (course.KNearestNeighbor.predict, "self, X, k=1, num_loops=0"),
        (course.KNearestNeighbor.compute_distances_two_loops, "self, X"),
        (course.KNearestNeighbor.compute_distances_one_loop, "self, X"),
        (course.KNearestNeighbor.compute_distances_no_loops, "self, X"),
        (course.KNearestNeighbor.predict_labels, "self, dists, k=1"),
        (course.TwoLayerNet, "input_size, hidden_size, output_size, std=0.0001"),
        (course.TwoLayerNet.loss, "self, X, y=None, reg=0.0"),
        (
            course.TwoLayerNet.train,
            "self, X, y, X_val, y_val, learning_rate=0.001, learning_rate_decay=0.95, reg=5e-06, "
            "num_iters=100, batch_size=200, verbose=False",
        ),
        (course.TwoLayerNet.predict, "self, X"),
        (course.svm_loss_naive, "W, X, y, reg"),
        (course.softmax_loss_naive, "W, X, y, reg"),
        (course.eval_numerical_gradient, "f, x, verbose=True, h=1e-05"),
        (course.eval_numerical_gradient_array, "f, x, df, h=1e-05"),
        (course.grad_check_sparse, "f, x, analytic_grad, num_checks=10, h=1e-05"),
        (course.rel_error, "x, y"),
        (course.load_CIFAR10, "ROOT"),
        (course.visualize_grid, "Xs, ubound=255.0, padding=1"),
        (course.extract_features, "imgs, feature_fns, verbose=False"),
    ],
)
def test_the_signatures_are_the_course_s(function, arguments):
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    assert ", ".join(map(str, bare)) == arguments


def test_the_vectorised_losses_are_the_library_s():
    assert course.softmax_loss_vectorized is gpuclf.softmax_loss_vectorized
    assert course.svm_loss_vectorized is gpuclf.svm_loss_vectorized


# ---------------------------------------------------------------------------- linear classifiers


@pytest.mark.parametrize("name", LINEAR)
def test_the_losses_are_those_written_out(lib, name):
    kind, written_out, in_loops = LINEAR[name]
    X, y = make_samples()
    W = np.random.default_rng(0).standard_normal((7, 4))
    expected_loss, expected_dW = written_out(W, X, y, 0.05)
    given = lib.asarray(W), lib.asarray(X), lib.asarray(y)
    classifier = kind()
    classifier.W = given[0]
    for loss, dW in (
        in_loops(*given, 0.05),
        VECTORIZED[name](*given, 0.05),
        classifier.loss(*given[1:], 0.05),
    ):
        loss = loss if isinstance(loss, float) else lib.to_numpy(loss)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
        assert type(dW) is type(given[0])
        np.testing.assert_allclose(lib.to_numpy(dW), expected_dW, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", VECTORIZED.values(), ids=VECTORIZED)
def test_the_penalty_is_reg_times_the_sum_of_squares(loss):
    X, y = make_samples()
    W = np.random.default_rng(0).standard_normal((7, 4))
    assert loss(W, X, y, 0.5)[0] - loss(W, X, y, 0.0)[0] == pytest.approx(0.5 * np.sum(W * W))


def test_the_first_losses_are_those_of_the_course_s_sanity_checks():
    X, y = make_synthetic(500)
    X = X - X.mean(axis=0)
    np.random.seed(0)  # noqa: NPY002
    W = np.random.randn(3072, 10) * 0.0001  # noqa: NPY002
    assert course.softmax_loss_vectorized(W, X, y, 0.0)[0] == pytest.approx(-np.log(0.1), abs=0.2)
    assert course.svm_loss_vectorized(W, X, y, 0.0)[0] == pytest.approx(9, abs=2)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("name", LINEAR)
def test_training_is_the_course_s_loop_from_the_same_seed(lib, name):
    kind, written_out, _ = LINEAR[name]
    X, y = make_samples()
    np.random.seed(5)  # noqa: NPY002
    W = 0.001 * np.random.randn(7, 4)  # noqa: NPY002
    expected = []
    for _ in range(8):
        rows = np.random.choice(60, 20)  # noqa: NPY002
        loss, dW = written_out(W, X[rows], y[rows], 0.01)
        expected.append(loss)
        W = W - 0.1 * dW

    np.random.seed(5)  # noqa: NPY002
    classifier = kind()
    losses = classifier.train(
        lib.asarray(X), lib.asarray(y), learning_rate=0.1, reg=0.01, num_iters=8, batch_size=20
    )
    assert all(type(loss) is float for loss in losses)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(lib.to_numpy(classifier.W), W, rtol=0, atol=1e-12)
    predicted = lib.to_numpy(classifier.predict(lib.asarray(X)))
    np.testing.assert_array_equal(predicted, np.argmax(X @ W, axis=1))


def test_training_goes_on_from_the_weights_that_are_there():
    X, y = make_samples()
    classifier = course.Softmax()
    classifier.train(X, y, learning_rate=0.1)
    before = classifier.W
    classifier.train(X, y, learning_rate=0.1, num_iters=0)
    assert classifier.W is before
    assert classifier.train(X, y, num_iters=0) == []


def test_a_step_on_some_of_the_columns_does_not_copy_all_samples():
    X, y = np.zeros((5_000, 401))[:, :-1], np.zeros(5_000, int)
    y[0] = 1
    course.Softmax().train(X, y, num_iters=1)  # what is loaded or compiled on the way
    tracemalloc.start()
    try:
        course.Softmax().train(X, y, num_iters=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes / 4


def test_labels_may_be_a_list():
    X, y = make_samples()
    classifier = course.LinearSVM()
    classifier.train(X, y.tolist())
    assert classifier.W.shape == (7, 4)


def test_the_losses_are_printed_every_100_steps(capsys):
    X, y = make_samples()
    losses = course.Softmax().train(X, y, num_iters=201, verbose=True)
    printed = [f"iteration {i} / 201: loss {losses[i]:f}" for i in (0, 100, 200)]
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("kind", [course.LinearSVM, course.Softmax])
def test_a_training_that_diverges_goes_on_and_says_so(lib, kind):
    # The course's grid for the SVM has such a pair, and its search goes on past it.
    X, y = map(lib.asarray, make_samples())
    classifier = kind()
    with pytest.warns(RuntimeWarning, match=r"0\.001 is too high .* reg=9000; try a tenth"):
        losses = classifier.train(X, y, learning_rate=1e-3, reg=9e3, num_iters=300, batch_size=5)
    assert len(losses) == 300
    assert not np.isfinite(losses[-1])
    assert set(lib.to_numpy(classifier.predict(X)).tolist()) == {0}  # as NumPy's argmax of NaN
    remedied = kind().train(X, y, learning_rate=1e-4, reg=9e3, num_iters=30, batch_size=5)
    assert np.isfinite(remedied).all()


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (np.ones((4, 32, 32, 3)), [0] * 4, ValueError, r"X\.reshape\(X\.shape\[0\], -1\)"),
        (np.ones(5), [0], ValueError, r"one sample with X\.reshape\(1, -1\)"),
        (np.ones((4, 5)), [0, 1, 2], ValueError, "one label for each row of X"),
        (np.ones((4, 5)), [0, 1, 2, -1], ValueError, "number the classes from 0"),
        (np.ones((4, 5)), ["a", "b", "a", "b"], TypeError, "return_inverse=True"),
        (np.ones((4, 5), int), [0, 1, 2, 1], TypeError, "X must be uint8, .*float32 or float64"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_and_changes_nothing(X, y, error, message):
    classifier = course.Softmax()
    with pytest.raises(error, match=message):
        classifier.train(X, y)
    assert classifier.W is None


def test_a_forgotten_or_superfluous_column_of_ones_is_named():
    X, y = make_samples()
    with_ones = np.hstack([X, np.ones((60, 1))])
    classifier, other = course.Softmax(), course.Softmax()
    classifier.train(with_ones, y)
    with pytest.raises(ValueError, match=r"must have 8 features.*bias trick.*numpy\.hstack"):
        classifier.predict(X)
    other.train(X, y)
    with pytest.raises(ValueError, match=r"must have 7 features.*leave it out: X\[:, :-1\]"):
        other.predict(with_ones)
    # The remedies, as they are written.
    assert classifier.predict(np.hstack([X, np.ones((X.shape[0], 1))])).shape == (60,)
    assert other.predict(with_ones[:, :-1]).shape == (60,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda X, y: course.Softmax().predict(X), RuntimeError, "this Softmax is not trained"),
        (lambda X, y: course.LinearSVM().loss(X, y, 0.0), RuntimeError, "call its train"),
        (lambda X, y: course.LinearClassifier().train(X, y), NotImplementedError, "use LinearSVM"),
        (lambda X, y: course.KNearestNeighbor().predict(X), RuntimeError, "not trained"),
        (lambda X, y: course.KNearestNeighbor().predict_labels(X), RuntimeError, "not trained"),
    ],
)
def test_what_is_not_trained_says_so(call, error, message):
    with pytest.raises(error, match=message):
        call(*make_samples())


def test_arrays_of_two_libraries_are_refused(strict):
    X, y = make_samples()
    for call in (
        lambda: course.Softmax().train(strict.asarray(X), y),
        lambda: course.softmax_loss_naive(np.ones((7, 4)), strict.asarray(X), y, 0.0),
        lambda: course.KNearestNeighbor().train(strict.asarray(X), y),
    ):
        with pytest.raises(gpuclf.MixedDevicesError):
            call()


# -------------------------------------------------------------------------------- two-layer net


def test_the_toy_net_has_the_published_scores_and_loss(lib):
    net = toy_net()
    X, y = toy_data()
    scores = net.loss(lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(scores), TOY_SCORES, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(
        lib.to_numpy(net.predict(lib.asarray(X))), np.argmax(TOY_SCORES, axis=1)
    )
    loss, grads = net.loss(lib.asarray(X), lib.asarray(y), reg=0.05)
    assert float(lib.to_numpy(loss)) == pytest.approx(1.30378789133, abs=1e-11)
    assert {name: tuple(g.shape) for name, g in grads.items()} == {
        "W1": (4, 10), "b1": (10,), "W2": (10, 3), "b2": (3,)
    }  # fmt: skip


@pytest.mark.essential_cases(2)
def test_the_toy_net_has_the_numerical_gradients(lib):
    net = toy_net()
    X, y = map(lib.asarray, toy_data())
    _, grads = net.loss(X, y, reg=0.05)
    for name, analytic in grads.items():
        numeric = course.eval_numerical_gradient(
            lambda _: net.loss(X, y, reg=0.05)[0], net.params[name], verbose=False
        )
        assert course.rel_error(numeric, analytic) < 1e-8  # "less than 1e-8", says the course


@pytest.mark.essential_cases(2)
def test_the_toy_net_trains_to_the_published_loss(lib):
    X, y = map(lib.asarray, toy_data())
    net = toy_net()
    stats = net.train(X, y, X, y, learning_rate=1e-1, reg=5e-6, num_iters=100)
    assert stats["loss_history"][-1] == pytest.approx(0.017149607938732093, abs=1e-12)
    assert {name: len(values) for name, values in stats.items()} == {
        "loss_history": 100, "train_acc_history": 100, "val_acc_history": 100
    }  # fmt: skip
    assert stats["val_acc_history"][-1] == 1.0


def test_the_net_decays_its_rate_and_measures_accuracy_once_an_epoch(capsys):
    X, y = make_samples()
    params = None

    def changes(decay):
        nonlocal params
        np.random.seed(0)  # noqa: NPY002
        net = course.TwoLayerNet(7, 5, 4, std=0.1)
        stats = net.train(
            X, y, X, y, learning_rate=0.1, learning_rate_decay=decay, num_iters=8, batch_size=20,
            verbose=True,
        )  # fmt: skip
        params = net.params
        return stats

    # With a rate of 0 after the first step of the first epoch, one step is all that happens.
    stats = changes(0.0)
    assert len(stats["loss_history"]) == 8
    assert len(stats["train_acc_history"]) == len(stats["val_acc_history"]) == 3  # 0, 3, 6
    after_one = params
    np.random.seed(0)  # noqa: NPY002
    net = course.TwoLayerNet(7, 5, 4, std=0.1)
    net.train(X, y, X, y, learning_rate=0.1, num_iters=1, batch_size=20)
    for name, value in net.params.items():
        np.testing.assert_array_equal(after_one[name], value)
    assert stats["val_acc_history"][0] == np.mean(net.predict(X) == y)
    assert capsys.readouterr().out.startswith("iteration 0 / 8: loss 1.4")


def test_the_net_also_goes_on_where_it_diverges():
    X, y = make_samples()
    net = course.TwoLayerNet(7, 5, 4, std=0.1)
    with pytest.warns(RuntimeWarning, match="training diverged: the loss was"):
        stats = net.train(100 * X, y, X, y, learning_rate=1e6, num_iters=200)
    assert len(stats["loss_history"]) == 200


def test_the_net_names_what_does_not_fit():
    X, y = make_samples()
    net = course.TwoLayerNet(8, 5, 4)
    with pytest.raises(ValueError, match=r"X must have 8 features.*bias trick"):
        net.loss(X)
    net = course.TwoLayerNet(7, 5, 4)
    with pytest.raises(ValueError, match=r"X_val\.reshape\(X_val\.shape\[0\], -1\)"):
        net.train(X, y, X[0], y)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3"):
        net.train(X, y + 1, X, y)


# --------------------------------------------------------------------------- nearest neighbours


def courses_vote(dists, y_train, k):
    found = []
    for row in dists:
        closest = y_train[np.argsort(row, kind="stable")[:k]]
        found.append(np.argmax(np.bincount(closest)))
    return np.array(found)


def test_the_distances_are_the_same_three_times(lib):
    rng = np.random.default_rng(0)
    X_train, X = rng.integers(256, size=(2, 12, 9)).astype(float)
    classifier = course.KNearestNeighbor()
    classifier.train(lib.asarray(X_train), lib.asarray(np.arange(12) % 3))
    expected = np.sqrt(((X[:, None, :] - X_train[None, :, :]) ** 2).sum(axis=2))
    for loops in ("two_loops", "one_loop", "no_loops"):
        dists = getattr(classifier, f"compute_distances_{loops}")(lib.asarray(X))
        assert array_namespace(dists) is array_namespace(lib.asarray(X))
        np.testing.assert_allclose(lib.to_numpy(dists), expected, rtol=1e-14)


@pytest.mark.parametrize("num_loops", [0, 1, 2])
def test_ties_go_to_the_smallest_of_the_most_frequent_labels(lib, num_loops):
    rng = np.random.default_rng(1)
    X_train, X = rng.integers(3, size=(40, 2)).astype(float), rng.integers(3, size=(15, 2)) * 1.0
    y_train = rng.integers(5, size=40)
    classifier = course.KNearestNeighbor()
    classifier.train(lib.asarray(X_train), lib.asarray(y_train))
    dists = np.sqrt(((X[:, None, :] - X_train[None, :, :]) ** 2).sum(axis=2))
    for k in (1, 4, 7):
        expected = courses_vote(dists, y_train, k)
        for found in (
            classifier.predict_labels(lib.asarray(dists), k=k),
            classifier.predict(lib.asarray(X), k=k, num_loops=num_loops),
        ):
            np.testing.assert_array_equal(lib.to_numpy(found), expected)


def test_the_neighbours_name_what_does_not_fit():
    X, y = make_samples()
    classifier = course.KNearestNeighbor()
    classifier.train(X, y)
    with pytest.raises(ValueError, match="num_loops must be 0, 1 or 2, got 3"):
        classifier.predict(X, num_loops=3)
    with pytest.raises(ValueError, match="X must have 7 features, as in training, got 3"):
        classifier.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"X\.reshape\(X\.shape\[0\], -1\)"):
        classifier.train(X.reshape(60, 7, 1), y)


# ------------------------------------------------------------------------------ gradient checks


def in_place(lib, values):
    x = lib.asarray(values)
    return x.copy() if lib.name == "numpy-readonly" else x


def test_the_numerical_gradient_moves_x_in_place_and_puts_it_back(lib, capsys):
    values = np.array([[1.0, -3.0], [0.5, 2.0]])
    x = in_place(lib, values)
    found = course.eval_numerical_gradient(lambda _: lib.xp.sum(x**3), x)
    np.testing.assert_allclose(lib.to_numpy(found), 3 * values**2, rtol=1e-8)
    np.testing.assert_array_equal(lib.to_numpy(x), values)
    assert len(capsys.readouterr().out.splitlines()) == 4
    course.eval_numerical_gradient(lambda _: lib.xp.sum(x**3), x, verbose=False)
    assert capsys.readouterr().out == ""


def test_the_numerical_gradient_through_an_array(lib):
    rng = np.random.default_rng(0)
    values, df = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    x = in_place(lib, values)
    found = course.eval_numerical_gradient_array(lambda x: x**2, x, lib.asarray(df))
    np.testing.assert_allclose(lib.to_numpy(found), 2 * values * df, rtol=1e-8, atol=1e-9)
    same = course.eval_numerical_gradient_array(lambda x: x, x, lib.asarray(df))  # x itself
    np.testing.assert_allclose(lib.to_numpy(same), df, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(lib.to_numpy(x), values)


def test_x_is_put_back_where_f_fails():
    x = np.array([1.0, 2.0])
    for wrong in (lambda x: 1 / 0, lambda x: (x.sum(), x)):
        with pytest.raises((ZeroDivisionError, TypeError)):
            course.eval_numerical_gradient(wrong, x)
        np.testing.assert_array_equal(x, [1.0, 2.0])


def test_what_has_no_numerical_gradient_is_refused():
    with pytest.raises(TypeError, match=r"lambda W: loss\(W\)\[0\]"):
        course.eval_numerical_gradient(lambda x: (x.sum(), x), np.ones(2))
    with pytest.raises(TypeError, match=r"x\.astype\(float\)"):
        course.eval_numerical_gradient(np.sum, np.ones(2, int))
    readonly = np.ones(2)
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only; pass x\.copy\(\)"):
        course.eval_numerical_gradient(np.sum, readonly)
    with pytest.raises(ValueError, match=r"shape of x, \(2,\), got \(3,\)"):
        course.grad_check_sparse(np.sum, np.ones(2), np.ones(3))


def test_the_sparse_check_prints_both_gradients_at_places_drawn_by_the_seed(lib, capsys):
    values = np.arange(1.0, 13).reshape(3, 4)
    x, right = in_place(lib, values), lib.asarray(2 * values)
    f = lambda x: array_namespace(x).sum(x * x)  # noqa: E731
    random.seed(4)
    course.grad_check_sparse(f, x, right, num_checks=5)
    random.seed(4)
    places = [(random.randrange(3), random.randrange(4)) for _ in range(5)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for line, place in zip(lines, places, strict=True):
        value = 2 * values[place]
        start = f"numerical: {value:f} analytic: {value:f}, relative error: "
        assert line.startswith(start)
        assert float(line.removeprefix(start)) < 1e-8
    course.grad_check_sparse(f, x, lib.asarray(6 * values), num_checks=1)
    assert capsys.readouterr().out.strip().endswith("relative error: 5.000000e-01")


def test_the_relative_error_is_the_largest(lib):
    x, y = lib.asarray(np.array([1.0, 2.0, 0.0])), lib.asarray(np.array([1.0, 6.0, 1e-9]))
    assert course.rel_error(x, y) == 0.5
    assert course.rel_error(2.0, 2.0) == 0.0
