"""Where the time of the CPU path goes, how far from the floor it is, and how others do on the same.

python -m benchmarks.cpu_limit --out benchmarks/results/cpu_limit.json    about 6 minutes
python -m benchmarks.cpu_limit --only-bytes    a pass over bytes, as bytes and as floats; seconds

Needs the extras `fast` and `bench`. The record is what docs/performance.md quotes:
benchmarks/performance_tables.py writes its tables.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gpuclf.bench import IMPLEMENTATIONS, PEERS, Inputs, peer_cases, run_case
from gpuclf.bench.measure.cases import NET
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.report.table import print_rows
from gpuclf.datasets import load_dataset
from gpuclf.devices.cpu import single_threaded_blas
from gpuclf.devices.machine import environment
from gpuclf.files import write_json
from gpuclf.kernels.building.machine_code import (
    byte_dots_are_usable,
    matrix_unit_is_usable,
    vector_unit,
)
from gpuclf.kernels.linear_pass import loops as linear_loops
from gpuclf.kernels.linear_pass.on_cpu import compiled_linear_pass
from gpuclf.layers import affine, affine_backward, relu, relu_backward
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models import SOFTMAX, Params
from gpuclf.models.distances import squared_euclidean
from gpuclf.models.linear import add_penalty_gradient, linear_pass, mean_weights
from gpuclf.models.neighbors import smallest_k
from gpuclf.samples.folding import FoldedSamples
from gpuclf.training import momentum_step

console = Console()
CACHED_ROWS = 12


def median_seconds(calls: dict, rounds: int = 15, calls_a_turn: int = 1) -> dict:
    """Time calls by turns, so that a noisy neighbour troubles all of them."""
    times: dict = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            HostDevice().settle()
            for _ in range(calls_a_turn):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def read_in_parallel(X: np.ndarray) -> Callable[[], object]:
    """Return a call that reads X once, on two threads."""
    shares = np.array_split(X.reshape(-1).view(np.int64), 2)
    pool = ThreadPoolExecutor(2)
    return lambda: list(pool.map(np.max, shares))


# A part to time: its name, the call, and the least operations and bytes that it needs.
Part = tuple[str, Callable[[], object], float, float]


def full_pass(inputs: Inputs) -> list[Part]:
    """Return the parts of a softmax pass over all samples."""
    X, y, W = inputs.floats, inputs.y, inputs.W
    n_samples, n_features = X.shape
    n_classes = W.shape[1]
    cached = X[:CACHED_ROWS].copy()  # a few rows again and again never leave the cache
    shape = linear_loops.shape_for(n_classes, W.itemsize)
    packed, dW = (linear_loops.zeros_of_W(n_features, n_classes, W.dtype, shape) for _ in range(2))
    bias, centre = np.zeros((2, n_classes), W.dtype), np.zeros(n_features, W.dtype)
    linear_loops.pack(W, bias[0], 0, n_classes, packed, bias[1], shape)
    room = linear_loops.room_for(packed, n_classes, CACHED_ROWS, shape)
    S, G = np.zeros((n_classes, CACHED_ROWS), W.dtype), room[4]
    weights = mean_weights(None, n_samples, W, ())

    def repeated(loop: Callable[..., object], *args: Any) -> Callable[[], None]:
        def half_the_rows() -> None:
            for _ in range(n_samples // 2 // CACHED_ROWS):
                loop(*args)

        return half_the_rows

    def compiled() -> object:
        samples = FoldedSamples(X, n_classes, W.dtype)
        return linear_pass(W, None, samples, y, weights, softmax_cross_entropy)

    def checked(samples: Any) -> Callable[[], object]:
        return partial(SOFTMAX.loss, {"W": W}, samples, y, 1e-3)

    of_cache, ends = (cached, centre), (0, CACHED_ROWS)
    scores = repeated(linear_loops.scores_of_rows, *of_cache, packed, *ends, S, room, shape, ())
    gradient = repeated(linear_loops.add_gradient_of_rows, *of_cache, G, *ends, dW, room, shape, ())
    one_product = 2.0 * n_samples * n_features * n_classes
    both = 2 * one_product
    # Bytes that are multiplied as bytes are so far faster.
    of_bytes = 0 if matrix_unit_is_usable() or byte_dots_are_usable() else both
    return [
        ("read X once", read_in_parallel(X), 0, X.nbytes),
        # Half the rows on half the threads.
        ("X @ W from cache, one thread", scores, one_product, 0),
        ("X^T @ dS from cache, one thread", gradient, one_product, 0),
        ("the compiled pass", compiled, both, X.nbytes),
        ("softmax_loss_vectorized, with checks", checked(X), both, X.nbytes),
        ("the same from uint8", checked(inputs.bytes_), of_bytes, X.nbytes / X.itemsize),
    ]


def bytes_both_ways(inputs: Inputs) -> list[dict]:
    """Time the compiled pass over bytes as this processor multiplies them, and widened to floats.

    The same where it has no instructions for bytes.
    """
    y, n_classes = inputs.y.astype(np.int64), inputs.W.shape[1]
    weights = mean_weights(None, len(y), inputs.W, ())
    samples = FoldedSamples(inputs.bytes_, n_classes, inputs.W.dtype)
    W, b = samples.fold(inputs.W, np.zeros(n_classes, inputs.W.dtype))
    given = W, b, samples, y, weights, softmax_cross_entropy
    ways = {way: partial(compiled_linear_pass, *given, widens_bytes=way) for way in (False, True)}
    as_they_are, widened = (call() for call in ways.values())
    difference = np.abs(as_they_are[1] - widened[1]).max() / np.abs(widened[1]).max()
    seconds = median_seconds(ways)
    names = {
        False: f"multiplied as this processor does: {vector_unit()}",
        True: "widened to floats",
    }
    rows = [{"bytes": names[way], "median_s": seconds[way]} for way in ways]
    return [row | {"largest_difference": float(difference)} for row in rows]


def net_step(inputs: Inputs, batch: int = 200) -> list[Part]:
    """Return the parts of a mini-batch step of the two-layer net."""
    x, pixels, labels = inputs.floats[:batch].copy(), inputs.bytes_[:batch], inputs.y[:batch]
    params = inputs.params(NET)
    W1, b1, W2, b2 = (params[name] for name in ("W1", "b1", "W2", "b2"))
    velocity = {name: 0 * value for name, value in params.items()}
    share = mean_weights(None, batch, W1, ())
    H = relu(affine(x, W1, b1))
    _, dscores = softmax_cross_entropy(affine(H, W2, b2), labels, share)
    dH, _, _ = affine_backward(dscores, H, W2)
    _, grads = NET.objective(params, x, labels, 1e-3)
    of_bytes = FoldedSamples(pixels, 0, W1.dtype)
    folded, block = of_bytes.fold(W1, b1), of_bytes.block(slice(0, batch))
    gradients = block.affine_backward(dH)
    rows = np.random.default_rng(0).permutation(len(inputs.y))[:batch]

    def update(grads: Params) -> None:
        for name, value in params.items():
            momentum_step(value, grads[name], velocity[name], 1e-9, 0.9, True)

    def second_layer() -> None:
        relu(H)
        softmax_cross_entropy(affine(H, W2, b2), labels, share)
        relu_backward(affine_backward(dscores, H, W2)[0], H)

    def step(samples: Any) -> Callable[[], None]:
        return lambda: update(NET.objective(params, samples, labels, 1e-3)[1])

    penalty_gradient = partial(add_penalty_gradient, grads["W1"], W1, 1e-9)
    product = 2.0 * W1.size * batch
    both_of_bytes = 0 if matrix_unit_is_usable() else 2 * product
    return [
        ("gather 200 rows of uint8", lambda: inputs.bytes_[rows], 0, 2 * pixels.X.nbytes),
        ("standardise them", lambda: pixels.to_array(), 0, x.nbytes),
        ("X @ W1", lambda: x @ W1, product, 0),
        ("X^T @ dH", lambda: (x.T @ dH, dH.sum(axis=0)), product, 0),
        ("fold the standardisation into W1", lambda: of_bytes.fold(W1, b1), 0, 2 * W1.nbytes),
        ("X @ W1 of bytes", lambda: block.affine(*folded), 0, W1.nbytes),
        ("X^T @ dH of bytes", lambda: block.affine_backward(dH), 0, W1.nbytes),
        ("unfold it from dW1", lambda: of_bytes.unfold(*gradients), 0, 2 * W1.nbytes),
        ("the second layer and softmax", second_layer, 0, 0),
        ("the penalty's gradient", penalty_gradient, 0, 3 * W1.nbytes),
        ("the update", lambda: update(grads), 0, 5 * W1.nbytes),
        ("the whole step, floats", step(x), 2 * product, 0),
        ("the whole step, uint8", step(pixels), both_of_bytes, 5 * W1.nbytes),
    ]


def knn_tile(inputs: Inputs) -> list[Part]:
    """Return the parts of a k-NN tile, on one thread as in the search."""
    queries, train = inputs.bytes_.X[:128], inputs.bytes_.X[:8192]
    distances = squared_euclidean(queries, train)
    # Instructions on bytes do four times the multiplications of those on float32; one thread.
    operations = 2.0 * len(queries) * len(train) * inputs.n_features * 2 / 4
    distance, nearest = (
        partial(squared_euclidean, queries, train),
        partial(smallest_k, distances, 5),
    )
    return [
        ("squared L2 of 128 x 8,192 bytes", distance, operations, 0),
        ("the 5 nearest of each", nearest, 0, 0),
    ]


def profile(inputs: Inputs) -> list[dict]:
    """Time the parts of a pass, of a mini-batch step and of a k-NN tile, beside their floors."""
    X, A = inputs.floats, np.ones((3000, 3000), inputs.dtype)
    peak = 2 * 3000**3 / median_seconds({"": lambda: A @ A}, 5)[""]
    bandwidth = X.nbytes / median_seconds({"": read_in_parallel(X)}, 7)[""]
    rates = {"peak_flop_per_s": peak, "bytes_per_s": bandwidth}
    rows = []
    for title, parts_of, rounds, calls_a_turn, threads in (
        ("full softmax pass", full_pass, 15, 1, nullcontext),
        ("mini-batch step", net_step, 9, 20, nullcontext),
        ("k-NN tile, one thread", knn_tile, 9, 1, single_threaded_blas),
    ):
        with threads():
            parts = parts_of(inputs)
            seconds = median_seconds({p[0]: p[1] for p in parts}, rounds, calls_a_turn)
        for what, _, operations, nbytes in parts:
            floor = max(operations / peak, nbytes / bandwidth)
            row = {"part": title, "what": what, "median_s": seconds[what], "floor_s": floor}
            rows.append(row | rates)
    return rows


def scaling(inputs: Inputs) -> list[dict]:
    """Time and memory of the full pass against the number of rows."""
    W, sizes = inputs.W, [n for n in (5000, 10000, 20000, 50000) if n <= len(inputs.y)]

    def passes(n: int, X: Any) -> None:
        """Make as many passes over n rows as make up one over all."""
        for _ in range(sizes[-1] // n):
            SOFTMAX.loss({"W": W}, X[:n], inputs.y[:n], 1e-3)

    found = []
    for name, X in (("float32", inputs.floats), ("uint8", inputs.bytes_)):
        for n, seconds in median_seconds({n: partial(passes, n, X) for n in sizes}).items():
            tracemalloc.start()
            passes(n, X)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            row = {"stored": name, "samples": n, "median_s": seconds / (sizes[-1] // n)}
            found.append(row | {"extra_bytes": peak_bytes})
    return found


def main() -> None:
    """Measure everything and write the record; each part is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where to write the record")
    parser.add_argument(
        "--only-bytes", action="store_true", help="only print how fast bytes are, both ways"
    )
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.only_bytes:
        parser.error("--out is needed, or --only-bytes")
    dataset = load_dataset(arguments.data)
    n_samples = min(arguments.samples, len(dataset.y_train))
    inputs = Inputs(dataset.X_train[:n_samples], dataset.y_train[:n_samples])
    if arguments.only_bytes:
        for row in bytes_both_ways(inputs):
            console.print(
                f"{row['median_s'] * 1e3:8.2f} ms  {row['bytes']} "
                f"(dW differs by {row['largest_difference']:.0e} of its largest number)"
            )
        return
    record: dict = {"dataset": dataset.name, "environment": environment()}

    def keep(name: str, value: object) -> None:
        record[name] = value
        write_json(arguments.out, record)
        console.print(f"{name}: done", style="dim")

    keep("profile", profile(inputs))
    keep("bytes", bytes_both_ways(inputs))
    keep("scaling", scaling(inputs))
    listed = [i for i in IMPLEMENTATIONS if i.array_library == "numpy"]
    listed += [i for i in PEERS if i.device == "cpu"]
    rows = []
    for case in peer_cases(n_samples):
        console.print(case.title, style="dim")
        rows += run_case(case, inputs, listed, time_budget_s=30.0)
        keep("rows", [row.as_dict() for row in rows])
    print_rows(rows, console)


if __name__ == "__main__":
    main()
