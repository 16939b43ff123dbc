"""What a call on a GPU keeps for the next: launches, constants, checks, arrays between kernels."""

import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import test_linear_pass_on_cupy as linear
import test_two_layer_pass_on_cupy as two_layer

from gpuclf import Standardized, softmax_loss_vectorized, svm_loss_vectorized, two_layer_loss
from gpuclf.devices import cupy as cupy_device
from gpuclf.dispatch import REPEATED
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building import plans
from gpuclf.kernels.building.plans import Workspace
from gpuclf.kernels.epochs.two_layer_on_gpu import two_layer_epochs
from gpuclf.kernels.linear_pass.on_gpu import linear_objective_on_tensor_cores
from gpuclf.kernels.losses.on_gpu import fused_softmax_cross_entropy
from gpuclf.kernels.two_layer_pass.on_gpu import two_layer_pass_on_tensor_cores
from gpuclf.models import SOFTMAX, TWO_LAYER, LinearModel
from gpuclf.models import model as model_module
from gpuclf.models.linear import penalized_linear_pass
from gpuclf.models.two_layer import two_layer_pass
from gpuclf.samples import walk

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the benchmarks are not installed

from benchmarks import host_cost


@pytest.fixture
def queue(monkeypatch):
    """Let arrays be on a device; return [device, stream], to be changed."""
    current = [0, 0]
    monkeypatch.setattr(
        cupy_device, "queue_of", lambda like: ((*current, threading.get_ident()), None)
    )
    monkeypatch.setattr(plans, "_workspaces", {})
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
        (lambda: linear.run(linear.arguments(), walks=("once",)), 3),
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
    monkeypatch.setattr(plans, "KEPT_BYTES", 100)
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
        plans._workspaces.clear()
        fresh.append([np.array(x) for x in pass_(given)])
    for _ in range(2):
        for given, expected in zip(others, fresh, strict=True):
            for ours, theirs in zip(pass_(given), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_the_stream_of_a_cupy_array_is_that_of_its_device(monkeypatch):
    class Array:
        data = type("MemoryPointer", (), {"device_id": 3})

    streams = {3: type("Stream", (), {"ptr": 99})}
    cupy = type("cupy", (), {"cuda": type("cuda", (), {"get_current_stream": streams.get})})
    monkeypatch.setitem(cupy_device.sys.modules, "cupy", cupy)
    monkeypatch.setattr(cupy_device, "library_name", lambda x: "cupy")
    name = 3, 99, threading.get_ident()
    assert cupy_device.queue_of(Array()) == (name, streams[3])


def test_a_stream_lives_as_long_as_its_workspace(gpus, calls):
    streams = [gpus.module.cuda.Stream()]
    gpus.module.cuda.get_current_stream = lambda number=None: streams[0]
    calls["softmax"](*arrays_on(gpus))
    known = weakref.ref(streams.pop())
    assert known() is not None
    plans._workspaces.clear()
    assert known() is None


# ------------------------------------------------------ whole calls, on two pretended GPUs

N, D = 400, 96
SHAPES = {"W": (D, 10), "b": (10,), "W1": (D, 20), "b1": (20,), "W2": (20, 5), "b2": (5,)}


def arrays_on(gpus, number=0):
    """Return X, y and parameters on a device; all are 0, and so is what is found."""
    X, y = gpus.array(number, (N, D)), gpus.array(number, (N,), "int64")
    return X, y, {name: gpus.array(number, shape, "float32") for name, shape in SHAPES.items()}


@pytest.fixture
def calls(gpus, monkeypatch):
    """Return the losses of arrays on a pretended GPU, by name."""
    monkeypatch.setitem(penalized_linear_pass.kernels, "numpy", (linear_objective_on_tensor_cores,))
    monkeypatch.setitem(two_layer_pass.kernels, "numpy", (two_layer_pass_on_tensor_cores,))
    monkeypatch.setattr(two_layer.features_module, "ROWS_TO_FOLD", 0)

    def net(X, y, p, reg=0.1):
        return two_layer_loss({name: p[name] for name in TWO_LAYER.axes}, X, y, reg)

    return {
        "softmax": lambda X, y, p, reg=0.1: softmax_loss_vectorized(p["W"], X, y, reg),
        "svm": lambda X, y, p, reg=0.1: svm_loss_vectorized(p["W"], X, y, reg),
        "with bias": lambda X, y, p, reg=0.1: SOFTMAX.loss({k: p[k] for k in "Wb"}, X, y, reg),
        "net": net,
    }


def launched(gpus, call, *args):
    """Return what a call launches, with the addresses of what was there before and the numbers."""
    gpus.launches.clear()
    call(*args)
    given = {x.ctypes.data for x in (args[0], args[1], *args[2].values())}
    return [
        (name, [p if not isinstance(p, np.ndarray) or p.ndim == 0 else p.ctypes.data
                for p in arguments
                if not isinstance(p, np.ndarray) or p.ndim == 0 or p.ctypes.data in given])
        for name, arguments in gpus.launches
    ]  # fmt: skip


@pytest.fixture
def checks(monkeypatch):
    """Count the checks that calls make."""
    made = []
    for name in ("check_params", "check_labels"):
        check = getattr(model_module, name)
        monkeypatch.setattr(
            model_module, name, lambda *args, check=check: made.append(0) or check(*args)
        )
    return made


@pytest.mark.parametrize("name", ["softmax", "svm", "with bias", "net"])
def test_a_whole_call_of_known_sizes_is_launched_without_a_question(gpus, calls, checks, name):
    given = arrays_on(gpus)
    first = launched(gpus, calls[name], *given)
    assert first
    assert len(checks) == 2
    assert launched(gpus, calls[name], *given) == first
    # Other arrays of these sizes and types, other values of the penalty.
    others = arrays_on(gpus)
    assert [name for name, _ in launched(gpus, calls[name], *others, 0.3)] == [n for n, _ in first]
    assert any(
        np.float64(0.3) in arguments for _, arguments in launched(gpus, calls[name], *others, 0.3)
    )
    assert len(checks) == 2
    with pytest.raises(ValueError, match="reg must be"):
        calls[name](*given, -1.0)


@pytest.mark.parametrize(("name", "most"), [("softmax", 30), ("net", 40)])
def test_a_known_call_is_a_few_functions_long(gpus, calls, name, most):
    given, made = arrays_on(gpus), []
    calls[name](*given)

    def watch(frame, event, _):
        if event == "call" and f"{os.sep}gpuclf{os.sep}" in frame.f_code.co_filename:
            made.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        calls[name](*given)
    finally:
        sys.setprofile(None)
    assert len(made) <= most, made


def test_results_are_new_and_have_the_keys_of_the_parameters(gpus, calls):
    X, y, p = arrays_on(gpus)
    for name, keys in (("with bias", "Wb"), ("net", TWO_LAYER.axes)):
        results = [calls[name](X, y, p) for _ in range(3)]
        for loss, grads in results:
            assert loss.shape == ()
            assert {k: g.shape for k, g in grads.items()} == {k: SHAPES[k] for k in keys}
        assert len({id(g.base) for _, grads in results for g in grads.values()}) == 3 * len(keys)
    loss, dW = calls["softmax"](X, y, p)
    assert (loss.dtype, dW.dtype, dW.device.id) == (np.float64, np.float32, 0)


def changed(gpus, change):
    """Return X, y and parameters of a call that is not like the one before."""
    X, y, p = arrays_on(gpus)
    if change == "labels of another type":
        y = gpus.array(0, (N,), "uint64")
    elif change == "labels with steps":
        y = gpus.array(0, (2 * N,), "int64")[::2]
    elif change == "another number of rows":
        X, y = gpus.array(0, (N - 1, D)), gpus.array(0, (N - 1,), "int64")
    elif change == "another address":
        X = gpus.array(0, (N * D + 8,))[8:].reshape(N, D)
    elif change == "standardised":
        X = object.__new__(Standardized)
        X.X, _, _ = arrays_on(gpus)
        X.mean, X.scale = (gpus.array(0, (D,), "float64") for _ in range(2))
    elif change == "another device":
        X, y, p = arrays_on(gpus, 1)
    return X, y, p


CHANGES = ["labels of another type", "labels with steps", "another number of rows"]
CHANGES += ["another address", "standardised", "another device"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_is_checked_and_planned_anew(gpus, calls, checks, change):
    before, given = arrays_on(gpus), changed(gpus, change)
    for name in ("softmax", "net"):
        calls[name](*before)
        checks.clear()
        calls[name](*given)
        assert len(checks) == 2
        assert all({x.device.id for x in arguments if isinstance(x, gpus.module.ndarray)}
                   == {given[1].device.id} for _, arguments in gpus.launches[-3:])  # fmt: skip
        calls[name](*given)
        calls[name](*before)
        assert len(checks) == 2
        gpus.launches.clear()


def test_what_is_wrong_is_told_as_if_nothing_were_kept(gpus, calls):
    X, y, p = arrays_on(gpus)
    for name in ("softmax", "with bias", "net"):
        calls[name](X, y, p)
    float64 = gpus.array(0, (N,), "float64")
    wrong = [
        (lambda: softmax_loss_vectorized(p["W"][:-1], X, y, 0.1), ValueError, "W must have shape"),
        (lambda: softmax_loss_vectorized(p["W"], X, float64, 0.1), TypeError, "must be integers"),
        (lambda: softmax_loss_vectorized(p["W"], X, y, -1.0), ValueError, "reg must be"),
        (lambda: SOFTMAX.loss({"W": p["W"], "b": None}, X, y, 0.1), TypeError, "array for b"),
        (lambda: SOFTMAX.loss([p["W"]], X, y, 0.1), TypeError, "must be a dict"),
        (lambda: two_layer_loss({"W1": p["W1"]}, X, y, 0.1), ValueError, "missing: b1, W2, b2"),
        (lambda: softmax_loss_vectorized(p["W"], X, y, 0.1, precision="fp8"), ValueError, "fp8"),
    ]
    for _ in range(2):
        for call, error, message in wrong:
            with pytest.raises(error, match=message):
                call()


def test_an_unchecked_call_of_wrong_sizes_plans_nothing(gpus, calls):
    X, y, p = arrays_on(gpus)
    floats = gpus.array(0, (N,), "float64")
    for given, labels in (
        ({"W": p["W"][:-1]}, y), ({"W": p["W"], "b": p["b"][:-1]}, y), ({"W": p["W"]}, floats)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Device"):  # of the shared body: it was declined
            SOFTMAX.objective(given, X, labels, 0.1)
    assert not plans._plans


def test_a_model_of_ones_own_is_not_taken_for_its_base(gpus, calls):
    class Doubled(LinearModel):
        def objective(self, *args, **kwargs):
            loss, grads = super().objective(*args, **kwargs)
            return loss + 1, grads

    X, y, p = arrays_on(gpus)
    model = Doubled("doubled", SOFTMAX.data_loss)
    assert [float(m.loss({"W": p["W"]}, X, y, 0.1)[0]) for m in (SOFTMAX, model, model)] == [
        0,
        1,
        1,
    ]
    assert Doubled not in REPEATED


def test_each_stream_has_arrays_of_its_own_between_the_launches(gpus, calls):
    given, between = arrays_on(gpus), []
    for gpus.stream in ("compute", "other", "compute"):
        gpus.launches.clear()
        calls["softmax"](*given)
        between.append(gpus.launches[0][1][3].ctypes.data)  # what pack_digits writes
    assert between[0] == between[2] != between[1]


def test_two_threads_at_once_get_what_each_would_alone(gpus, calls):
    given, found, met = arrays_on(gpus), {}, threading.Barrier(2)
    calls["softmax"](*given)

    def run(name):
        met.wait()
        for _ in range(50):
            with gpus.module.cuda.Device(0):
                found.setdefault(name, []).append(calls["softmax"](*given)[1].shape)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    gpus.note = lambda *_: None  # one list of devices for both
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert {name: len(shapes) for name, shapes in found.items()} == {"a": 50, "b": 50}


@pytest.mark.parametrize("what", ["results", "an array", "a copy", "a block"])
def test_where_memory_runs_out_workspaces_are_given_back_first(gpus, calls, monkeypatch, what):
    given = arrays_on(gpus)
    calls["softmax"](*given)
    assert plans._workspaces
    gpus.free_bytes = lambda: 0 if plans._workspaces else 1 << 40
    if what == "results":
        calls["softmax"](*given)
        assert len(plans._workspaces) == 0  # the one that was given back is in use no more
    elif what == "an array":
        cuda_modules.empty(given[0], 3)
    elif what == "a copy":
        cupy_device.CupyTransfers(given[0].device).empty((3,), "uint8")
    else:

        def work(rows):
            gpus.module.empty((rows,), "uint8")
            return rows

        assert walk.until_it_fits(work, 64) == 32
    assert not plans._workspaces


def test_memory_that_is_not_there_is_still_an_error(gpus, calls):
    given = arrays_on(gpus)
    gpus.free_bytes = lambda: 0
    with pytest.raises(MemoryError):
        calls["softmax"](*given)


def test_plans_are_bounded(gpus, calls, monkeypatch):
    monkeypatch.setattr(plans, "KEPT_PLANS", 3)
    _, _, p = arrays_on(gpus)
    for n in range(200, 210):
        calls["softmax"](gpus.array(0, (n, D)), gpus.array(0, (n,), "int64"), p)
        assert 1 <= len(plans._plans) <= 3


def test_losses_of_scores_are_planned_too(gpus, monkeypatch):
    scores, labels = gpus.array(1, (30, 10), "float32"), gpus.array(1, (30,), "int64")
    with gpus.module.cuda.Device(1):
        fused_softmax_cross_entropy(scores, labels)
    monkeypatch.setattr(plans, "signature", plans.signature)
    from gpuclf.kernels.losses import on_gpu

    monkeypatch.setattr(on_gpu, "_plan", pytest.fail)
    fused_softmax_cross_entropy(scores, labels)  # device 0 is current
    assert [name for name, _ in gpus.launches] == ["softmax_cross_entropy", "add_partials"] * 2


def test_the_launches_of_an_epoch_are_planned_once(gpus, monkeypatch):
    X, y, p = arrays_on(gpus, 1)
    params = {name: p[name] for name in TWO_LAYER.axes}
    velocity = {name: gpus.array(1, SHAPES[name], "float32") for name in TWO_LAYER.axes}
    options = {"batch_size": 100, "reg": 0.1, "momentum": 0.9, "nesterov": True}
    with gpus.module.cuda.Device(1):  # as where epoch_runner is replaced
        epoch = two_layer_epochs(TWO_LAYER, params, velocity, X, y, **options)
    epoch(np.arange(N), [0.1] * 4)
    first = list(gpus.launches)
    assert len(first) == 3 * 4 + 1
    monkeypatch.setattr(cuda_modules, "typed", pytest.fail)
    monkeypatch.setattr(cuda_modules, "kept_launch", pytest.fail)
    monkeypatch.setattr(cuda_modules, "recorded", lambda *_: None)
    gpus.launches.clear()
    epoch(np.arange(N), [0.1] * 4)
    assert all(a[0] == b[0] and all(map(lambda x, y: x is y, a[1], b[1]))
               for a, b in zip(first, gpus.launches, strict=True))  # fmt: skip


@pytest.mark.slow
def test_the_hosts_share_is_measured_with_arrays_of_cupys_own(monkeypatch, capsys):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    for name, value in {"TURNS": 1, "CALLS": 1, "N": 2000}.items():
        monkeypatch.setattr(host_cost, name, value)
    host_cost.main()
    assert len(capsys.readouterr().out.splitlines()) == 6
