"""Classifiers take images with three or four axes, and notice what cannot be what they know."""

import pickle
import warnings

import numpy as np
import pytest

import gpuclf
from gpuclf import (
    FleetEnsemble,
    FleetSearchCV,
    KNeighborsClassifier,
    LinearSVMClassifier,
    SoftmaxClassifier,
    Standardized,
    TwoLayerNetClassifier,
)

N, SHAPE = 60, (3, 6, 5)
MODELS = {
    "softmax": lambda **o: SoftmaxClassifier(max_iter=3, random_state=0, **o),
    "svm": lambda **o: LinearSVMClassifier(max_iter=3, random_state=0, **o),
    "net": lambda **o: TwoLayerNetClassifier(max_iter=3, hidden_size=8, random_state=0, **o),
    "knn": lambda **o: KNeighborsClassifier(3, **o),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def make_images(shape=SHAPE, seed=0):
    """Bytes (N, C, H, W) of two classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 2
    X = rng.normal(100, 25, (N, *shape)) + 40 * y[:, None, None, None] * np.linspace(0, 1, shape[2])
    return np.clip(X, 0, 255).astype(np.uint8), y


FORMS = {
    "NCHW": lambda X: X,
    "NHWC": lambda X: X.transpose(0, 2, 3, 1),
    "rows": lambda X: X.reshape(N, -1),
}


@pytest.mark.essential_cases(8)
@every_model
@pytest.mark.parametrize("form", FORMS)
def test_every_layout_gives_the_bits_of_rows(lib, kind, form):
    X, y = make_images()
    rows = MODELS[kind]().fit(lib.asarray(FORMS["rows"](X)), lib.asarray(y))
    model = MODELS[kind]().fit(lib.asarray(FORMS[form](X)), lib.asarray(y))
    expected = lib.to_numpy(rows.predict(lib.asarray(FORMS["rows"](X))))
    for other in FORMS.values():  # whichever it was trained on
        found = lib.to_numpy(model.predict(lib.asarray(other(X))))
        np.testing.assert_array_equal(found, expected)
    assert model.n_features_in_ == 90
    assert model.image_shape_ == (None if form == "rows" else SHAPE)
    assert model.layout_ == (None if form == "rows" else form)


@every_model
def test_grey_images_of_three_axes(kind):
    X, y = make_images((1, 8, 9))
    model = MODELS[kind]().fit(X[:, 0], y)
    assert (model.image_shape_, model.layout_) == ((1, 8, 9), "NHW")
    for later in (X[:, 0], X, X.transpose(0, 2, 3, 1), X.reshape(N, -1)):
        np.testing.assert_array_equal(model.predict(later), model.predict(X[:, 0]))


def test_lists_of_images_are_taken():
    X, y = make_images()
    model = MODELS["softmax"]().fit(list(X.transpose(0, 2, 3, 1)), y)
    np.testing.assert_array_equal(model.predict(X[:5].tolist()), model.predict(X[:5]))
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pictures = [image.fromarray(picture) for picture in X.transpose(0, 2, 3, 1)]
    np.testing.assert_array_equal(model.predict(pictures), model.predict(X))


def test_images_of_another_size_are_refused_and_the_shapes_named():
    X, y = make_images()
    model = MODELS["softmax"]().fit(X, y)
    with pytest.raises(ValueError, match=r"\(60, 3, 5, 5\) holds no images of 3 channels, 6 x 5"):
        model.predict(X[:, :, 1:])
    # Turned by a right angle it is of another shape, which the number of features does not show.
    with pytest.raises(ValueError, match=r"trained on .layout 'NCHW'.: .* or rows of 90 numbers"):
        model.predict(X.transpose(0, 1, 3, 2))
    with pytest.raises(ValueError, match="grey images"):
        MODELS["softmax"]().fit(np.zeros((3, 6, 5)), [0, 1, 0])


def test_a_layout_with_two_readings_is_the_one_trained_on():
    X, y = make_images((3, 4, 3))
    with pytest.raises(ValueError, match="layout='NCHW' for the first"):
        MODELS["softmax"]().fit(X, y)
    X, y = make_images((3, 5, 3))
    wide = np.concatenate([X, X[..., :1], X[..., :2]], axis=-1)
    model = MODELS["softmax"]().fit(wide, y)
    assert model.layout_ == "NCHW"
    np.testing.assert_array_equal(model.predict(wide.transpose(0, 2, 3, 1)), model.predict(wide))


@every_model
def test_images_in_parts_in_searches_and_in_files(kind, tmp_path):
    X, y = make_images()
    model = MODELS[kind]()
    if kind == "knn":
        model.fit(X, y)
    else:
        model.partial_fit(X[:30], y[:30], classes=[0, 1])
        model.partial_fit(X[30:].transpose(0, 2, 3, 1), y[30:])
        search = FleetSearchCV(MODELS[kind](), {"reg": [0.1, 0.01]}, cv=2).fit(X, y)
        np.testing.assert_array_equal(search.predict(X), search.predict(X.reshape(N, -1)))
        both = FleetEnsemble(MODELS[kind](), [{"reg": 0.1}, {"reg": 0.01}]).fit(X, y)
        np.testing.assert_array_equal(both.predict(X), both.predict(X.reshape(N, -1)))
        assert both.estimators_[1].image_shape_ == SHAPE
    model.save(tmp_path / "model")
    for again in (gpuclf.load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        assert (again.image_shape_, again.layout_) == (SHAPE, "NCHW")
        assert again.value_range_ == model.value_range_
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        with pytest.warns(UserWarning, match="255"):
            again.predict(X / 255)


def test_validation_and_score_take_images():
    X, y = make_images()
    model = MODELS["softmax"]().fit(X, y, X_val=X.transpose(0, 2, 3, 1), y_val=y)
    assert model.score(X, y) == model.val_accuracy_history_[-1]


def test_refitting_and_failing_leave_what_is_true():
    X, y = make_images()
    model = MODELS["softmax"]().fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        model.fit(X[:, 0], y[:3])
    assert (model.image_shape_, model.value_range_) == (SHAPE, (X.min(), X.max()))
    model.fit(X.reshape(N, -1) / 255.0, y)
    assert (model.image_shape_, model.layout_) == (None, None)
    assert model.value_range_ == (X.min() / 255, X.max() / 255)


# ---------------------------------------------------------------------------- range of the values


def warned(model, X):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.predict(X)
    return " ".join(str(w.message) for w in seen)


@pytest.mark.essential_cases(5)
@every_model
@pytest.mark.parametrize("trained", [np.uint8, np.float32, np.int64])
def test_fractions_after_bytes_and_bytes_after_fractions_warn(lib, kind, trained):
    if lib.name == "opaque" and trained is not np.uint8:
        pytest.skip("values on a device are not looked at")
    X, y = make_images()
    on_host = lib.name.startswith("numpy")
    model = MODELS[kind]().fit(lib.asarray(X.astype(trained)), lib.asarray(y))
    fractions = lib.asarray(X / 255.0)
    if on_host or trained is np.uint8:
        message = warned(model, fractions)
        assert "was trained on whole numbers of 0..255 and is asked about fractions" in message
        remedy = message.split("pass ")[1].split(", or")[0]
        assert warned(model, eval(remedy, {"X": X / 255.0}) if on_host else lib.asarray(X)) == ""
    assert warned(model, lib.asarray(X[:1])) == ""
    model.fit(fractions, lib.asarray(y))
    if on_host:
        assert "pass X / 255" in warned(model, lib.asarray(X[:1]))
        assert warned(model, eval("X / 255", {"X": lib.asarray(X)})) == ""


def test_what_may_be_right_brings_no_warning():
    X, y = make_images()
    model = MODELS["softmax"]().fit(X, y)
    for other in (np.zeros_like(X), np.ones(X.shape), X.astype(float), X * 0.5, X // 2, X - 128.0):
        assert warned(model, other) == ""
    on_off = MODELS["softmax"]().fit(X > 100, y)
    assert warned(on_off, (X > 100) * 1.0) == ""
    counts = MODELS["softmax"]().fit(X.reshape(N, -1)[:, :5], y)  # a table, not an image
    assert warned(counts, X.reshape(N, -1)[:, :5] / 255) == ""


def test_standardized_samples_are_compared_as_they_are_stored():
    X, y = make_images()
    rows = X.reshape(N, -1)
    samples = Standardized.fit(rows)
    model = MODELS["softmax"]().fit(samples, y)
    assert model.value_range_ == (X.min(), X.max())
    assert warned(model, samples) == warned(model, rows) == ""
    assert "255" in warned(model, samples.apply(rows / 255))
