"""The optimisers raced
====================

The same softmax classifier, minimised in eight ways.

Random search, random local search, gradient descent, mini-batch SGD (plain, with a decaying rate,
with momentum, with Nesterov's) and L-BFGS. The picture has the loss on all samples against passes
over them, which is what each of these methods pays with.

Run it by ::

    python examples/optimizers.py --out optimizers.png
"""

import argparse
import math

import numpy as np

from gpuclf import Standardized
from gpuclf.datasets import load_cifar10, make_synthetic
from gpuclf.models import SOFTMAX, LinearModel
from gpuclf.plots import import_pyplot
from gpuclf.training import Member, minimize_lbfgs, train_sgd

REG = 1e-3
BATCH_SIZE = 200
SGD = {  # learning rate, its factor from pass to pass, momentum, Nesterov's
    "SGD": (0.003, 1.0, 0.0, False),
    "SGD, decay": (0.006, 0.95, 0.0, False),
    "SGD, momentum": (0.001, 0.95, 0.9, False),
    "SGD, Nesterov": (0.001, 0.95, 0.9, True),
}


def losses_of(params, X, y):
    """Return the loss, without gradients: of many models, (K, ...) each, one product gives all."""
    loss, _ = SOFTMAX.data_loss(SOFTMAX.scores(params, X, precision="float32"), y, None)
    return loss + REG * np.sum(params["W"] ** 2, axis=(-2, -1))


def moved(params, scale, rng, models=()):
    """Return parameters at a random distance, with leading model axes if wanted."""
    steps = {name: rng.standard_normal((*models, *v.shape)) for name, v in params.items()}
    return {name: (v + scale * steps[name]).astype(v.dtype) for name, v in params.items()}


def random_search(start, X, y, n_candidates, scale, rng):
    """Draw candidates around the start; return the best, and the lowest loss after each."""
    candidates = moved(start, scale, rng, (n_candidates,))
    losses = losses_of(candidates, X, y)
    best = {name: value[np.argmin(losses)] for name, value in candidates.items()}
    return best, np.minimum.accumulate(losses)


def random_local_search(params, X, y, n_steps, scale, rng):
    """Take the random steps that lead down; return the end, and the loss at the start and after."""
    losses = [float(losses_of(params, X, y))]
    for _ in range(n_steps):
        there = moved(params, scale, rng)
        loss = float(losses_of(there, X, y))
        params = there if loss < losses[-1] else params
        losses.append(min(loss, losses[-1]))
    return params, losses


def gradient_descent(params, X, y, n_steps, rate):
    """Go down the gradient of all samples; return the end, and the loss before each step."""
    losses = []
    for _ in range(n_steps):
        loss, grads = SOFTMAX.objective(params, X, y, REG)
        params = {name: value - rate * grads[name] for name, value in params.items()}
        losses.append(float(loss))
    return params, losses


def main():
    """Read the options, race, draw."""
    parser = argparse.ArgumentParser(
        description="The same softmax classifier, minimised in eight ways."
    )
    parser.add_argument("--data", choices=["synthetic", "cifar10"], default="synthetic")
    parser.add_argument("--out", default="optimizers.png", help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="few samples and passes")
    options = parser.parse_args()
    import_pyplot()  # if it is missing, say so before the work

    n_samples, n_passes = (300, 5) if options.quick else (10_000, 40)
    if options.data == "cifar10":
        data = load_cifar10()
        X, y = data.X_train[:n_samples], data.y_train[:n_samples]
    else:
        X, y = make_synthetic(n_samples)
    curves = race(Standardized.fit(X), y, n_passes)
    for name, (passes, losses) in curves.items():
        print(f"{name:22} loss {losses[-1]:.3f} after {passes[-1]:.0f} passes")
    draw(curves, f"softmax regression, {n_samples:,} images ({options.data})", options.out)


def race(X, y, n_passes):
    """Return the passes over the data and the losses on all samples, by method."""
    n_samples, n_features = X.shape
    start = {"W": np.zeros((n_features, 10), np.float32), "b": np.zeros(10, np.float32)}
    curves = {}

    # A candidate costs one product with X, a gradient two; either counts as a pass.
    rng = np.random.default_rng(0)
    _, losses = random_search(start, X, y, n_passes, 1e-3, rng)
    curves["random search"] = np.arange(1, n_passes + 1), losses
    _, losses = random_local_search(start, X, y, n_passes, 1e-3, rng)
    curves["random local search"] = np.arange(n_passes + 1), losses
    _, losses = gradient_descent(start, X, y, n_passes, 0.01)
    curves["gradient descent"] = np.arange(n_passes), losses

    steps_per_pass = math.ceil(n_samples / BATCH_SIZE)
    for name, (rate, decay, momentum, nesterov) in SGD.items():
        losses = [float(losses_of(start, X, y))]
        member = Member(
            start,
            lambda step, rate=rate, decay=decay: rate * decay ** (step // steps_per_pass),
            REG,
            momentum,
        )
        train_sgd(
            *(SOFTMAX, [member], X, y),
            batch_size=BATCH_SIZE,
            epochs=n_passes,
            nesterov=nesterov,
            rng=np.random.default_rng(0),
            on_epoch=lambda params, _, losses=losses: losses.append(float(losses_of(params, X, y))),
        )
        curves[name] = np.arange(n_passes + 1), losses

    evaluations = []

    class Counted(LinearModel):
        def objective(self, *args, **options):
            loss, grads = super().objective(*args, **options)
            evaluations.append(float(loss))
            return loss, grads

    counted = Counted("softmax", SOFTMAX.data_loss)
    minimize_lbfgs(counted, start, X, y, reg=REG, max_iter=n_passes, tol=1e-6)
    curves["L-BFGS"] = np.arange(len(evaluations)), np.minimum.accumulate(evaluations)
    return curves


def draw(curves, title, out):
    """Draw one line a method."""
    _, ax = import_pyplot().subplots(figsize=(8, 5), layout="constrained")
    for name, (passes, losses) in curves.items():
        # Nesterov's lies on the other momentum's curve.
        ax.plot(passes, losses, "--" if "Nesterov" in name else "-", label=name, linewidth=1.8)
    ax.set_xlabel("passes over the data")
    ax.set_ylabel("loss on all samples")
    ax.set_title(title, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.figure.savefig(out, dpi=150)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
