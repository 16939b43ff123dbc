"""A linear SVM and a search
=========================

Its learning rate and penalty are found by a search.

The hinge loss wants the true class ahead of each other by a margin, and no more. Learning rate and
penalty are drawn at random, in narrower ranges round by round; the picture shows the validation
accuracy over both, and the templates of the best.

Run it by ::

    python examples/svm.py --data cifar10 --out svm.png
"""

import argparse
from pathlib import Path

from rich.progress import Progress

from gpuclf import LinearSVMClassifier, Standardized
from gpuclf.datasets import course_split, load_dataset
from gpuclf.plots import import_pyplot, plot_search, plot_templates
from gpuclf.search import coarse_to_fine

SPACE = {"learning_rate": (1e-5, 1e-2), "reg": (1e-3, 1e1)}


def main():
    """Search, and draw the heat map and the templates of the best."""
    parser = argparse.ArgumentParser(
        description="Its learning rate and penalty are found by a search."
    )
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("svm.png"), help="the picture")
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    plt = import_pyplot()  # if it is missing, say so before the work

    dataset = load_dataset(arguments.data)
    print(dataset.source)
    sizes = (1_000, 200, 200) if arguments.quick else (49_000, 1_000, 1_000)
    split = course_split(dataset, *sizes)
    rounds, per_round = (2, 2) if arguments.quick else (3, 8)
    with Progress(transient=True) as progress:
        task = progress.add_task("searching", total=rounds * per_round)
        found = coarse_to_fine(
            LinearSVMClassifier(max_iter=1 if arguments.quick else 3, random_state=0),
            SPACE,
            *(Standardized.fit(split.X_train), split.y_train, split.X_val, split.y_val),
            rounds=rounds,
            per_round=per_round,
            rng=0,
            callback=lambda results: progress.update(task, completed=len(results)),
        )
    trained = [row for row in found.results if not row["diverged"]]
    for row in sorted(trained, key=lambda row: row["val_accuracy"], reverse=True)[:5]:
        rate, reg = row["params"]["learning_rate"], row["params"]["reg"]
        print(f"learning rate {rate:8g}, reg {reg:8g}: validation {row['val_accuracy']:.3f}")
    best = found.best_estimator
    print(f"validation accuracy {best.score(split.X_val, split.y_val):.3f}")
    print(f"test accuracy       {best.score(split.X_test, split.y_test):.3f}")

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 4.6), width_ratios=[1, 1.1], layout="constrained"
    )
    plot_search(found.results, ax=left)
    plot_templates(best.params_["W"], class_names=dataset.class_names, ax=right)
    figure.savefig(arguments.out, dpi=150)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
