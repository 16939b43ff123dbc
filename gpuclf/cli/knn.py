"""k-NN on the command line: nothing to train, images are looked up among the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from gpuclf.cli import output
from gpuclf.cli.options import BackendName, DataName

if TYPE_CHECKING:
    from gpuclf.search import SearchResult

__all__ = ["search_knn", "train_knn"]


def train_knn(
    n_neighbors: int,
    metric: str,
    backend: BackendName,
    data: DataName,
    data_dir: Path | None,
    seed: int,
    json: Path | None,
) -> None:
    """Classify the test images by their nearest training images and report the accuracy."""
    from gpuclf.devices.backends import get_backend, synchronize, to_device
    from gpuclf.devices.machine import environment
    from gpuclf.estimators import KNeighborsClassifier
    from gpuclf.files import write_json

    where = get_backend(backend)
    dataset = output.load(data, data_dir, seed)
    output.say(f"data: {dataset.source}")
    output.say(f"on: {where.name} ({where.reason})")
    classifier = KNeighborsClassifier(n_neighbors, metric=metric, verbose=True)
    classifier.fit(to_device(dataset.X_train, where), to_device(dataset.y_train, where))
    start = time.perf_counter()
    accuracy = classifier.score(to_device(dataset.X_test, where), dataset.y_test)
    synchronize()
    seconds = time.perf_counter() - start

    table = Table(title=f"knn on {dataset.name}", title_justify="left", title_style="bold")
    for column in ("neighbours", "metric", "test accuracy", "time to predict"):
        table.add_column(column, justify="right")
    table.add_row(str(n_neighbors), metric, f"{accuracy:.4f}", f"{seconds:.1f} s")
    output.console.print(table)
    if json is not None:
        write_json(
            json,
            {
                "model": "knn",
                "dataset": output.describe(dataset),
                "settings": {"n_neighbors": n_neighbors, "metric": metric, "backend": where.name},
                "environment": environment(),
                "test_accuracy": accuracy,
                "predict_seconds": seconds,
            },
        )
        output.say(f"written to {json}")


def search_knn(ks: list[int], metric: str, X: Any, y: Any, X_val: Any, y_val: Any) -> SearchResult:
    """Score every k from one search for the largest; each row has an equal share of its time."""
    from gpuclf.models.neighbors import accuracies_of_ks, check_n_neighbors
    from gpuclf.search import SearchResult, best_row

    for k in ks:
        check_n_neighbors(k, len(X))
    start = time.perf_counter()
    step = max(1, len(y) // len(y_val))
    scored = {"validation": (X_val, y_val), "training": (X[::step], y[::step])}
    accuracies = {}
    with output.progress() as progress:
        task = progress.add_task("")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        for name, (images, labels) in scored.items():
            progress.reset(task, description=f"looking up {name} images")
            accuracies[name] = accuracies_of_ks(images, labels, X, y, ks, metric, callback=show)
    seconds = (time.perf_counter() - start) / len(ks)
    results = [
        {
            "round": 0,
            "params": {"n_neighbors": k},
            "val_accuracy": val_accuracy,
            "train_accuracy": train_accuracy,
            "seconds": seconds,
            "diverged": False,
        }
        for k, val_accuracy, train_accuracy in zip(ks, *accuracies.values(), strict=True)
    ]
    best = best_row(results)
    assert best is not None
    return SearchResult(results, best["params"], best["val_accuracy"])
