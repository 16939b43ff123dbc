"""Why cross-entropy: the slow start
=================================

A sigmoid with squared error starts slowly; softmax with cross-entropy does not.

Where a sigmoid saturates, its slope is nearly 0, and with squared error the gradient carries that
slope as a factor: the more wrong a confident model is, the more slowly it learns. In the gradient
of softmax with cross-entropy the slope cancels. Both losses here run through the same linear
classifier, from the same confident and wrong start. Source of the effect: Nielsen, "Neural
Networks and Deep Learning", chapter 3.

Run it by ::

    python examples/sigmoid_slow_start.py --out slow_start.png
"""

import argparse

import numpy as np

from gpuclf import Standardized, array_namespace, grad_check
from gpuclf.datasets import load_cifar10, make_synthetic
from gpuclf.losses import one_hot, softmax_cross_entropy
from gpuclf.models import LinearModel
from gpuclf.plots import import_pyplot


def sigmoid_squared_error(scores, labels, sample_weight=None):
    """Return sum_i w_i sum_c (s(z_ic) - [c = y_i])^2 / 2 and its gradient, w_i by default 1/N."""
    xp = array_namespace(scores)
    outputs = 1 / (1 + xp.exp(-scores))
    errors = outputs - one_hot(labels, int(scores.shape[-1]), dtype=scores.dtype)
    weights = 1 / scores.shape[-2] if sample_weight is None else sample_weight[..., None]
    loss = xp.sum(weights * errors * errors, dtype=xp.float64) / 2
    return loss, weights * errors * outputs * (1 - outputs)  # the slope that causes the trouble


LOSSES = {
    "sigmoid, squared error": sigmoid_squared_error,
    "softmax, cross-entropy": softmax_cross_entropy,
}


def main():
    """Read the options, check the gradient, train, draw."""
    parser = argparse.ArgumentParser(description="A sigmoid with squared error starts slowly.")
    parser.add_argument("--data", choices=["synthetic", "cifar10"], default="synthetic")
    parser.add_argument("--out", default="sigmoid_slow_start.png", help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="few samples and steps")
    options = parser.parse_args()
    import_pyplot()  # if it is missing, say so before the work

    scores, labels = np.random.default_rng(0).normal(0, 3, (6, 4)), np.array([0, 1, 2, 3, 0, 1])
    check = grad_check(
        lambda z: sigmoid_squared_error(z, labels)[0],
        scores,
        sigmoid_squared_error(scores, labels)[1],
    )
    print(f"gradient of the squared error: {check}")
    assert check.passed

    n_samples, n_steps = (300, 20) if options.quick else (5_000, 200)
    if options.data == "cifar10":
        data = load_cifar10()
        X, y = data.X_train[:n_samples], data.y_train[:n_samples]
    else:
        X, y = make_synthetic(n_samples)
    panels = {
        "one neuron, input 1, target 0": neuron(300),
        f"ten classes, {n_samples:,} images ({options.data})": classifiers(X, y, n_steps),
    }
    for curves in panels.values():
        for name, curve in curves.items():
            print(f"{name:24} {curve[0]:.3f} -> {curve[-1]:.3f}")
    draw(panels, options.out)


def neuron(n_steps):
    """Return the output of Nielsen's neuron, which starts at w = b = 2 and should give 0."""
    outputs = {}
    for name, rate in (("squared error", 0.15), ("cross-entropy", 0.15)):
        w = b = 2.0
        curve = outputs[name] = []
        for _ in range(n_steps):
            a = 1 / (1 + np.exp(-(w + b)))
            curve.append(a)
            slope = a * (1 - a) if name == "squared error" else 1.0
            w, b = w - rate * a * slope, b - rate * a * slope
    return outputs


def classifiers(X, y, n_steps):
    """Return the accuracy on the samples, step by step of gradient descent."""
    X = Standardized.fit(X)
    n_features = X.shape[1]
    W = np.random.default_rng(0).normal(0, 10 / np.sqrt(n_features), (n_features, 10))
    accuracies = {}
    for name, loss in LOSSES.items():
        model, curve = LinearModel(name, loss), []
        params = {"W": W.astype(np.float32), "b": np.zeros(10, np.float32)}
        for _ in range(n_steps):
            _, grads = model.objective(params, X, y, reg=0.0)
            params = {name: value - 0.02 * grads[name] for name, value in params.items()}
            scores = model.scores(params, X, precision="float32")
            curve.append(float(np.mean(scores.argmax(axis=1) == y)))
        accuracies[name] = curve
    return accuracies


def draw(panels, out):
    """Draw the two panels side by side."""
    figure, axes = import_pyplot().subplots(1, len(panels), figsize=(10, 4), layout="constrained")
    y_labels = ("output of the neuron", "accuracy")
    for ax, (title, curves), y_label in zip(axes, panels.items(), y_labels, strict=True):
        for name, curve in curves.items():
            ax.plot(curve, label=name, linewidth=1.8)
        ax.set(xlabel="step of gradient descent", ylabel=y_label)
        ax.set_title(title, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    figure.savefig(out, dpi=150)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
