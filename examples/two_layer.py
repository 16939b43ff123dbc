"""The two-layer net
=================

What hidden units look for, and what the net takes images for.

A linear classifier has one template a class; a hidden layer has as many as there are units, and the
second layer combines them. The picture shows both: templates of hidden units, and test images with
their predictions.

Run it by ::

    python examples/two_layer.py --data cifar10 --out two_layer.png
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gpuclf import TwoLayerNetClassifier
from gpuclf.augment import horizontal_flip
from gpuclf.datasets import course_split, load_dataset
from gpuclf.plots import import_pyplot, plot_samples, plot_templates

N_TEMPLATES, N_IMAGES = 49, 32


def main():
    """Train, and draw the most used hidden units and some predictions."""
    parser = argparse.ArgumentParser(
        description="What hidden units look for, and what the net takes images for."
    )
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("two_layer.png"), help="the picture")
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    dataset = load_dataset(arguments.data)
    print(dataset.source)
    sizes = (1_000, 200, 200) if arguments.quick else (49_000, 1_000, 1_000)
    split = course_split(dataset, *sizes)

    net = TwoLayerNetClassifier(
        hidden_size=100,
        max_iter=2 if arguments.quick else 10,
        learning_rate=0.04,
        reg=1e-3,
        augment=horizontal_flip,
        random_state=0,
    )
    start = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=net.max_iter)
        net.fit(
            *(split.X_train, split.y_train),
            callback=lambda epoch, _: progress.update(task, completed=epoch),
        )
    print(f"{time.perf_counter() - start:.1f} s to fit")
    print(f"train accuracy      {net.score(split.X_train, split.y_train):.3f}")
    print(f"validation accuracy {net.score(split.X_val, split.y_val):.3f}")
    print(f"test accuracy       {net.score(split.X_test, split.y_test):.3f}")

    W1, W2 = net.params_["W1"], net.params_["W2"]
    most_used = np.argsort(-np.linalg.norm(W1, axis=0) * np.linalg.norm(W2, axis=1))[:N_TEMPLATES]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 5.5), width_ratios=[1, 1.6], layout="constrained"
    )
    plot_templates(W1[:, most_used], ax=left)
    left.set_title("hidden units", loc="left", fontsize="medium")
    images = split.X_test[:N_IMAGES]
    plot_samples(
        images, split.y_test[:N_IMAGES], net.predict(images), dataset.class_names, ax=right
    )
    figure.savefig(arguments.out, dpi=150)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
