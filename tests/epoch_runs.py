"""Whole epochs by kernels on the CPU, beside the shared loop, and recorded ones."""

from functools import partial

import numpy as np

from gpuclf.training import epoch_runner


def copied(arrays, dtype=np.float32):
    return {name: value.astype(dtype) for name, value in arrays.items()}


def train(runner, given, options, epochs=1, dtype=np.float32, rate=0.02):
    """Return parameters, velocity and losses after some epochs with orders of a fixed seed."""
    given = given | {name: copied(given[name], dtype) for name in ("params", "velocity")}
    rng, n, losses = np.random.default_rng(5), len(given["y"]), []
    options = {k: v.astype(dtype) if hasattr(v, "dtype") else v for k, v in options.items()}
    epoch = runner(**given, **options, rng=rng)
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

    monkeypatch.setitem(epoch_runner.kernels, "numpy", runner)
    return taken


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
