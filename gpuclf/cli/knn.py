"""``gpuclf train knn``: nothing to train, the test images are looked up among the others."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table

from gpuclf.cli import output
from gpuclf.cli.options import BackendName, DataName

__all__ = ["train_knn"]


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
    from gpuclf.backend import environment, get_backend, synchronize, to_device
    from gpuclf.benchmark.report import write_json
    from gpuclf.estimators import KNeighborsClassifier

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
