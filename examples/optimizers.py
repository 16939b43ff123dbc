"""Race the optimisation ladder: the same softmax classifier, minimised in eight ways.

Random search, random local search, gradient descent, mini-batch SGD (plain, with a decaying rate,
with momentum, with Nesterov's) and L-BFGS. The picture has the loss on all samples against passes
over them, which is what each of these methods pays with. Run it by

    python examples/optimizers.py --out optimizers.png
"""

import argparse
import math
from functools import partial

import numpy as np

from gpuclf.models import SOFTMAX
from gpuclf import Standardized
from gpuclf.datasets import load_cifar10, make_synthetic
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models.linear import linear_loss_only
from gpuclf.optimizers import minimize_gd, random_local_search, random_search
from gpuclf.plots import import_pyplot
from gpuclf.training import minimize_lbfgs, minimize_sgd

REG = 1e-3
BATCH_SIZE = 200
SGD = {  # learning rate, its factor from pass to pass, momentum, Nesterov's
    "SGD": (0.003, 1.0, 0.0, False),
    "SGD, decay": (0.006, 0.95, 0.0, False),
    "SGD, momentum": (0.001, 0.95, 0.9, False),
    "SGD, Nesterov": (0.001, 0.95, 0.9, True),
}
softmax = SOFTMAX.objective
softmax_only = partial(linear_loss_only, softmax_cross_entropy)


def main():
    """Read the options, race, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    searching = {"reg": REG, "scale": 1e-3, "rng": np.random.default_rng(0)}
    _, history = random_search(softmax_only, start, X, y, n_candidates=n_passes, **searching)
    curves["random search"] = np.arange(1, n_passes + 1), history.loss
    _, history = random_local_search(softmax_only, start, X, y, max_iter=n_passes, **searching)
    curves["random local search"] = np.arange(n_passes + 1), history.loss

    _, history = minimize_gd(
        softmax, start, X, y, rate=lambda step: 0.01, reg=REG, max_iter=n_passes
    )
    curves["gradient descent"] = np.arange(n_passes), history.loss

    steps_per_pass = math.ceil(n_samples / BATCH_SIZE)
    for name, (rate, decay, momentum, nesterov) in SGD.items():
        losses = [float(softmax(start, X, y, REG)[0])]

        def measure(params, history, losses=losses):
            losses.append(float(softmax(params, X, y, REG)[0]))

        minimize_sgd(
            *(softmax, start, X, y),
            rate=lambda step, rate=rate, decay=decay: rate * decay ** (step // steps_per_pass),
            reg=REG,
            momentum=momentum,
            nesterov=nesterov,
            batch_size=BATCH_SIZE,
            epochs=n_passes,
            rng=np.random.default_rng(0),
            on_epoch=measure,
        )
        curves[name] = np.arange(n_passes + 1), losses

    evaluations = []

    def counted(*args):
        loss, grads = softmax(*args)
        evaluations.append(float(loss))
        return loss, grads

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
