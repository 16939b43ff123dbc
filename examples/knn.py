"""k nearest neighbours
====================

Cross-validation over k, then the test set.

Nothing is trained: an image gets the label that most of its nearest training images have. How many
to ask is found by cross-validation; the picture shows the accuracy of every fold, and what the best
k takes some test images for. On real photographs, near in pixels is often near in background only.

Run it by ::

    python examples/knn.py --data cifar10 --out knn.png
"""

import argparse
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gpuclf import KNeighborsClassifier
from gpuclf.datasets import course_split, load_dataset
from gpuclf.models.neighbors import cross_validate_k
from gpuclf.plots import import_pyplot, plot_knn_cross_validation, plot_samples

KS = [1, 3, 5, 8, 10, 12, 15, 20, 50, 100]
N_IMAGES = 32


def main():
    """Find k on the training images, and use it on the test images."""
    parser = argparse.ArgumentParser(description="Cross-validation over k, then the test set.")
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("knn.png"), help="the picture")
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    dataset = load_dataset(arguments.data)
    print(dataset.source)
    # The course's sizes for this exercise; with all 50,000 images, k = 1 is best.
    split = course_split(dataset, *((600, 0, 100) if arguments.quick else (5_000, 0, 500)))
    with Progress(transient=True) as progress:
        task = progress.add_task("cross-validating")
        accuracies = cross_validate_k(
            *(split.X_train, split.y_train, KS),
            n_folds=5,
            callback=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for k, folds in accuracies.items():
        print(f"k = {k:3}: accuracy {np.mean(folds):.3f}, standard deviation {np.std(folds):.3f}")
    best_k = max(KS, key=lambda k: np.mean(accuracies[k]))

    classifier = KNeighborsClassifier(best_k).fit(split.X_train, split.y_train)
    predicted = classifier.predict(split.X_test)
    print(f"test accuracy of k = {best_k}: {np.mean(predicted == split.y_test):.3f}")

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 5), width_ratios=[1, 1.4], layout="constrained"
    )
    plot_knn_cross_validation(accuracies, ax=left)
    shown = slice(N_IMAGES)
    plot_samples(
        *(split.X_test[shown], split.y_test[shown], predicted[shown], dataset.class_names),
        ax=right,
    )
    figure.savefig(arguments.out, dpi=150)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
