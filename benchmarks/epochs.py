"""Whole epochs of mini-batch SGD on a device, beside PyTorch's: the acceptance's step "epochs".

Everything is on the device but the order of the samples, which each epoch brings from the host; an
epoch ends when the host has the loss of every step. The first epoch of each is held against the
shared loop on NumPy.
"""

import importlib
import time
from functools import partial

import numpy as np

from gpuclf.augment import horizontal_flip
from gpuclf.backend import to_host
from gpuclf.features import Standardized
from gpuclf.linear import linear_loss
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.training import epoch_runner
from gpuclf.two_layer import two_layer_objective

RATE, MOMENTUM, REG, HIDDEN = 1e-3, 0.9, 1e-3, 50
WARM_UPS = 3  # launched one by one, recorded, and repeated once
LOSS_ERROR_ALLOWED = 1e-3  # of a step's loss after up to an epoch in float32
OBJECTIVES = {
    "softmax": partial(linear_loss, softmax_cross_entropy),
    "svm": partial(linear_loss, multiclass_hinge),
    "net": two_layer_objective,
}
FLIPPED = "softmax, flips"


def start_of(model, n_features, n_classes):
    """Return the parameters to start from, on the host; linear ones as the classifiers do."""
    if model != "net":
        shapes = {"W": (n_features, n_classes), "b": (n_classes,)}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    W1, W2 = (
        (rng.standard_normal((rows, columns)) * (2 / rows) ** 0.5).astype(np.float32)
        for rows, columns in ((n_features, HIDDEN), (HIDDEN, n_classes))
    )
    b1, b2 = np.zeros(HIDDEN, np.float32), np.zeros(n_classes, np.float32)
    return {"W1": W1, "b1": b1, "W2": W2, "b2": b2}


def our_epochs(model, images, labels, put, batch_size):
    """Return ``order -> losses`` by this library, with the arrays where `put` takes them."""
    augment = horizontal_flip if model == FLIPPED else None
    objective = OBJECTIVES[model.partition(",")[0]]
    start = start_of(model, images.shape[1], int(labels.max()) + 1)
    params = {name: put(value) for name, value in start.items()}
    run = epoch_runner(
        put(labels), Standardized.fit(put(images)), params,
        {name: put(np.zeros_like(value)) for name, value in start.items()},
        objective=objective, batch_size=batch_size, reg=REG, momentum=MOMENTUM, nesterov=True,
        augment=augment, rng=np.random.default_rng(0),
    )  # fmt: skip
    rates = [RATE] * -(-len(labels) // batch_size)
    return lambda order: to_host(run(order, rates))


def torch_epochs(model, images, labels, device, batch_size, *, graphed):
    """Return the same by PyTorch in float32, launch by launch, or replaying the graph of a step."""
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    X = torch.tensor(Standardized.fit(images).to_array(np.float32), device=device)
    y = torch.tensor(labels, dtype=torch.int64, device=device)
    params = {
        name: torch.tensor(value, requires_grad=True, device=device)
        for name, value in start_of(model, X.shape[1], int(labels.max()) + 1).items()
    }
    sgd = torch.optim.SGD(params.values(), lr=RATE, momentum=MOMENTUM, nesterov=True)

    def step(rows):
        sgd.zero_grad(set_to_none=not graphed)
        samples, targets = X[rows], y[rows]
        if model == "net":
            hidden = torch.relu(samples @ params["W1"] + params["b1"])
            scores = hidden @ params["W2"] + params["b2"]
        else:
            scores = samples @ params["W"] + params["b"]
        if model == "svm":
            loss = functional.multi_margin_loss(scores, targets) * scores.shape[1]
        else:
            loss = functional.cross_entropy(scores, targets)
        loss = loss + REG * sum(p.square().sum() for name, p in params.items() if "W" in name)
        loss.backward()
        sgd.step()
        return loss.detach()

    if graphed:
        step = _captured(torch, step, sgd, params, y[:batch_size] * 0)

    def epoch(order):
        order = torch.tensor(order, device=device)
        losses = [step(rows).clone() for rows in order.split(batch_size)]
        return torch.stack(losses).cpu().numpy()

    return epoch


def _captured(torch, step, sgd, params, rows):
    """Capture a step over the samples in `rows`; what warming up has moved is put back."""
    before = {name: value.detach().clone() for name, value in params.items()}
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            step(rows)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(rows)
    with torch.no_grad():
        for name, value in params.items():
            value.copy_(before[name])
            sgd.state[value]["momentum_buffer"].zero_()

    def replay(batch):
        rows.copy_(batch)
        graph.replay()
        return loss

    return replay


def orders(n_samples):
    """Give the same order of the samples for each epoch in turn, to everyone."""
    rng = np.random.default_rng(1)
    while True:
        yield rng.permutation(n_samples)


def time_epochs(epoch, n_samples, runs, seconds):
    """Return the losses of the first epoch, and what the later ones take."""
    each, taken = orders(n_samples), []
    first = epoch(next(each))
    for _ in range(WARM_UPS - 1):
        epoch(next(each))
    ends = time.monotonic() + seconds
    while len(taken) < runs and (len(taken) < 3 or time.monotonic() < ends):
        order = next(each)
        began = time.perf_counter()
        epoch(order)
        taken.append(time.perf_counter() - began)
    return first, taken


def compare_epochs(images, labels, put, device, batch_size, runs, seconds, advance, left_s):
    """Return a row for each model and implementation: seconds an epoch, and the losses' error."""
    given, rows = (images, labels), []
    for model in (*OBJECTIVES, FLIPPED):
        ways = {"gpuclf uint8": partial(our_epochs, model, *given, put, batch_size)}
        if model != FLIPPED:  # which takes pixels as they are: PyTorch's are standardised floats
            torch = partial(torch_epochs, model, *given, device, batch_size)
            ways["PyTorch eager"] = partial(torch, graphed=False)
            ways["PyTorch graphed"] = partial(torch, graphed=True)
        truth = None
        for name, prepare in ways.items():
            row = {"model": model, "implementation": name}
            rows.append(row)
            if left_s() <= 0:
                row["unavailable"] = "out of time"
                continue
            advance(f"{model}, {name}")
            if truth is None:
                truth = our_epochs(model, *given, np.array, batch_size)(next(orders(len(labels))))
            try:
                first, taken = time_epochs(prepare(), len(labels), runs, seconds)
            except Exception as error:
                if name == "gpuclf uint8":
                    raise
                row["unavailable"] = f"{type(error).__name__}: {error}"[:200]
                continue
            row |= {"median_s": float(np.median(taken)), "min_s": min(taken), "runs": len(taken)}
            row["loss_error"] = float(np.max(np.abs(first - truth) / np.abs(truth)))
    return rows
