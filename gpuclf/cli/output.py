"""What the commands print with, and the data they load."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import combinations
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
from rich.text import Text

from gpuclf import interrupts
from gpuclf.cli.options import BackendName, DataName, OwnSamples
from gpuclf.cli.screen import Screen
from gpuclf.files import check_writable, is_standard_output, write_json, write_whole

__all__ = [
    "N_VALIDATION",
    "begin",
    "complain",
    "console",
    "describe",
    "finished",
    "fit_and_score",
    "has_failed",
    "if_interrupted",
    "keep_finished",
    "known",
    "load",
    "load_for",
    "lose",
    "machine_line",
    "n_validation",
    "parts",
    "prepare",
    "prepare_picture",
    "progress",
    "report",
    "save",
    "say",
    "table",
    "write",
    "write_picture",
]

screen = Screen()
console = Console(file=screen)  # type: ignore[arg-type]  # it writes and flushes
N_VALIDATION = 1000  # the last of the training images; a fifth where that is less


class _Command:
    """What is known of the command that runs."""

    def __init__(self) -> None:
        self.failed = False  # an output could not be written
        self.json: Path | None = None
        self.known: dict[str, Any] = {}
        self.finished = False  # a part of what is known took time
        self.keep: Callable[[], str] = _keep_known


_command: _Command


def begin() -> None:
    """Forget the command before."""
    global _command
    _command = _Command()
    screen.open(on_stderr=False)


def prepare(json: Path | None = None, **others: Path | None) -> None:
    """Raise if a result could not be written: better now than after minutes of work.

    Nothing is left behind, in case that the work ends without a result. Files are named by their
    options; where one is standard output, what is said goes to standard error.
    """
    _command.json = json
    paths = {f"--{name}": path for name, path in {"json": json, **others}.items() if path}
    for option, path in paths.items():
        with interrupts.deferred():
            try:
                check_writable(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{option} cannot be written: {error}") from None
    for (one, path), (other, another) in combinations(paths.items(), 2):
        if _is_same(path, another):
            raise ValueError(f"{one} and {other} name the same file, {path}: name two")
    screen.open(on_stderr=any(map(is_standard_output, paths.values())))


def _is_same(path: Path, other: Path) -> bool:
    if is_standard_output(path) or is_standard_output(other):
        return is_standard_output(path) and is_standard_output(other)
    if path.exists() and other.exists():
        return path.is_file() and path.samefile(other)  # /dev/null takes whatever there is
    return path.resolve() == other.resolve()


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
    with interrupts.deferred():
        check_writable(path)


def write_picture(path: Path, ax: Any) -> None:
    """Write what was drawn, whole or not at all."""
    drawn = io.BytesIO()
    ax.figure.savefig(drawn, dpi=150, format=path.suffix[1:].lower())
    write_whole(path, drawn.getvalue())


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


def complain(line: str, word: str = "error") -> None:
    """Print a line to standard error."""
    Console(file=Screen(on_stderr=True)).print(  # type: ignore[arg-type]
        Text.assemble((f"{word}: ", "red"), line), soft_wrap=True
    )


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
            finished(epochs=epoch, **_histories(history))
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


def _histories(history: Any) -> dict[str, Any]:
    names = ("loss", "val_accuracy", "train_accuracy")
    return {f"{name}_history": getattr(history, name) for name in names}


# ------------------------------------------------------------------------------------ outputs


def save(path: Path | None, write: Callable[[Path], None], word: str = "written") -> bool:
    """Write an output by itself: if that fails, it is said, and no other is lost by it.

    The command then ends with exit code 1. Returns whether there is an output now.
    """
    if path is None:
        return False
    try:
        write(path)
    except Exception as error:
        lose(path, error, word)
        return False
    if not is_standard_output(path):
        say(f"{word} to {path}")
    return True


def lose(path: Path, error: Exception, word: str = "written") -> None:
    """Say that there is no such output, for which the command ends with exit code 1."""
    _command.failed = True
    complain(f"{path} could not be {word}: {error}")


def write(json: Path | None, content: dict[str, Any], *, names_machine: bool = False) -> None:
    """Write the result to the file, if one was asked for, and say so.

    The machine is added, unless the content names it.
    """
    with interrupts.deferred():
        save(json, lambda path: write_json(path, _with_machine(content, names_machine)))
        if_interrupted(lambda: "when all was done")


def _with_machine(content: dict[str, Any], names_machine: bool) -> dict[str, Any]:
    from gpuclf.devices.machine import environment

    return content if names_machine else content | {"environment": environment()}


def has_failed() -> bool:
    """Return whether something could not be written, the screen included."""
    return _command.failed or screen.has_failed


# ---------------------------------------------------------------------- an interrupted command


def known(**content: Any) -> None:
    """Add to what ``--json`` keeps if the command is interrupted."""
    _command.known |= content


def finished(**content: Any) -> None:
    """Add a result to what is kept if the command is interrupted."""
    known(**content)
    _command.finished = True


def if_interrupted(keep: Callable[[], str]) -> None:
    """Call this where the command is interrupted; it returns what is said behind "interrupted"."""
    _command.keep = keep


def keep_finished() -> None:
    """Keep what an interrupted command has finished, and say in a line what that is."""
    complain(_command.keep(), "interrupted")


def _keep_known() -> str:
    json, there = _command.json, _command.json is not None and _command.json.exists()
    if not _command.known or (there and not _command.finished):
        return "nothing was finished, and nothing is written"
    if json is None:
        return "nothing is kept without --json"
    content = {"incomplete": True} | _command.known
    if not save(json, lambda path: write_json(path, _with_machine(content, False))):
        return "nothing is kept"
    what = "what was finished" if _command.finished else "the settings; nothing was finished"
    return f"{json} has {what}, marked as incomplete"


_command = _Command()


class _Progress(Progress):
    """Where an interrupt that something has swallowed is raised again: each command comes by."""

    def update(self, *args: Any, **options: Any) -> None:
        interrupts.check()
        super().update(*args, **options)


def progress(*columns: ProgressColumn) -> Progress:
    """Return a progress bar that leaves nothing behind."""
    return _Progress(
        SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        *columns,
        console=console,
        transient=True,
    )
