"""A spiral
========

Softmax and a two-layer net on the case study of Stanford's CS231n.

Three classes lie on the arms of a spiral. The best straight lines are right on about half of the
points; a hundred hidden units bend the lines until nearly all are. Both are trained by plain
gradient descent, with the formulas of gpuclf and nothing else.

Run it by ::

    python examples/spiral.py --out spiral.png
"""

import argparse
import time
from pathlib import Path

import numpy as np

from gpuclf.datasets import make_spiral
from gpuclf.models import SOFTMAX, TWO_LAYER
from gpuclf.plots import import_pyplot, plot_decision_boundary

REG = 1e-3 / 2  # the source's penalty is 0.5 * reg * sum(W * W) with reg = 1e-3
STEP_SIZE = 1.0


def descend(model, params, X, y, n_steps):
    """Full-batch gradient descent, from `params` and in them."""
    start = time.perf_counter()
    for step in range(n_steps):
        loss, grads = model.objective(params, X, y, REG)
        if step % (n_steps // 10) == 0:
            print(f"step {step:5,}: loss {loss:.6f}")
        for name, gradient in grads.items():
            params[name] -= STEP_SIZE * gradient
    microseconds = (time.perf_counter() - start) / n_steps * 1e6
    print(f"{microseconds:.0f} microseconds a step")


def main():
    """Train both, print what the source prints, and draw the decision boundaries."""
    parser = argparse.ArgumentParser(
        description="Softmax and a two-layer net on the case study of Stanford's CS231n."
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("spiral.png"), help="the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the spiral and the first W")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    X, y = make_spiral(n_per_class=100, n_classes=3, seed=arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    softmax = {"W": 0.01 * rng.standard_normal((2, 3)), "b": np.zeros(3)}
    net = {
        "W1": 0.01 * rng.standard_normal((2, 100)),
        "b1": np.zeros(100),
        "W2": 0.01 * rng.standard_normal((100, 3)),
        "b2": np.zeros(3),
    }
    _, panels = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for name, model, params, n_steps, ax in (
        ("softmax", SOFTMAX, softmax, 200, panels[0]),
        ("two-layer net", TWO_LAYER, net, 10_000, panels[1]),
    ):
        print(name)
        descend(model, params, X, y, min(n_steps, 300) if arguments.quick else n_steps)

        def predict(points, model=model, params=params):
            return model.scores(params, points, precision="float32").argmax(axis=1)

        print(f"{np.mean(predict(X) == y):.1%} of the training points are right\n")
        plot_decision_boundary(predict, X, y, ax=ax)
        ax.set_title(f"{name}, {ax.get_title(loc='left')}", loc="left")
    plt.savefig(arguments.out)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
