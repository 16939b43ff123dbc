"""What the commands print with, and the data they load."""

from __future__ import annotations

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

from gpuclf.cli.options import DataName

__all__ = [
    "N_VALIDATION",
    "console",
    "describe",
    "load",
    "machine_line",
    "prepare",
    "prepare_picture",
    "progress",
    "say",
]

console = Console()
N_VALIDATION = 1000  # the last of the training images


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


def load(data: DataName, data_dir: Path | None, seed: int) -> Any:
    """Load the data set that the options name."""
    from gpuclf.datasets import load_dataset

    return load_dataset(str(data), data_dir, seed)


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
