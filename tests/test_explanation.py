import numpy as np
import pytest

import gpuclf
from gpuclf.models import LinearModel

D, C = 12, 4
LABELS = np.array(["ant", "bee", "cat", "dog"])
RNG = np.random.default_rng(0)
Y = np.arange(80) % C
PIXELS = np.clip(RNG.integers(60, 120, (80, D)) + 90 * np.eye(C, D)[Y], 0, 255).astype(np.uint8)
SETTINGS = {"max_iter": 4, "batch_size": 20, "precision": "float64", "random_state": 0}


class OwnClassifier(gpuclf.SoftmaxClassifier):
    model = LinearModel("own", gpuclf.losses.multiclass_hinge, is_smooth=False)


KINDS = {
    "softmax": lambda **more: gpuclf.SoftmaxClassifier(**SETTINGS, **more),
    "svm": lambda **more: gpuclf.LinearSVMClassifier(**SETTINGS, **more),
    "net": lambda **more: gpuclf.TwoLayerNetClassifier(**SETTINGS, hidden_size=9, **more),
    "own": lambda **more: OwnClassifier(**SETTINGS, **more),
}


def standardized(model, x):
    return (x.astype(np.float64) - model.mean_) / model.scale_


@pytest.mark.parametrize("kind", ["softmax", "svm", "own"])
def test_of_a_linear_model_it_is_x_times_the_difference_of_templates(kind):
    model = KINDS[kind]().fit(PIXELS, LABELS[Y])
    x = PIXELS[5]
    found = gpuclf.explain(model, x, "dog", against="ant")
    W, b = model.params_["W"], model.params_["b"]
    for d in range(D):
        expected = standardized(model, x)[d] * (W[d, 3] - W[d, 0])
        assert found.contributions[d] == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert found.offset == pytest.approx(b[3] - b[0], rel=1e-8, abs=1e-10)
    scores = model.decision_function(x[None])[0]
    assert found.lead == pytest.approx(scores[3] - scores[0], rel=1e-12)
    np.testing.assert_array_equal(found.x, x)


def test_of_the_net_it_is_x_times_the_gradient_by_differences():
    model = KINDS["net"]().fit(PIXELS, LABELS[Y])
    x = PIXELS[3].astype(np.float64)
    found = gpuclf.explain(model, x)
    i, j = (list(LABELS).index(label) for label in (found.label, found.against))

    def lead(z):
        scores = model.decision_function((z * model.scale_ + model.mean_)[None])[0]
        return scores[i] - scores[j]

    z, step = standardized(model, x), 1e-4
    for d in range(D):
        moved = step * np.eye(D)[d]
        slope = (lead(z + moved) - lead(z - moved)) / (2 * step)
        assert found.contributions[d] == pytest.approx(z[d] * slope, rel=1e-6, abs=1e-8)
    assert found.lead == pytest.approx(lead(z), rel=1e-10)
    # Along the line to the mean image the units that are active may change; near x they do not.
    hidden = np.maximum(z @ model.params_["W1"] + model.params_["b1"], 0) > 0
    W2 = model.params_["W2"][:, i] - model.params_["W2"][:, j]
    biases = (model.params_["b1"] * hidden) @ W2 + model.params_["b2"][i] - model.params_["b2"][j]
    assert found.offset == pytest.approx(biases, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_predicted_class_is_held_against_the_second(kind):
    model = KINDS[kind]().fit(PIXELS, LABELS[Y])
    for x in PIXELS[:6]:
        found = gpuclf.explain(model, x)
        first, second = np.argsort(-model.decision_function(x[None])[0])[:2]
        assert (found.label, found.against) == (LABELS[first], LABELS[second])
        assert found.lead >= 0
        assert found.contributions.sum() + found.offset == pytest.approx(found.lead)
        other = gpuclf.explain(model, x, label=found.against)
        assert (other.against, other.lead) == (found.label, pytest.approx(-found.lead))
    assert repr(found).startswith(f"Explanation({found.label!r} leads {found.against!r} by ")
    assert repr(found).endswith("12 features)")


def test_without_standardisation_it_is_the_sample_itself():
    model = KINDS["softmax"](standardize=False, learning_rate=1e-5).fit(PIXELS, Y)
    found = gpuclf.explain(model, PIXELS[0], 1, 2)
    W = model.params_["W"]
    np.testing.assert_allclose(found.contributions, PIXELS[0] * (W[:, 1] - W[:, 2]), rtol=1e-10)
    assert found.label == 1


def test_two_classes_and_images_of_three_axes():
    model = KINDS["svm"]().fit(PIXELS, Y > 1)
    row = gpuclf.explain(model, PIXELS[0])
    image = PIXELS[0].reshape(3, 2, 2)  # planes
    for x in (image, image.transpose(1, 2, 0)):
        found = gpuclf.explain(model, x)
        np.testing.assert_array_equal(found.contributions, row.contributions)
        assert (found.image_shape, row.image_shape) == ((3, 2, 2), None)
        np.testing.assert_array_equal(found.x, PIXELS[0])
    grey = gpuclf.explain(model, PIXELS[0].reshape(3, 4))
    assert grey.image_shape == (1, 3, 4)
    model.image_shape_ = (3, 2, 2)
    assert gpuclf.explain(model, PIXELS[:1]).image_shape == (3, 2, 2)


def test_on_every_library(lib):
    dtype = np.float64 if lib.name != "jax" else np.float32
    X = PIXELS.astype(dtype)
    model = gpuclf.TwoLayerNetClassifier(**SETTINGS | {"precision": None}, hidden_size=9).fit(X, Y)
    expected = gpuclf.explain(model, X[7])
    moved = gpuclf.TwoLayerNetClassifier(**SETTINGS | {"precision": None}, hidden_size=9)
    moved.fit(lib.asarray(X), lib.asarray(Y))
    found = gpuclf.explain(moved, lib.asarray(X[7]))
    assert isinstance(found.contributions, np.ndarray)
    assert (found.label, found.against) == (expected.label, expected.against)
    np.testing.assert_allclose(found.contributions, expected.contributions, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PIXELS[:2],), r"one sample, of shape \(12,\) or an image of 12 values, got \(2, 12\)"),
        ((PIXELS[0, :5],), r"got \(5,\); of several samples"),
        ((PIXELS[0], "cow"), r"label='cow' is none of the classes \['ant', 'bee'"),
        ((PIXELS[0], "ant", "ant"), "must differ, got 'ant' twice"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments, message):
    model = KINDS["softmax"]().fit(PIXELS, LABELS[Y])
    with pytest.raises(ValueError, match=message):
        gpuclf.explain(model, *arguments)


def test_neighbours_are_refused_by_name():
    model = gpuclf.KNeighborsClassifier().fit(PIXELS, Y)
    with pytest.raises(TypeError, match="KNeighborsClassifier has no gradient to explain by"):
        gpuclf.explain(model, PIXELS[0])


def test_one_class_has_nothing_against_it():
    model = KINDS["softmax"]().fit(PIXELS, np.zeros(80, int))
    with pytest.raises(ValueError, match="one class only"):
        gpuclf.explain(model, PIXELS[0])
