"""What looks like an array and is none is refused by name, with a remedy that works."""

import re
from itertools import product

import numpy as np
import pytest
import scipy.sparse

import gpuclf
from gpuclf import (
    FleetSearchCV,
    KNeighborsClassifier,
    LinearSVMClassifier,
    SoftmaxClassifier,
    Standardized,
    TwoLayerNetClassifier,
    softmax_loss_vectorized,
    two_layer_loss,
)
from gpuclf.arrays import refuse_odd_arrays

N, D, C = 30, 6, 3
X = np.random.default_rng(0).normal(size=(N, D))
Y = np.arange(N) % C


def of_torch(values, kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.asarray(np.array(values))
    return tensor.to_sparse() if kind == "coo" else tensor.to_sparse_csr()


def of_jax(values):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    return jax.numpy.asarray(values)


pytestmark = [
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
]

ODD = {
    "masked": (np.ma.masked_greater, r"masked array", "numpy.ma.filled({}, 0)"),
    "matrix": (lambda v, _: np.matrix(v), "numpy.matrix", "numpy.asarray({})"),
    "scipy": (lambda v, _: scipy.sparse.csr_array(v), "sparse", "{}.toarray()"),
    "spmatrix": (lambda v, _: scipy.sparse.coo_matrix(v), "sparse", "{}.toarray()"),
    "torch coo": (lambda v, _: of_torch(v, "coo"), "sparse tensor", "{}.to_dense()"),
    "torch csr": (lambda v, _: of_torch(v, "csr"), "sparse tensor", "{}.to_dense()"),
    "jax": (lambda v, _: of_jax(v), "JAX", "numpy.asarray({})"),
}
every_odd_kind = pytest.mark.parametrize("kind", ODD)
MODELS = [SoftmaxClassifier, LinearSVMClassifier, TwoLayerNetClassifier, KNeighborsClassifier]


def odd(kind, values=X):
    make, what, remedy = ODD[kind]
    return make(values, 2.0), what, remedy


def follow(remedy, **names):
    """Do what a message says."""
    return eval(remedy, {"numpy": np} | names)


@pytest.mark.essential_cases(12)
@every_odd_kind
@pytest.mark.parametrize("model", MODELS)
def test_samples_are_refused_and_the_remedy_works(kind, model):
    values, what, remedy = odd(kind)
    message = f"X is .*{what}.*{re.escape(remedy.format('X'))}"
    with pytest.raises(TypeError, match=message):
        model().fit(values, Y)
    usable = follow(remedy.format("X"), X=values)
    y = Y if isinstance(usable, np.ndarray) else __import__("torch").asarray(Y)
    fitted = model().fit(usable, y)
    with pytest.raises(TypeError, match=message):
        fitted.predict(values)
    assert len(fitted.predict(usable)) == N


@every_odd_kind
@pytest.mark.parametrize("name", ["W", "X"])
def test_losses_refuse_them_and_the_remedy_works(kind, name):
    given = {"W": np.random.default_rng(1).normal(size=(D, C)), "X": X}
    values, what, remedy = odd(kind, given[name])
    remedy = remedy.format(name)
    with pytest.raises(TypeError, match=f"(?s)({name}|the array) is .*{what}.*"):
        softmax_loss_vectorized(**{**given, name: values}, y=Y, reg=0.1)
    usable = follow(remedy, **{name: values})
    if isinstance(usable, np.ndarray):
        softmax_loss_vectorized(**{**given, name: usable}, y=Y, reg=0.1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("masked", "sample_weight"), *product(["matrix", "jax"], ["y", "sample_weight"])],
)
def test_labels_and_weights_are_refused_and_the_remedy_works(kind, name):
    values, what, _ = odd(kind, Y if name == "y" else np.full(N, 1.0))
    given = {"y": Y, "sample_weight": np.ones(N)}
    with pytest.raises(TypeError, match=f"^{name} is .*{what}") as error:
        SoftmaxClassifier().fit(X, **given | {name: values})
    remedy = re.search(r"numpy\.(ma\.)?\w+\([^()]*\)(\.ravel\(\))?", str(error.value)).group()
    SoftmaxClassifier().fit(X, **given | {name: follow(remedy, **{name: values})})


@every_odd_kind
def test_other_ways_in_refuse_them_too(kind):
    values, what, _ = odd(kind)
    with pytest.raises(TypeError, match=what):
        Standardized.fit(values)
    with pytest.raises((TypeError, ValueError), match=what):
        FleetSearchCV(SoftmaxClassifier(), {"reg": [0.1, 0.2]}, cv=2).fit(values, Y)
    params = {"W1": values.T if kind == "masked" else values, "W2": X, "b1": X[0], "b2": X[0]}
    with pytest.raises(TypeError, match=what):
        two_layer_loss(params, X, Y, 0.1)


def test_what_stands_beside_arrays_of_a_device_is_told_to_go_there(strict):
    x, y = strict.asarray(X), strict.asarray(Y)
    with pytest.raises(TypeError, match="got list") as error:
        softmax_loss_vectorized([[0.0] * C] * D, x, y, 0)
    assert "gpuclf.to_device(numpy.asarray(W), like=" in str(error.value)
    W = gpuclf.to_device(np.asarray([[0.0] * C] * D), like=x)
    softmax_loss_vectorized(W, x, y, 0)


def test_plain_arrays_pass(lib):
    assert refuse_odd_arrays(lib.asarray(X), "X") is None
    assert refuse_odd_arrays([1, 2], "X") is None


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lazy", [False, True])
def test_samples_of_torch_are_taken_without_their_graph(model, lazy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    samples = torch.asarray(X).requires_grad_()
    y, weights = torch.asarray(Y), torch.ones(N, requires_grad=True)
    plain = model(**{} if model is KNeighborsClassifier else {"random_state": 0})
    given = samples
    if lazy and model is not KNeighborsClassifier:
        given = Standardized.fit(samples)
    weighted = () if model is KNeighborsClassifier else (weights,)
    plain.fit(given, y, *weighted)
    kept = getattr(plain, "params_", None) or {"X": plain._fit_X}
    assert not any(value.requires_grad for value in kept.values())
    answers = plain.predict_proba if hasattr(plain, "predict_proba") else plain.decision_function
    assert not answers(given).requires_grad
    assert samples.requires_grad  # the caller's stays as it was


def test_masked_labels_are_left_out_and_not_made_up():
    for y, left in (np.ma.masked_equal(Y, 2), [0, 1]), (np.ma.array(Y), [0, 1, 2]):
        with pytest.raises(TypeError, match="y is a masked array, whose mask") as error:
            SoftmaxClassifier().fit(X, y)
        names = {"X": X, "y": y, "numpy": np}
        exec(str(error.value).partition("hides: ")[2], names)
        assert SoftmaxClassifier().fit(names["X"], names["y"]).classes_.tolist() == left
    with pytest.raises(TypeError, match="classes is a masked array"):
        SoftmaxClassifier().partial_fit(X, Y, classes=np.ma.array([0, 1, 2]))


def of_pandas(values):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    return pd.DataFrame(values).astype(pd.SparseDtype(float, 0.0))


def of_polars(values):
    return pytest.importorskip("polars", reason="polars is not installed").DataFrame(values).lazy()


@pytest.mark.parametrize("make", [of_pandas, of_polars])
@pytest.mark.parametrize(
    "estimator", [SoftmaxClassifier(), FleetSearchCV(SoftmaxClassifier(), {"reg": [0.1]}, cv=2)]
)
def test_frames_without_plain_values_are_refused_and_the_remedy_works(make, estimator):
    values = make(X)
    with pytest.raises(TypeError, match=r"^X is a .* of (pandas|polars)") as error:
        estimator.fit(values, Y)
    remedy = re.search(r"X\.[a-z.]+_?\w*\(\)", str(error.value)).group()
    assert estimator.fit(follow(remedy, X=values), Y).n_features_in_ == D


class OnlyConverts:
    """What NumPy can convert, and nobody can index."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    def __len__(self):
        return len(self.values)


@pytest.mark.parametrize(
    "estimator",
    [
        SoftmaxClassifier(random_state=0),
        KNeighborsClassifier(),
        FleetSearchCV(SoftmaxClassifier(random_state=0), {"reg": [0.1, 1.0]}, cv=2),
    ],
)
def test_what_only_converts_to_an_array_is_converted(estimator):
    expected = estimator.fit(X, Y).predict(X)
    found = estimator.fit(OnlyConverts(X), Y).predict(OnlyConverts(X))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("nothing", [None, 3, {1, 2}, iter(X)])
def test_a_search_says_what_has_no_rows(nothing):
    with pytest.raises(TypeError, match="X must be an array or a list, got "):
        FleetSearchCV(SoftmaxClassifier(), {"reg": [0.1]}, cv=2).fit(nothing, Y)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("model", MODELS)
def test_labels_of_a_device_may_be_true_and_false(lib, model):
    seed = {} if model is KNeighborsClassifier else {"random_state": 0}
    expected = model(**seed).fit(X, Y > 0)
    found = model(**seed).fit(lib.asarray(X), lib.asarray(Y > 0))
    assert found.classes_.dtype == bool
    assert found.classes_.tolist() == [False, True]
    predicted = lib.to_numpy(found.predict(lib.asarray(X)))
    assert predicted.dtype == bool
    np.testing.assert_array_equal(predicted, expected.predict(X))


def test_labels_of_a_device_that_are_floats_are_refused_and_the_remedy_works():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    x, y = strict.asarray(X), strict.asarray(Y * 1.0)
    with pytest.raises(TypeError, match="must be integers, got array_api_strict") as error:
        SoftmaxClassifier().fit(x, y)
    remedy = str(error.value).partition("pass ")[2]
    SoftmaxClassifier().fit(x, follow(remedy, array_api_strict=strict, y=y))


def test_labels_in_a_list_beside_samples_of_torch_are_told_where_to_go():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.asarray(X)
    with pytest.raises(TypeError, match="for y, got list; the others are torch on cpu") as error:
        SoftmaxClassifier().fit(x, Y.tolist())
    assert "gpuclf.to_device(numpy.asarray(y), like=" in str(error.value)
    SoftmaxClassifier().fit(x, gpuclf.to_device(np.asarray(Y.tolist()), like=x))
