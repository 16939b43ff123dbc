"""Softmax regression
==================

The first classifier of CS231n that learns templates.

Each class has one image as its template; a score is how well a sample matches it. The picture shows
the templates that training found, and the loss on the way there.

Run it by ::

    python examples/softmax.py --data cifar10 --out softmax.png
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gpuclf import SoftmaxClassifier, softmax_loss_vectorized
from gpuclf.datasets import course_split, load_dataset
from gpuclf.plots import import_pyplot, plot_history, plot_templates


def main():
    """Check the first loss, train, and draw the templates."""
    parser = argparse.ArgumentParser(
        description="The first classifier of CS231n that learns templates."
    )
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("softmax.png"), help="the picture")
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    dataset = load_dataset(arguments.data)
    print(dataset.source)
    sizes = (1_000, 200, 200) if arguments.quick else (49_000, 1_000, 1_000)
    split = course_split(dataset, *sizes)

    # Before training no class is preferred: the loss must be the logarithm of their number.
    W = np.zeros((split.X_dev.shape[1], 10))
    loss, _ = softmax_loss_vectorized(W, split.X_dev, split.y_dev, reg=0.0)
    print(f"loss at W = 0: {loss:.6f}; log(10) = {math.log(10):.6f}")

    classifier = SoftmaxClassifier(
        max_iter=2 if arguments.quick else 10, learning_rate=0.003, reg=0.05, random_state=0
    )
    start = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=classifier.max_iter)
        classifier.fit(
            *(split.X_train, split.y_train),
            X_val=split.X_val,
            y_val=split.y_val,
            callback=lambda epoch, _: progress.update(task, completed=epoch),
        )
    print(f"{time.perf_counter() - start:.1f} s to fit")
    print(f"train accuracy      {classifier.score(split.X_train, split.y_train):.3f}")
    print(f"validation accuracy {classifier.score(split.X_val, split.y_val):.3f}")
    print(f"test accuracy       {classifier.score(split.X_test, split.y_test):.3f}")

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 4.2), width_ratios=[1.2, 1], layout="constrained"
    )
    plot_templates(classifier.params_["W"], class_names=dataset.class_names, ax=left)
    plot_history(classifier.history_, ax=right)
    figure.savefig(arguments.out, dpi=150)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
