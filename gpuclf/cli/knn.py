"""k-NN on the command line: nothing to train, images are looked up among the others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gpuclf.cli import output

if TYPE_CHECKING:
    from gpuclf.search import SearchResult

__all__ = ["search_knn", "train_knn"]


def train_knn(classifier: Any, dataset: Any, where: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Classify the test images by all training images; return the accuracy and the seconds."""
    from gpuclf.devices.backends import synchronize, to_device

    classifier.verbose = True
    classifier.fit(to_device(dataset.X_train, where), to_device(dataset.y_train, where))
    start = time.perf_counter()
    accuracy = classifier.score(to_device(dataset.X_test, where), dataset.y_test)
    synchronize()
    classifier.verbose = False  # a model that is kept need not show bars
    return {"test": accuracy}, {"predict": time.perf_counter() - start}


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
