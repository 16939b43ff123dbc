"""Losses of one's own
===================

Softmax with label smoothing, and the squared hinge.

A loss is a function of scores and labels that returns its value and its gradient; everything else,
from gradient checks to searches, takes it from there. Each loss here is held against loops and
against centred differences, and trained beside softmax. The picture has the accuracies.

Run it by ::

    python examples/own_loss.py --data cifar10 --out own_loss.png
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

import gpuclf
from gpuclf.datasets import course_split, load_dataset
from gpuclf.losses import one_hot, softmax, softmax_cross_entropy
from gpuclf.models import LinearModel
from gpuclf.plots import import_pyplot

SMOOTHING = 0.1


def mean_weights(scores, sample_weight):
    """Return the factor of each sample's loss, shape (..., N, 1): 1/N where none is given."""
    return 1 / scores.shape[-2] if sample_weight is None else sample_weight[..., None]


def label_smoothing(scores, labels, sample_weight=None):
    """Cross-entropy with targets that spread SMOOTHING over all classes (Szegedy et al. 2016)."""
    xp, n_classes = gpuclf.array_namespace(scores), int(scores.shape[-1])
    loss, dscores = softmax_cross_entropy(scores, labels, sample_weight)
    weights = mean_weights(scores, sample_weight)
    # What smoothing adds: scores of the true class above the mean score.
    excess = SMOOTHING * (one_hot(labels, n_classes, dtype=scores.dtype) - 1 / n_classes)
    more = weights * excess
    return loss + xp.sum(more * scores, axis=(-2, -1), dtype=xp.float64), dscores + more


def squared_hinge(scores, labels, sample_weight=None):
    """Sum of squared margins (L2-SVM; Tang 2013): its gradient has no jumps."""
    xp = gpuclf.array_namespace(scores)
    is_true = one_hot(labels, int(scores.shape[-1]), dtype=scores.dtype)
    true_scores = xp.sum(is_true * scores, axis=-1, keepdims=True)
    margins = xp.maximum(scores - true_scores + 1, xp.zeros_like(scores)) * (1 - is_true)
    weights = mean_weights(scores, sample_weight)
    dmargins = 2 * weights * margins
    loss = xp.sum(weights * margins * margins, axis=(-2, -1), dtype=xp.float64)
    return loss, dmargins - is_true * xp.sum(dmargins, axis=-1, keepdims=True)


def label_smoothing_of(scores, label):
    """Return the loss of one sample, in a loop."""
    log_probabilities = np.log(softmax(scores))
    loss = 0.0
    for c in range(len(scores)):
        target = SMOOTHING / len(scores) + (1 - SMOOTHING if c == label else 0.0)
        loss -= target * log_probabilities[c]
    return loss


def squared_hinge_of(scores, label):
    """Return the loss of one sample, in a loop."""
    others = (c for c in range(len(scores)) if c != label)
    return sum(max(0.0, scores[c] - scores[label] + 1) ** 2 for c in others)


class LabelSmoothing(gpuclf.SoftmaxClassifier):
    """Softmax regression with smoothed labels."""

    model = LinearModel("label smoothing", label_smoothing, has_logits=True)


class SquaredHinge(gpuclf.SoftmaxClassifier):
    """The linear SVM with squared margins; L-BFGS may train it."""

    model = LinearModel("squared hinge", squared_hinge)


def check(model, of_one_sample):
    """Hold a model's loss against a loop, and its gradient against centred differences."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 7)), rng.integers(4, size=12)
    params = {"W": rng.standard_normal((7, 4)), "b": rng.standard_normal(4)}
    loss, grads = model.objective(params, X, y, reg=0.0)
    scores = X @ params["W"] + params["b"]
    in_a_loop = sum(of_one_sample(*sample) for sample in zip(scores, y, strict=True)) / len(y)
    assert abs(loss - in_a_loop) <= 1e-12 * abs(in_a_loop)

    def loss_at(value, name):
        return model.objective(params | {name: value}, X, y, reg=0.0)[0]

    for name, value in params.items():
        found = gpuclf.grad_check(partial(loss_at, name=name), value, grads[name])
        print(f"{model.name}, gradient of {name}: {found}")
        assert found.passed


def main():
    """Check both losses, train them beside softmax, and draw the accuracies."""
    parser = argparse.ArgumentParser(
        description="Softmax with label smoothing, and the squared hinge."
    )
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("own_loss.png"), help="the picture")
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    check(LabelSmoothing.model, label_smoothing_of)
    check(SquaredHinge.model, squared_hinge_of)

    dataset = load_dataset(arguments.data)
    print(dataset.source)
    sizes = (1_000, 200, 200) if arguments.quick else (49_000, 1_000, 1_000)
    split = course_split(dataset, *sizes)
    common = {"max_iter": 2 if arguments.quick else 10, "random_state": 0}
    _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for classifier in (
        gpuclf.SoftmaxClassifier(learning_rate=0.003, reg=0.05, **common),
        LabelSmoothing(learning_rate=0.003, reg=0.05, **common),
        SquaredHinge(learning_rate=1e-4, reg=0.1, **common),
    ):
        # The first epoch compiles and loads: time what comes after it.
        classifier.fit(split.X_train, split.y_train)
        start = time.perf_counter()
        classifier.fit(split.X_train, split.y_train)
        seconds = (time.perf_counter() - start) / classifier.max_iter
        classifier.fit(split.X_train, split.y_train, X_val=split.X_val, y_val=split.y_val)
        name, test = classifier.model.name, classifier.score(split.X_test, split.y_test)
        print(f"{name:15}: {seconds:.3f} s an epoch, test accuracy {test:.3f}")
        epochs = range(1, classifier.n_iter_ + 1)
        ax.plot(epochs, classifier.val_accuracy_history_, label=name, linewidth=1.8)
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    ax.figure.savefig(arguments.out, dpi=150)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
