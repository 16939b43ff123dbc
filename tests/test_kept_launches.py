"""What a pass on a GPU keeps between calls: launches, constants and the arrays between kernels."""

import threading

import numpy as np
import pytest
import test_linear_pass_on_cupy as linear
import test_two_layer_pass_on_cupy as two_layer

from gpuclf.devices import cupy as cupy_device
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import Workspace


@pytest.fixture
def queue(monkeypatch):
    """Let arrays be on a device; return [device, stream], to be changed."""
    current = [0, 0]
    monkeypatch.setattr(cupy_device, "queue_of", lambda like: (*current, threading.get_ident()))
    monkeypatch.setattr(cuda_modules, "_workspaces", {})
    monkeypatch.setattr(two_layer.features_module, "ROWS_TO_FOLD", 0)
    return current


@pytest.fixture
def asked(monkeypatch):
    """Return what is asked for: arrays and kernels. Launches do nothing."""
    found = []
    empty = cuda_modules.empty

    def build(file, name, constants):
        found.append(name)
        return lambda *_: None

    def counted(*args, **kwargs):
        found.append("empty")
        return empty(*args, **kwargs)

    monkeypatch.setattr(cuda_modules, "build", build)
    monkeypatch.setattr(cuda_modules, "empty", counted)
    limits = cuda_modules.DeviceLimits(90, 132, 227 << 10)
    monkeypatch.setattr(cuda_modules, "device_limits", lambda x: limits)
    return found


def passes():
    return [
        (lambda: linear.run(linear.arguments()), 3),  # dW, db, the loss
        (lambda: linear.run(linear.arguments(), walk="once"), 3),
        (lambda: two_layer.run(two_layer.arguments()), 5),
    ]


@pytest.mark.parametrize(("call", "n_results"), passes(), ids=["twice", "once", "net"])
def test_a_call_of_known_sizes_makes_its_results_and_looks_nothing_up(
    queue, asked, call, n_results
):
    call()
    asked.clear()
    call()
    assert asked == ["empty"] * n_results


@pytest.mark.parametrize("change", [(1, 0), (0, 1)], ids=["device", "stream"])
def test_calls_that_may_run_at_the_same_time_have_arrays_of_their_own(queue, change):
    workspace = Workspace((4, "float32"), (2, 3, "float64"))
    first = workspace.beside(np.zeros(1))
    assert workspace.beside(np.zeros(1)) is first
    queue[:] = change
    other = workspace.beside(np.zeros(1))
    assert not any(np.shares_memory(a, b) for a, b in zip(first, other, strict=True))
    queue[:] = 0, 0
    assert workspace.beside(np.zeros(1)) is first
    found = []
    thread = threading.Thread(target=lambda: found.append(workspace.beside(np.zeros(1))))
    thread.start()
    thread.join()
    assert found[0] is not first
    assert Workspace((4, "float32")).beside(np.zeros(1)) is not first


def test_where_streams_are_not_known_nothing_is_kept():
    workspace = Workspace((4, "float32"))
    assert workspace.beside(np.zeros(1)) is not workspace.beside(np.zeros(1))


def test_what_was_not_used_for_longest_is_given_back(queue, monkeypatch):
    monkeypatch.setattr(cuda_modules, "KEPT_BYTES", 100)
    spaces = [Workspace((n, "float32")) for n in (10, 10, 11, 100)]
    first, second = (space.beside(np.zeros(1)) for space in spaces[:2])
    assert spaces[0].beside(np.zeros(1)) is first  # used again: 80 bytes are kept
    third = spaces[2].beside(np.zeros(1))
    assert spaces[2].beside(np.zeros(1)) is third
    assert spaces[0].beside(np.zeros(1)) is first
    assert spaces[1].beside(np.zeros(1)) is not second
    large = spaces[3].beside(np.zeros(1))
    assert spaces[3].beside(np.zeros(1)) is not large


@pytest.mark.parametrize(("pass_", "arguments"), [(linear.run, linear.arguments)])
def test_kept_arrays_change_no_bits(queue, cuda_on_cpu, pass_, arguments):
    others = arguments(200, 96, seed=1), arguments(200, 96)
    fresh = []
    for given in others:
        cuda_modules._workspaces.clear()
        fresh.append([np.array(x) for x in pass_(given)])
    for _ in range(2):
        for given, expected in zip(others, fresh, strict=True):
            for ours, theirs in zip(pass_(given), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_the_stream_of_a_cupy_array_is_that_of_its_device(monkeypatch):
    class Array:
        device = type("Device", (), {"id": 3})

    streams = {3: type("Stream", (), {"ptr": 99})}
    cupy = type("cupy", (), {"cuda": type("cuda", (), {"get_current_stream": streams.get})})
    monkeypatch.setitem(cupy_device.sys.modules, "cupy", cupy)
    monkeypatch.setattr(cupy_device, "library_name", lambda x: "cupy")
    assert cupy_device.queue_of(Array()) == (3, 99, threading.get_ident())
