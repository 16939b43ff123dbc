"""Whole epochs by kernels on the CPU, beside the shared loop, and recorded ones."""

from functools import partial

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, hidden

from gpuclf.arrays import to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.layers import apart, side_by_side
from gpuclf.samples.standardized import Standardized
from gpuclf.training import epoch_runner


def copied(arrays, dtype=np.float32):
    return {name: value.astype(dtype) for name, value in arrays.items()}


def hidden_from_wrapper(given):
    """Return views of the same arrays, whose values only kernels see."""
    X = given["X"]
    X = X.map_arrays(hidden) if isinstance(X, Standardized) else hidden(X)
    return {"y": hidden(given["y"]), "X": X} | {
        name: {key: hidden(value) for key, value in given[name].items()}
        for name in ("params", "velocity")
    }


def train(runner, given, options, epochs=1, dtype=np.float32, rate=0.02):
    """Return parameters, velocity and losses after some epochs with orders of a fixed seed."""
    given = given | {name: copied(given[name], dtype) for name in ("params", "velocity")}
    rng, n, losses = np.random.default_rng(5), len(given["y"]), []
    options = {k: v.astype(dtype) if hasattr(v, "dtype") else v for k, v in options.items()}
    seen = given if runner is epoch_runner.reference else hidden_from_wrapper(given)
    epoch = runner(**seen, **options, rng=rng)
    assert epoch is not NotImplemented
    n_steps = -(-n // options["batch_size"])
    for _ in range(epochs):
        rates = np.multiply.outer(np.linspace(0.2, 1, n_steps), rate)
        rates = rates.astype(dtype) if np.ndim(rate) else list(rates)
        losses.append(np.array(epoch(rng.permutation(n), rates)))
    return {**given["params"]} | {f"v{k}": v for k, v in given["velocity"].items()} | {
        "losses": np.concatenate(losses), "rng": np.array(rng.integers(1 << 40)),
    }  # fmt: skip


def assert_as_exact_as_float32(kernel, given, options, **more):
    """Within twice the error of the shared loop in float32, give or take some ten roundings."""
    found = train(kernel, given, options, **more)
    shared = train(epoch_runner.reference, given, options, **more)
    truth = train(epoch_runner.reference, given, options, dtype=np.float64, **more)
    for name, exact in truth.items():
        assert found[name].shape == exact.shape
        assert found[name].dtype == shared[name].dtype
        allowed = 2 * np.linalg.norm(shared[name] - exact) + 6e-7 * np.linalg.norm(exact)
        assert np.linalg.norm(found[name] - exact) <= allowed, name
    assert found["rng"] == truth["rng"]


def instead_of_the_loop(kernel, monkeypatch):
    """Let `kernel` train NumPy arrays; return a list that is told whether it took them."""
    taken = []

    def runner(*args, **kwargs):
        found = kernel(*args, **kwargs)
        taken.append(found is not NotImplemented)
        return found

    monkeypatch.setitem(epoch_runner.kernels, "numpy", (runner,))
    return taken


def assert_training_goes_on(model, given, **options):
    """Two epochs, one after another, give what two together give."""
    from gpuclf.training import Member, train_sgd

    def member():
        return Member(given["params"], lambda step: 0.02 / (1 + step), 0.02, 0.8, given["velocity"])

    def run(member, rng, epochs=1):
        train_sgd(
            model, [member], given["X"], given["y"], batch_size=37, epochs=epochs, nesterov=True,
            rng=rng, **options,
        )  # fmt: skip

    rng, twice, once = np.random.default_rng(1), member(), member()
    run(twice, rng)
    run(twice, rng)
    run(once, np.random.default_rng(1), epochs=2)
    assert twice.history == once.history
    for name, value in once.params.items():
        assert twice.params[name].tobytes() == value.tobytes()


class RecordedDevice:
    """Stands in for the capture of launches: keeps them, and makes them later with what they had.

    Attributes
    ----------
    made : list
        The launches made so far, with addresses of arrays and values of numbers.
    n_recorded : int
    """

    def __init__(self, device):
        self.device, self.made, self.n_recorded, self._list = device, [], 0, None

    def build(self, *source):
        launcher = self.device.build(*source)

        def launch(*call):
            if self._list is not None:
                self._list.append(partial(self._make, source, launcher, call))
            else:
                self._make(source, launcher, call)

        return launch

    def _make(self, source, launcher, call):
        arguments = [x.ctypes.data if getattr(x, "ndim", 0) else x.item() for x in call[2]]
        self.made.append((source, call[0], call[1], arguments, call[3]))
        launcher(*call)

    def recorded(self, like, queue):
        assert isinstance(like, np.ndarray)
        self._list = launches = []
        queue()
        self._list = None
        self.n_recorded += 1

        def repeat():
            for launch in launches:
                launch()

        return repeat


def assert_recording_changes_nothing(kernel, given, options, device, monkeypatch):
    """Four epochs: launched one by one, and recorded in the second to be repeated."""
    plain = train(kernel, given, options, epochs=4)
    device = RecordedDevice(device)
    monkeypatch.setattr(cuda_modules, "build", device.build)
    monkeypatch.setattr(cuda_modules, "recorded", device.recorded)
    found = train(kernel, given, options, epochs=4)
    assert device.n_recorded == 1
    n_launches = len(device.made) // 4
    assert n_launches == 3 * -(-len(given["y"]) // options["batch_size"]) + 1
    for start in range(n_launches, 4 * n_launches, n_launches):
        assert device.made[start : start + n_launches] == device.made[:n_launches]
    for name, value in plain.items():
        assert found[name].tobytes() == value.tobytes()


def caught(device, file, check, *replacements):
    """Tell whether `check` fails, in any order, with the source broken so."""
    with device.broken(file, *replacements):
        for order in ORDERS:
            device.order = order
            try:
                check()
            except (AssertionError, CudaOnCpuError):
                return True
    return False


def assert_a_gpu_learns_the_same(kernel, given, options, monkeypatch):
    """Three epochs, recorded or not, give the same bits, as exact as the shared loop."""
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    shared, truth = (
        train(epoch_runner.reference, given, options, epochs=3, dtype=dtype)
        for dtype in (np.float32, np.float64)
    )
    n_steps = -(-len(given["y"]) // options["batch_size"])
    recorded = cuda_modules.recorded
    graphs, runs = [], []

    def on_gpu(record):
        monkeypatch.setattr(cuda_modules, "recorded", record)
        on_device = to_device(given, "cupy")
        for name in ("params", "velocity"):
            for key, x in on_device[name].items():
                if x.ndim == 3:
                    on_device[name][key] = apart(side_by_side(x), (len(x),))
        rng, losses = np.random.default_rng(5), []
        epoch = kernel(**on_device, **options, rng=rng)
        for _ in range(3):
            rates = list(0.02 * np.linspace(0.2, 1, n_steps))
            order = rng.permutation(len(given["y"]))
            losses.append(np.array(to_host(epoch(order, rates))))
        found = to_host(on_device["params"]) | {"losses": np.concatenate(losses)}
        runs.append(b"".join(value.tobytes() for value in found.values()))
        return found

    def keep(like, queue):
        graphs.append(recorded(like, queue))
        return graphs[-1]

    found = on_gpu(keep)
    on_gpu(lambda like, queue: None)
    on_gpu(keep)
    assert all(graph is not None for graph in graphs)
    assert len(set(runs)) == 1
    for name, value in found.items():
        exact = truth[name]
        allowed = 2 * np.linalg.norm(shared[name] - exact) + 2e-6 * np.linalg.norm(exact)
        assert np.linalg.norm(value - exact) <= allowed, name
