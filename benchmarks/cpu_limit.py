"""Where the time of the CPU path goes, how far from the floor it is, and how others do on the same.

python -m benchmarks.cpu_limit --out benchmarks/results/cpu_limit.json    about 6 minutes

Needs the extras `fast` and `bench`; CIFAR-10 for the times to an accuracy. The record is what
docs/performance.md quotes: benchmarks/performance_tables.py writes its tables.
"""

import argparse
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

import gpuclf
from gpuclf.augment import horizontal_flip
from gpuclf.bench import IMPLEMENTATIONS, PEERS, Inputs, peer_cases, run_case
from gpuclf.bench.measure.cases import NET
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.report.table import print_rows
from gpuclf.datasets import course_split, load_dataset
from gpuclf.devices.cpu import single_threaded_blas
from gpuclf.devices.machine import environment
from gpuclf.kernels.building.machine_code import matrix_unit_is_usable
from gpuclf.kernels.linear_pass import loops as linear_loops
from gpuclf.layers import affine, affine_backward, affine_backward_params, relu, relu_backward
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models import SOFTMAX
from gpuclf.models.distances import squared_euclidean
from gpuclf.models.linear import add_penalty_gradient, linear_pass, mean_weights
from gpuclf.models.neighbors import smallest_k
from gpuclf.samples.folding import FoldedSamples
from gpuclf.training import momentum_step

console = Console()
HOST = HostDevice()


def median_seconds(calls: dict, rounds: int = 15, calls_a_turn: int = 1) -> dict:
    """Time calls by turns, so that a noisy neighbour troubles all of them."""
    times: dict = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            HOST.settle()
            for _ in range(calls_a_turn):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def read_in_parallel(X: np.ndarray, threads: int = 2):
    """Return a call that reads X once, a share for each thread."""
    words = X.reshape(-1).view(np.int64)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, np.array_split(words, threads)))


def profile(inputs: Inputs) -> list[dict]:
    """Time the parts of a pass, of a mini-batch step and of a k-NN tile, beside their floors."""
    X, y, W = inputs.floats, inputs.y, inputs.W
    n_samples, n_features = X.shape
    n_classes, hidden = W.shape[1], NET.hidden_size
    A = np.ones((3000, 3000), inputs.dtype)
    peak = 2 * 3000**3 / median_seconds({"": lambda: A @ A}, 5)[""]
    bandwidth = X.nbytes / median_seconds({"": read_in_parallel(X)}, 7)[""]
    rows: list[dict] = []

    def add(part: str, what: str, seconds: float, operations: float, nbytes: float) -> None:
        floor = max(operations / peak, nbytes / bandwidth)
        rows.append({"part": part, "what": what, "median_s": seconds, "floor_s": floor})

    # A full pass. Sixteen rows again and again never leave the cache.
    padded, tiles = linear_loops.tiles(n_classes)
    WT, dWT, S = (
        linear_loops.aligned_zeros(rows, columns, W)
        for rows, columns in (
            (padded[0], n_features),
            (padded[1], n_features),
            (linear_loops.BLOCK_ROWS, max(padded)),
        )
    )
    WT[:n_classes] = W.T
    cached, half = X[:16].copy(), n_samples // 2
    weights = mean_weights(None, n_samples, W, ())

    def repeat(loop):
        def call():
            for _ in range(half // 16):
                loop()

        return call

    on_bytes = matrix_unit_is_usable()
    flops = 2 * n_samples * n_features * n_classes
    seconds = median_seconds(
        {
            "read X once": read_in_parallel(X),
            "X @ W from cache, one thread": repeat(
                lambda: linear_loops._dot(cached, WT, S, 0, n_features, tiles[0])
            ),
            "X^T @ dS from cache, one thread": repeat(
                lambda: linear_loops._outer(cached, S, 16, dWT, 0, n_features, 0, tiles[1])
            ),
            "the compiled pass": lambda: linear_pass(
                W, None, FoldedSamples(X, n_classes, W.dtype), y, weights, softmax_cross_entropy
            ),
            "softmax_loss_vectorized, with checks": lambda: SOFTMAX.loss({"W": W}, X, y, 1e-3),
            "the same from uint8": lambda: SOFTMAX.loss({"W": W}, inputs.bytes_, y, 1e-3),
        }
    )
    work = {
        "read X once": (0, X.nbytes),
        "X @ W from cache, one thread": (flops, 0),  # half the rows on half the threads
        "X^T @ dS from cache, one thread": (flops, 0),
        # A matrix unit multiplies bytes far faster than any product of floats.
        "the same from uint8": (0 if on_bytes else 2 * flops, X.nbytes / X.itemsize),
    }
    for what, value in seconds.items():
        add("full softmax pass", what, value, *work.get(what, (2 * flops, X.nbytes)))

    # A mini-batch step of the two-layer net.
    batch = 200
    x, labels, share = X[:batch].copy(), y[:batch], mean_weights(None, batch, W, ())
    params = inputs.params(NET)
    velocity = {name: 0 * value for name, value in params.items()}
    H = relu(affine(x, params["W1"], params["b1"]))
    scores = affine(H, params["W2"], params["b2"])
    _, dscores = softmax_cross_entropy(scores, labels, share)
    dH, _, _ = affine_backward(dscores, H, params["W2"])
    _, grads = NET.objective(params, x, labels, 1e-3)

    def step(samples):
        def call():
            _, grads = NET.objective(params, samples, labels, 1e-3)
            update(grads)

        return call

    def update(grads):
        for name, value in params.items():
            momentum_step(value, grads[name], velocity[name], 1e-9, 0.9, True)

    of_bytes = FoldedSamples(inputs.bytes_[:batch], 0, W.dtype)
    folded = of_bytes.fold(params["W1"], params["b1"])
    block = of_bytes.block(slice(0, batch))
    gradients = block.affine_backward(dH)

    gathered = np.random.default_rng(0).permutation(n_samples)[:batch]
    seconds = median_seconds(
        {
            "gather 200 rows of uint8": lambda: inputs.bytes_[gathered],
            "standardise them": lambda: inputs.bytes_[:batch].to_array(),
            "X @ W1": lambda: x @ params["W1"],
            "X^T @ dH": lambda: affine_backward_params(dH, x),
            "fold the standardisation into W1": lambda: of_bytes.fold(params["W1"], params["b1"]),
            "X @ W1 of bytes": lambda: block.affine(*folded),
            "X^T @ dH of bytes": lambda: block.affine_backward(dH),
            "unfold it from dW1": lambda: of_bytes.unfold(*gradients),
            "the second layer and softmax": lambda: (
                relu(H),
                softmax_cross_entropy(affine(H, params["W2"], params["b2"]), labels, share),
                relu_backward(affine_backward(dscores, H, params["W2"])[0], H),
            ),
            "the penalty's gradient": lambda: add_penalty_gradient(grads["W1"], params["W1"], 1e-9),
            "the update": lambda: update(grads),
            "the whole step, floats": step(x),
            "the whole step, uint8": step(inputs.bytes_[:batch]),
        },
        rounds=9,
        calls_a_turn=20,
    )
    flops = 2 * batch * n_features * hidden
    W1_bytes = params["W1"].nbytes
    work = {
        "gather 200 rows of uint8": (0, 2 * batch * n_features),
        "standardise them": (0, x.nbytes),
        "X @ W1": (flops, 0),
        "X^T @ dH": (flops, 0),
        "fold the standardisation into W1": (0, 2 * W1_bytes),
        "unfold it from dW1": (0, 2 * W1_bytes),
        "X @ W1 of bytes": (0, W1_bytes),
        "X^T @ dH of bytes": (0, W1_bytes),
        "the penalty's gradient": (0, 3 * W1_bytes),
        "the update": (0, 5 * W1_bytes),
        "the whole step, floats": (2 * flops, 0),
        "the whole step, uint8": (0 if on_bytes else 2 * flops, 5 * W1_bytes),
    }
    for what, value in seconds.items():
        add("mini-batch step", what, value, *work.get(what, (0, 0)))

    # A tile of k-NN, on one thread as in the search.
    queries, train = inputs.bytes_.X[:128], inputs.bytes_.X[:8192]
    with single_threaded_blas():
        distances = squared_euclidean(queries, train)
        seconds = median_seconds(
            {
                "squared L2 of 128 x 8,192 bytes": lambda: squared_euclidean(queries, train),
                "the 5 nearest of each": lambda: smallest_k(distances, 5),
            },
            rounds=9,
        )
    # Instructions on bytes do four times the multiplications of those on float32; one thread.
    flops = 2 * len(queries) * len(train) * n_features * 2 / 4
    for what, value in seconds.items():
        add("k-NN tile, one thread", what, value, flops if "L2" in what else 0, 0)
    for row in rows:
        row["peak_flop_per_s"], row["bytes_per_s"] = peak, bandwidth
    return rows


def scaling(inputs: Inputs) -> list[dict]:
    """Time and memory of the full pass against the number of rows."""
    W, sizes = inputs.W, [n for n in (5000, 10000, 20000, 50000) if n <= len(inputs.y)]

    def calls(n, X):
        """Return as many passes over n rows as make up one over all."""

        def repeated():
            for _ in range(sizes[-1] // n):
                SOFTMAX.loss({"W": W}, X[:n], inputs.y[:n], 1e-3)

        return repeated

    found = []
    for name, X in (("float32", inputs.floats), ("uint8", inputs.bytes_)):
        times = median_seconds({n: calls(n, X) for n in sizes}, rounds=15)
        for n, seconds in times.items():
            tracemalloc.start()
            calls(n, X)()
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            row = {"features": name, "samples": n, "median_s": seconds / (sizes[-1] // n)}
            found.append(row | {"extra_bytes": peak_bytes})
    return found


def times_to_accuracy(dataset) -> list[dict]:
    """Train by the same recipe here and in PyTorch, by turns; time until the test accuracy."""
    import torch

    split = course_split(dataset, n_test=len(dataset.X_test))
    X, y = split.X_train, split.y_train
    recipes = [
        ("softmax", 0.41, {"max_iter": 10, "batch_size": 200, "learning_rate": 0.003}, 1e-3),
        (
            "two-layer",
            0.55,
            {"max_iter": 6, "batch_size": 256, "learning_rate": 0.05, "hidden_size": 512},
            1e-4,
        ),
    ]
    found = []
    for model, wanted, recipe, reg in recipes:
        for name, train in (("gpuclf", train_gpuclf), ("PyTorch", train_pytorch)) * 2:
            seconds, accuracy = train(model, X, y, split, recipe, reg, torch)
            row = {"model": model, "implementation": name, "wanted": wanted}
            found.append(row | {"fit_s": seconds, "test_accuracy": accuracy, "recipe": recipe})
            console.print(f"{model}, {name}: {seconds:.1f} s, test accuracy {accuracy:.4f}")
    return found


def train_gpuclf(model, X, y, split, recipe, reg, _):
    """Train the estimator on bytes."""
    kind = gpuclf.SoftmaxClassifier if model == "softmax" else gpuclf.TwoLayerNetClassifier
    augment = horizontal_flip if model == "two-layer" else None
    classifier = kind(reg=reg, augment=augment, random_state=0, **recipe)
    start = time.perf_counter()
    classifier.fit(X, y)
    return time.perf_counter() - start, classifier.score(split.X_test, split.y_test)


def train_pytorch(model, X, y, split, recipe, reg, torch):
    """Train the same model by the same recipe, from floats standardised once."""
    from gpuclf.training import one_cycle

    torch.manual_seed(0)
    start = time.perf_counter()
    pixels = torch.from_numpy(X).float()
    mean, scale = pixels.mean(dim=0), pixels.std(dim=0)
    samples, labels = (pixels - mean) / scale, torch.from_numpy(y).long()
    n_samples, n_features = samples.shape
    if model == "softmax":
        net = torch.nn.Linear(n_features, 10)
        torch.nn.init.zeros_(net.weight)
    else:
        net = torch.nn.Sequential(
            torch.nn.Linear(n_features, recipe["hidden_size"]),
            torch.nn.ReLU(),
            torch.nn.Linear(recipe["hidden_size"], 10),
        )
        for layer in (net[0], net[2]):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    weights = [p for p in net.parameters() if p.ndim == 2]
    biases = [p for p in net.parameters() if p.ndim == 1]
    # PyTorch's weight decay is the gradient of half the penalty.
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 2 * reg}, {"params": biases}],
        lr=recipe["learning_rate"],
        momentum=0.9,
        nesterov=True,
    )
    batch_size = recipe["batch_size"]
    steps = -(-n_samples // batch_size) * recipe["max_iter"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: one_cycle(s, steps))
    for _ in range(recipe["max_iter"]):
        order = torch.randperm(n_samples)
        for first in range(0, n_samples, batch_size):
            batch = order[first : first + batch_size]
            x = samples[batch]
            if model == "two-layer":
                images = x.view(-1, 3, 32, 32)
                flip = (torch.rand(len(x)) < 0.5)[:, None, None, None]
                x = torch.where(flip, images.flip(3), images).view(len(x), -1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        scores = net((torch.from_numpy(split.X_test).float() - mean) / scale)
    return seconds, float((scores.argmax(dim=1).numpy() == split.y_test).mean())


def main() -> None:
    """Measure everything and write the record; each part is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data)
    n_samples = min(arguments.samples, len(dataset.y_train))
    inputs = Inputs(dataset.X_train[:n_samples], dataset.y_train[:n_samples])
    record: dict = {"dataset": dataset.name, "environment": environment()}

    def keep(name: str, value: object) -> None:
        record[name] = value
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"{name}: done", style="dim")

    keep("profile", profile(inputs))
    keep("scaling", scaling(inputs))
    listed = [i for i in IMPLEMENTATIONS if i.array_library == "numpy"]
    listed += [i for i in PEERS if i.device == "cpu"]
    rows = []
    for case in peer_cases(n_samples):
        console.print(case.title, style="dim")
        rows += run_case(case, inputs, listed, time_budget_s=30.0)
        keep("rows", [row.as_dict() for row in rows])
    print_rows(rows, console)
    if "CIFAR-10" in dataset.name and n_samples == len(dataset.y_train):
        keep("times_to_accuracy", times_to_accuracy(dataset))


if __name__ == "__main__":
    main()
