"""Classifiers to save, what compares them, and ways to damage their files."""

import copy
import json
import struct
import warnings

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import gpuclf
from gpuclf.saving import container

N, D, C = 90, 12, 3
SMALL = {"max_iter": 3, "batch_size": 20, "random_state": 0}
KINDS = {
    "softmax": lambda: gpuclf.SoftmaxClassifier(**SMALL, n_iter_no_change=5),
    "softmax-lbfgs": lambda: gpuclf.SoftmaxClassifier(solver="lbfgs", max_iter=200, tol=1e-3),
    "svm": lambda: gpuclf.LinearSVMClassifier(**SMALL, standardize=False),
    "two-layer": lambda: gpuclf.TwoLayerNetClassifier(**SMALL, hidden_size=8, dropout=0.2),
    "neighbors": lambda: gpuclf.KNeighborsClassifier(3, metric="l1"),
    "soft-ensemble": lambda: gpuclf.FleetEnsemble(
        gpuclf.TwoLayerNetClassifier(**SMALL, hidden_size=8),
        [{"random_state": np.int64(seed), "augment": None} for seed in range(3)],
    ),
    "hard-ensemble": lambda: gpuclf.FleetEnsemble(
        gpuclf.LinearSVMClassifier(**SMALL), ({"reg": 0.1}, {"reg": 0.01}), voting="hard"
    ),
}
LABELS = {
    "str": np.array(["Zebra", "ant", "Übung \u4e00"]),
    "object": np.array(["cat", "a much longer name", ""], dtype=object),
    "int64": np.array([-5, 3, 1 << 40]),
    "uint8": np.array([0, 7, 255], dtype=np.uint8),
    "float": np.array([1.0, 2.0, 5.0]),
    "bool": np.array([False, True]),
}


def make_data(labels=LABELS["int64"], dtype=np.float64, seed=0, n=N):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % len(labels)
    X = rng.standard_normal((n, D)) + 2 * np.eye(len(labels), D)[y]
    X = np.clip(128 + 30 * X, 0, 255) if dtype == np.uint8 else X
    return X.astype(dtype), labels[y]


def fitted(kind="softmax", **data):
    return KINDS[kind]().fit(*make_data(**data))


def round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    return gpuclf.load(path)


def assert_same(found, expected, where="model"):
    """Compare types, values and, of arrays, dtype and order in memory, all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        assert found.flags.f_contiguous == expected.flags.f_contiguous, where
        np.testing.assert_array_equal(found, expected, err_msg=where)
    elif isinstance(expected, dict):
        assert [*found] == [*expected], where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for n, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{n}]")
    elif isinstance(expected, np.random.Generator):
        assert_same(found.bit_generator.state, expected.bit_generator.state, where)
    elif isinstance(expected, np.random.RandomState):
        assert_same(found.get_state(legacy=False), expected.get_state(legacy=False), where)
    elif hasattr(expected, "__dict__") and not callable(expected):
        theirs = vars(expected)
        assert vars(found).keys() == theirs.keys(), where
        for key, value in theirs.items():
            assert_same(vars(found)[key], value, f"{where}.{key}")
    else:
        assert found == expected, where


# damage


def header_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, rest):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def forged(data, change):
    """Return a file with its content changed and a fitting digest, as a forger makes it."""
    own = json.loads(header_of(data)[0]["__metadata__"]["gpuclf"])
    arrays = load_tensors(data)
    own.pop("sha256")
    own = change(own, arrays) or own
    own["sha256"] = container._digest(own, arrays)
    return save_tensors(arrays, {"gpuclf": container._json(own)})


def flipped(data, rng):
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(data, rng):
    return data[: rng.integers(len(data))]


def cut_within(data, rng):
    first, last = sorted(rng.integers(len(data), size=2))
    return data[:first] + data[last + 1 :]


def flipped_at_the_start(data, rng):
    return flipped(data[:400], rng) + data[400:]


ODD = [
    *(None, True, -1, 0, 1 << 70, 1e308, "", "x" * 1000, [], {}, [[]], [0, -1], [1 << 62, 1 << 62]),
    *({"is": "array", "name": "params_.W", "order": "C"}, {"is": "array"}, {"is": ""}, {"is": []}),
    *({"is": "floats", "name": "history_.loss"}, {"is": "finish"}, {"is": "float", "text": "1e9"}),
    *({"is": "function", "function": "os.system"}, {"is": "tuple", "items": 3}, {"is": "dict"}),
    {"is": "scalar", "type": "int8", "value": 300},
    {"is": "scalar", "type": "float64", "value": {"is": "array", "name": "params_.b"}},
    {"is": "labels", "type": "str", "shape": [2], "items": ["a"]},
    {"is": "labels", "type": "str", "shape": [1 << 40], "items": ["a"]},
    {"is": "estimator", "class": "os", "params": {}, "fitted": {}},
    {"is": "estimator", "class": "SoftmaxClassifier", "params": {}, "fitted": {}},
    {"is": "history", "items": {"loss": [1, "a"]}},
    {"is": "generator", "name": "_rng", "state": {"is": "dict", "items": {}}},
    {"is": "partial", "function": {"function": "augment.draw_flips"}, "args": [1], "keywords": []},
]


def with_one_odd_value(tree, rng):
    """Replace, remove or rename one place anywhere in a tree of JSON."""
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = places[rng.integers(len(places))]
    choice = rng.integers(6)
    if choice == 0:
        del node[key]
    elif choice == 1 and isinstance(node, dict):
        node[str(ODD[rng.integers(len(ODD))])] = node.pop(key)
    else:
        node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return tree


def odd_outer_header(data, rng):
    header, rest = header_of(data)
    return with_header(with_one_odd_value(header, rng), rest)


def odd_content(data, rng):
    def change(own, arrays):
        with_one_odd_value(own, rng)

    return forged(data, change)


def odd_arrays(data, rng):
    def change(own, arrays):
        name = [*arrays][rng.integers(len(arrays))]
        array = arrays[name]
        choices = (
            lambda: array.reshape(-1).copy(),
            lambda: array[..., None].copy(),
            lambda: array[:0].copy(),
            lambda: np.full_like(array, -1 if array.dtype.kind != "u" else 255),
            lambda: np.full(array.shape, np.nan),
            lambda: np.full(array.shape, np.inf, dtype=np.float32),
            lambda: np.zeros(array.shape, dtype=bool),
            lambda: array.astype(np.float16),
            lambda: array.astype(np.int8),
            lambda: np.ascontiguousarray(array.T),
        )
        with warnings.catch_warnings(action="ignore"):
            arrays[name] = choices[rng.integers(len(choices))]()

    return forged(data, change)


DAMAGES = {
    f.__name__: f
    for f in (
        flipped,
        cut,
        cut_within,
        flipped_at_the_start,
        odd_outer_header,
        odd_content,
        odd_arrays,
    )
}
