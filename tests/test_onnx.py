import json
import subprocess
import sys

import numpy as np
import pytest

import gpuclf

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RNG = np.random.default_rng(0)
Y = np.arange(120) % 4
X = np.clip(RNG.integers(60, 120, (120, 12)) + 60 * np.eye(4, 12)[Y], 0, 255).astype(np.uint8)
NAMES = np.array(["ant", "bee", "Käfer", "dog"])
ONCE = {"max_iter": 3, "batch_size": 20, "random_state": 0}
KINDS = {
    "softmax": lambda **more: gpuclf.SoftmaxClassifier(**ONCE | more),
    "svm": lambda **more: gpuclf.LinearSVMClassifier(**ONCE | more),
    "net": lambda **more: gpuclf.TwoLayerNetClassifier(**ONCE | more, hidden_size=9),
    "ensemble": lambda **more: gpuclf.FleetEnsemble(
        gpuclf.TwoLayerNetClassifier(**ONCE | more, hidden_size=5),
        [{"random_state": seed} for seed in range(3)],
    ),
}


def run(path, X):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"X": X}), strict=True))


def expected_values(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.class_scores(X)


@pytest.mark.essential_cases(10)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [NAMES, np.array([-3, 0, 7, 1 << 40])], ids=["text", "numbers"])
@pytest.mark.parametrize("settings", [{}, {"precision": "float64"}, {"standardize": False}])
def test_labels_and_probabilities_are_the_library_s(tmp_path, kind, labels, settings):
    if settings.get("standardize") is False:
        settings = settings | {"learning_rate": 1e-6}
    model = KINDS[kind](**settings).fit(X, labels[Y])
    model.to_onnx(tmp_path / "m.onnx")
    found = run(tmp_path / "m.onnx", X)
    assert found["label"].tolist() == model.predict(X).tolist()
    values = found["scores" if kind == "svm" else "probabilities"]
    np.testing.assert_allclose(values, expected_values(model, X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_numbers_go_in(tmp_path, dtype):
    samples = X.astype(dtype) / 255
    model = KINDS["net"]().fit(samples, Y > 1)
    model.to_onnx(tmp_path / "m.onnx", input_dtype=np.dtype(dtype).name)
    found = run(tmp_path / "m.onnx", samples[:7])
    np.testing.assert_array_equal(found["label"], model.predict(samples[:7]))
    assert found["label"].dtype == np.bool_
    np.testing.assert_allclose(
        found["probabilities"], model.predict_proba(samples[:7]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_go_in(tmp_path, layout):
    model = KINDS["softmax"]().fit(X, Y)
    with pytest.raises(ValueError, match=r"set model\.image_shape_ = "):
        model.to_onnx(tmp_path / "m.onnx", layout=layout)
    model.image_shape_ = (3, 2, 2)
    model.class_names_ = NAMES.tolist()
    model.to_onnx(tmp_path / "m.onnx", layout=layout)
    images = X.reshape(-1, 3, 2, 2)
    images = images if layout == "NCHW" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", images)["label"], model.predict(X))
    props = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(props["class_names"]) == NAMES.tolist()


def test_what_is_no_graph_is_refused_by_name(tmp_path):
    neighbours = gpuclf.KNeighborsClassifier().fit(X, Y)
    with pytest.raises(TypeError, match="KNeighborsClassifier cannot be written as an ONNX graph"):
        neighbours.to_onnx(tmp_path / "m.onnx")
    svm = gpuclf.LinearSVMClassifier(**ONCE)
    votes = gpuclf.FleetEnsemble(svm, [{"reg": 0.1}, {"reg": 0.2}]).fit(X, Y)
    with pytest.raises(TypeError, match="a hard vote has no ONNX form"):
        votes.to_onnx(tmp_path / "m.onnx")
    votes.estimators_[0].to_onnx(tmp_path / "m.onnx")  # the remedy
    model = KINDS["softmax"]().fit(X, Y)
    with pytest.raises(ValueError, match="input_dtype must be one of 'uint8', 'float32'"):
        model.to_onnx(tmp_path / "m.onnx", input_dtype="int4")
    with pytest.raises(ValueError, match="layout must be 'NCHW', 'NHWC' or None, got 'HW'"):
        model.to_onnx(tmp_path / "m.onnx", layout="HW")


@pytest.mark.slow
def test_without_onnx_the_remedy_is_named():
    code = """
import sys
sys.modules["onnx"] = None
import numpy as np, gpuclf
model = gpuclf.SoftmaxClassifier(max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
try:
    model.to_onnx("m.onnx")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install onnx" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["softmax", "svm", "net"])
def test_on_1000_real_images(tmp_path, kind):
    data = gpuclf.datasets.load_cifar10(download=False)
    model = KINDS[kind](batch_size=200).fit(data.X_train[:10_000], data.y_train[:10_000])
    model.to_onnx(tmp_path / "m.onnx")
    images = data.X_test[:1000]
    found = run(tmp_path / "m.onnx", images)
    np.testing.assert_array_equal(found["label"], model.predict(images))
    values = found["scores" if kind == "svm" else "probabilities"]
    np.testing.assert_allclose(values, expected_values(model, images), rtol=0, atol=1e-5)
