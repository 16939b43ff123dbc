"""What the commands print with, and the data they load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from gpuclf.cli.options import BackendName, DataName, OwnSamples

__all__ = [
    "N_VALIDATION",
    "console",
    "describe",
    "fit_and_score",
    "load",
    "load_for",
    "machine_line",
    "n_validation",
    "parts",
    "prepare",
    "prepare_picture",
    "progress",
    "report",
    "say",
    "table",
    "write",
]

console = Console()
N_VALIDATION = 1000  # the last of the training images; a fifth where that is less


def prepare(json: Path | None) -> None:
    """Raise if the result could not be written: better now than after minutes of work.

    Nothing is left behind, in case that the work ends without a result.
    """
    if json is None:
        return
    missing = [folder for folder in json.parents if not folder.exists()]
    is_new = not json.exists()
    try:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.open("a").close()
        if is_new:
            json.unlink()
    finally:
        for folder in missing:
            if folder.exists():
                folder.rmdir()


def prepare_picture(path: Path | None) -> None:
    """Raise if the picture could not be drawn, or not be written."""
    if path is None:
        return
    from gpuclf.plots.drawing import new_axes

    figure = new_axes(None, (1, 1)).figure
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"{path} must end in one of {', '.join('.' + name for name in sorted(formats))}"
        )
    prepare(path)


def load(data: DataName | OwnSamples, data_dir: Path | None, seed: int) -> Any:
    """Load the data set that the options name, or own samples, in random order."""
    from gpuclf.datasets import load_dataset, load_samples

    if isinstance(data, DataName):
        return load_dataset(str(data), data_dir, seed)
    path, size, test_data, test_fraction = data
    dataset = load_samples(path, size, test_data=test_data, test_fraction=test_fraction, seed=seed)
    order = _mixed(dataset.y_train, seed)
    return dataset._replace(X_train=dataset.X_train[order], y_train=dataset.y_train[order])


def _mixed(y: Any, seed: int) -> Any:
    """Return a random order, one sample of each class first: the last ones are not trained on."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(y))
    first = np.unique(y[order], return_index=True)[1]
    return np.concatenate([order[first], np.delete(order, first)])


def load_for(
    backend: BackendName,
    data: DataName | OwnSamples,
    data_dir: Path | None,
    seed: int,
    per_call: int | None,
) -> tuple[Any, Any]:
    """Load the data set, say which it is and what computes; return it and the backend.

    So many training images are seen by one call: "auto" leaves few of them to the CPU. All if 0;
    where it is None, the GPU is always better.
    """
    from gpuclf.bench.measure.break_even import measured_break_even
    from gpuclf.devices.backends import get_backend

    where = get_backend(backend)  # better refused before the data are loaded
    dataset = load(data, data_dir, seed)
    if per_call is not None:
        where = get_backend(
            backend,
            nbytes=dataset.X_train[: per_call or None].nbytes,
            break_even=measured_break_even() if backend == "auto" else None,
        )
    say(f"data: {dataset.source}")
    say(f"on: {where.name} ({where.reason})")
    return dataset, where


def n_validation(dataset: Any) -> int:
    """Return how many of the training images are kept back to validate on."""
    return min(N_VALIDATION, max(1, len(dataset.X_train) // 5))


def parts(dataset: Any, where: Any) -> dict[str, tuple[Any, Any]]:
    """Return images and labels to train on, to validate on and to test on, on the backend."""
    from gpuclf.devices.backends import to_device

    n_train = len(dataset.X_train) - n_validation(dataset)
    cut = {
        "train": (dataset.X_train[:n_train], dataset.y_train[:n_train]),
        "val": (dataset.X_train[n_train:], dataset.y_train[n_train:]),
        "test": (dataset.X_test, dataset.y_test),
    }
    return {name: (to_device(X, where), to_device(y, where)) for name, (X, y) in cut.items()}


def describe(dataset: Any) -> dict[str, Any]:
    """Return what the JSON says of a data set."""
    return {
        "name": dataset.name,
        "source": dataset.source,
        "train_samples": len(dataset.X_train),
        "test_samples": len(dataset.X_test),
    }


def machine_line(found: dict[str, Any]) -> str:
    """Return the machine in one line, given :func:`gpuclf.devices.machine.environment`."""
    blas = found["blas"][0]["library"] if found["blas"] else "no BLAS found"
    return f"{found['cpu']}, {found['threads']} threads ({blas}); {found['gpu']['reason']}"


def say(line: str) -> None:
    """Print a line as it is: paths and install commands hold brackets, no markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(title: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table of right-aligned columns, after those that are left-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def fit_and_score(
    name: str,
    classifier: Any,
    train: tuple[Any, Any],
    scored: dict[str, tuple[Any, Any]],
    *,
    describe: Callable[[int, Any], str] | None = None,
    **validation: Any,
) -> tuple[dict[str, float], dict[str, float]]:
    """Train with a progress bar, which may describe an epoch; return accuracies and seconds."""
    from gpuclf.devices.backends import synchronize

    n_epochs = getattr(classifier, "max_iter", None)
    with progress() as bar:
        task = bar.add_task(f"training {name}", total=n_epochs)

        def show(epoch: int, history: Any) -> None:
            bar.update(task, completed=epoch, description=describe and describe(epoch, history))

        shown = {} if n_epochs is None else {"callback": show}
        start = time.perf_counter()
        classifier.fit(*train, **validation, **shown)
        synchronize()
        seconds = time.perf_counter() - start
        bar.update(task, description="testing", total=None)
        return {part: classifier.score(*of) for part, of in scored.items()}, {"fit": seconds}


def report(
    title: str, accuracy: dict[str, float], seconds: dict[str, float], **settings: object
) -> dict[str, float]:
    """Print a table of one row, and return its accuracies and times as the JSON names them."""
    row = {name: str(value) for name, value in settings.items()}
    row |= {f"{name} accuracy": f"{value:.4f}" for name, value in accuracy.items()}
    row |= {f"time to {name}": f"{value:.1f} s" for name, value in seconds.items()}
    one = table(title, *(name.replace("val ", "validation ") for name in row))
    one.add_row(*row.values())
    console.print(one)
    return {f"{name}_accuracy": value for name, value in accuracy.items()} | {
        f"{name}_seconds": value for name, value in seconds.items()
    }


def write(json: Path | None, content: dict[str, Any], *, names_machine: bool = False) -> None:
    """Write the result to the file, if one was asked for, and say so.

    The machine is added, unless the content names it.
    """
    if json is None:
        return
    from gpuclf.devices.machine import environment
    from gpuclf.files import write_json

    write_json(json, content if names_machine else content | {"environment": environment()})
    say(f"written to {json}")


def progress(*columns: ProgressColumn) -> Progress:
    """Return a progress bar that leaves nothing behind."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        *columns,
        console=console,
        transient=True,
    )
