"""What a call on a GPU costs the host, measured without one.

python -m benchmarks.host_cost        prints microseconds; needs CuPy, and neither driver nor GPU

The arrays are CuPy's own, at addresses that nobody looks at; launches, and what asks the driver, do
nothing. What remains is this library's Python and what it asks of CuPy's arrays. On a GPU's host
CuPy's launches and its memory pool come on top.
"""

import time
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import numpy as np

import gpuclf
from gpuclf.devices import cupy as cupy_device
from gpuclf.kernels.building import cuda, plans
from gpuclf.kernels.epochs.two_layer_on_gpu import two_layer_epochs
from gpuclf.models import TWO_LAYER

N, D, C, H, BATCH = 50_000, 3072, 10, 50, 200
TURNS, CALLS = 40, 50
SHAPES = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
SOMEWHERE, LIMITS = 1 << 20, cuda.DeviceLimits(90, 132, 227 << 10)


@contextmanager
def pretended_gpu():
    """Give what makes CuPy arrays without a driver; kernels are launched nowhere."""
    import cupy

    owner = SimpleNamespace()
    memory = cupy.cuda.UnownedMemory(SOMEWHERE, 1 << 50, owner, 0)

    def empty(shape, dtype=np.float32, device=None):
        return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))

    stream, entered = SimpleNamespace(ptr=0), nullcontext()
    changed = [
        (cupy, "empty", empty),
        (cupy.cuda, "get_current_stream", lambda number=None: stream),
        (cupy.cuda.runtime, "getDevice", lambda: 0),
        (cupy_device, "on_device_of", lambda *arguments: (arguments[0].device, entered)[1]),
        (cuda, "build", lambda *_: lambda *_: None),
        (cuda, "device_limits", lambda x: LIMITS),
    ]
    with ExitStack() as stack:
        for place, name, value in changed:
            stack.enter_context(mock.patch.object(place, name, value))
        yield empty
    plans._plans.clear()


def losses(empty):
    """Return calls of the losses on bytes, by name."""
    X, y, W = empty((N, D), "uint8"), empty((N,), "int64"), empty((D, C))
    params = {name: empty(shape) for name, shape in SHAPES.items()}
    lazy = object.__new__(gpuclf.Standardized)  # which would look at its mean
    lazy.X, lazy.mean, lazy.scale = X, empty((D,), "float64"), empty((D,), "float64")
    calls = {}
    for name, samples in (("uint8", X), ("uint8, standardised", lazy)):
        calls[f"softmax_loss_vectorized, {name}"] = lambda X=samples: (
            gpuclf.softmax_loss_vectorized(W, X, y, 1e-3)
        )
        calls[f"two_layer_loss, {name}"] = lambda X=samples: gpuclf.two_layer_loss(
            params, X, y, 1e-3
        )
    return calls


def epochs():
    """Return what trains the net for an epoch, launched or recorded, by name.

    The arrays are NumPy's: nothing is asked of them in an epoch that is not the first.
    """
    order, rates, found = np.arange(N), [0.1] * (N // BATCH), {}
    for name, repeat in (("launched", None), ("recorded", lambda: None)):
        params, velocity = (
            {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()} for _ in range(2)
        )
        with mock.patch.object(cuda, "recorded", lambda like, queue, repeat=repeat: repeat):
            epoch = two_layer_epochs(
                TWO_LAYER, params, velocity, np.zeros((N, D), np.uint8), np.zeros(N, np.int64),
                batch_size=BATCH, reg=1e-3, momentum=0.9, nesterov=True,
            )  # fmt: skip
            for _ in range(2):
                epoch(order, rates)
        found[f"a step of the net, {name}"] = lambda epoch=epoch: epoch(order, rates)
    return found


def microseconds(call, n):
    """Return the median of a call of several turns of `n`, and the fastest turn's.

    By the clock of the thread, which stands while others have the processor.
    """
    turns = []
    for _ in range(TURNS):
        began = time.thread_time()
        for _ in range(n):
            call()
        turns.append((time.thread_time() - began) / n * 1e6)
    return float(np.median(turns)), min(turns)


def main():
    """Measure and print."""
    with pretended_gpu() as empty:
        calls = losses(empty)
        for call in calls.values():
            call()
        found = {name: microseconds(call, CALLS) for name, call in calls.items()}
        for name, epoch in epochs().items():
            found[name] = [x / (N // BATCH) for x in microseconds(epoch, 1)]
    for name, (median, least) in found.items():
        print(f"{name}: {median:.2f} us of the host, {least:.2f} in the fastest of {TURNS} turns")


if __name__ == "__main__":
    main()
