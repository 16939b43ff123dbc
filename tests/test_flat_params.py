import numpy as np
import pytest

from gpuclf.flat_params import flatten_params, unflatten_params

PARAMS = {"W": np.arange(6.0).reshape(2, 3), "b": np.array([7.0, 8.0]), "scale": np.array(9.0)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_flattened_comes_back_where_it_was(lib, dtype):
    given = {name: lib.asarray(value.astype(dtype)) for name, value in PARAMS.items()}
    flat = flatten_params(given)
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 5, 7, 8, 9])
    assert flat.dtype == np.float64
    for name, value in unflatten_params(flat, given).items():
        assert type(value) is type(given[name])
        assert value.dtype == given[name].dtype
        np.testing.assert_array_equal(lib.to_numpy(value), PARAMS[name])


def test_leading_axes_stay_in_front_and_the_dtype_can_be_chosen(lib):
    given = {name: lib.asarray(value) for name, value in PARAMS.items()}
    flat = np.arange(36.0).reshape(2, 2, 9)
    found = unflatten_params(flat, given, np.float32)
    assert {name: tuple(v.shape) for name, v in found.items()} == {
        "W": (2, 2, 2, 3),
        "b": (2, 2, 2),
        "scale": (2, 2),
    }
    assert found["W"].dtype == lib.xp.float32
    np.testing.assert_array_equal(lib.to_numpy(found["W"])[1, 0], [[18, 19, 20], [21, 22, 23]])
    np.testing.assert_array_equal(lib.to_numpy(found["scale"]), [[8, 17], [26, 35]])


def test_the_parts_may_be_changed_without_changing_the_whole():
    flat = flatten_params(PARAMS)
    unflatten_params(flat, PARAMS)["W"][:] = -1
    np.testing.assert_array_equal(flat, flatten_params(PARAMS))
