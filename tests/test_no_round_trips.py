"""Nothing on a device is looked at in passing: looks and uploads are counted, and are few.

`lib` runs every test of a shared function on arrays that cannot be looked at (opaque_arrays.py);
here is how often the values cross, which must depend on the epochs, never on the steps.
"""

import numpy as np
import opaque_arrays
import pytest
from test_estimators import KINDS, SGD_KINDS, make_data, make_pixels

from gpuclf import KNeighborsClassifier, arrays

SOURCES = {"floats": make_data, "pixels": make_pixels}


def on_device(values):
    return opaque_arrays.asarray(values, device=opaque_arrays.DEVICE)


@pytest.fixture
def downloads(monkeypatch):
    """Shapes of what goes through to_host, the one way out."""
    shapes, array_to_host = [], arrays._array_to_host

    def recorded(array):
        if isinstance(array, opaque_arrays.OpaqueArray):
            shapes.append(array.shape)
        return array_to_host(array)

    monkeypatch.setattr(arrays, "_array_to_host", recorded)
    return shapes


def crossings(run):
    with opaque_arrays.counted() as counts:
        run()
        return dict(counts)


def fit(kind, X, y, **options):
    return lambda: KINDS[kind](**options).fit(X, y)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_what_fit_moves_does_not_depend_on_the_steps(kind, source):
    X, y = map(on_device, SOURCES[source]())
    few, many = (crossings(fit(kind, X, y, batch_size=n)) for n in (45, 2))
    assert few == many
    assert few["to host"] > 0  # or nothing was counted


@pytest.mark.parametrize("kind", SGD_KINDS)
def test_an_epoch_takes_one_upload_and_one_look(kind, downloads):
    X, y = map(on_device, make_pixels())
    counts = [crossings(fit(kind, X, y, max_iter=epochs)) for epochs in (3, 7)]
    assert counts[1]["to host"] - counts[0]["to host"] == 4
    assert counts[1]["to device"] - counts[0]["to device"] == 4
    assert counts[1]["bytes to device"] - counts[0]["bytes to device"] == 4 * 8 * y.size
    assert counts[0]["data-dependent shapes"] == counts[1]["data-dependent shapes"] == 1  # classes
    steps_an_epoch = -(-y.size // 20)
    *losses, finite = downloads[-8:]
    assert losses == [(steps_an_epoch,)] * 7
    assert finite in ((2,), (4,))  # at the end, whether each parameter is
    assert len(downloads) == sum(count["to host"] for count in counts)


@pytest.mark.parametrize("kind", SGD_KINDS)
def test_validation_takes_two_more_looks_an_epoch(kind):
    X, y = map(on_device, make_data())

    def run(epochs):
        return lambda: KINDS[kind](max_iter=epochs).fit(X, y, X_val=X, y_val=y)

    few, many = crossings(run(2)), crossings(run(3))
    assert many["to host"] - few["to host"] == 1 + 2  # losses; the shares of both parts


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_looks_at_nothing(kind):
    X, y = map(on_device, make_pixels())
    classifier = KINDS[kind]().fit(X, y)
    for method in ("predict", "decision_function"):
        counts = crossings(lambda method=method: getattr(classifier, method)(X))
        assert counts.get("to host", 0) == counts.get("data-dependent shapes", 0) == 0
        assert counts["bytes to device"] < 3 * X.shape[1] * 8  # mean, scale, labels


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_neighbours_of_bytes_are_found_without_a_look(metric):
    X, y = map(on_device, make_pixels())
    classifier = KNeighborsClassifier(metric=metric).fit(X, y)
    counts = crossings(lambda: classifier.predict(X))
    assert counts.get("to host", 0) == counts.get("data-dependent shapes", 0) == 0


def test_looks_for_neighbours_of_floats_do_not_depend_on_the_queries():
    # Whether rounding could hide a neighbour, and which queries that concerns: once a tile.
    X, y = make_data(n=400)
    classifier = KNeighborsClassifier().fit(on_device(X), on_device(y))
    few, many = (crossings(lambda n=n: classifier.predict(on_device(X[:n]))) for n in (40, 400))
    assert few["to host"] == many["to host"] <= 2
    assert few["data-dependent shapes"] == many["data-dependent shapes"] == 1


def test_the_batches_are_those_of_numpy():
    X, y = make_pixels()
    for kind in SGD_KINDS:
        here = KINDS[kind](batch_size=7).fit(X, y)
        there = KINDS[kind](batch_size=7).fit(on_device(X), on_device(y))
        np.testing.assert_allclose(there.loss_history_, here.loss_history_, rtol=1e-5)


@pytest.mark.parametrize("look", [bool, float, int, list, np.asarray, lambda x: [1, 2][x]])
def test_opaque_arrays_refuse_to_be_looked_at(look):
    with pytest.raises(TypeError, match="looks at a value"):
        look(on_device(np.array(1)))


def test_opaque_arrays_refuse_masks_and_numpy_arrays():
    x = on_device(np.arange(3.0))
    with pytest.raises(TypeError, match="indexing by OpaqueArray"):
        x[x > 1]
    with pytest.raises(TypeError, match=r"NumPy array|unsupported operand"):
        x + np.arange(3.0)
