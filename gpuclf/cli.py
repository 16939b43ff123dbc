"""The command line: ``gpuclf bench``, ``gpuclf train`` and ``gpuclf info``."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()


class BackendName(StrEnum):
    """Values of --backend."""

    auto = "auto"
    numpy = "numpy"
    cupy = "cupy"


class DtypeName(StrEnum):
    """Values of --dtype."""

    float32 = "float32"
    float64 = "float64"


class DataName(StrEnum):
    """Values of --data."""

    auto = "auto"
    cifar10 = "cifar10"
    synthetic = "synthetic"


class ModelName(StrEnum):
    """What `gpuclf train` can train."""

    softmax = "softmax"
    two_layer = "two-layer"


class SolverName(StrEnum):
    """Values of --solver."""

    sgd = "sgd"
    lbfgs = "lbfgs"


Backend_ = Annotated[BackendName, typer.Option("--backend", help="Array library to compute with.")]
Dtype = Annotated[DtypeName, typer.Option(help="Floats to compute in.")]
Data = Annotated[
    DataName,
    typer.Option(help="auto: CIFAR-10 if it is on disk, else synthetic; cifar10 may download."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder of CIFAR-10; else $GPUCLF_DATA, else a cache folder.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", dir_okay=False, writable=True, help="Write the result to this file."),
]

# What `gpuclf train` uses where no option says otherwise: chosen on CIFAR-10's validation images.
RECIPES: dict[ModelName, dict[str, Any]] = {
    ModelName.softmax: {"max_iter": 10},
    ModelName.two_layer: {"hidden_size": 512, "max_iter": 6, "batch_size": 256, "augment": True},
}
N_VALIDATION = 1000


def _print_version(wanted: bool) -> None:
    if wanted:
        from gpuclf import __version__

        _say(f"gpuclf {__version__}")
        raise typer.Exit


@app.callback()
def gpuclf(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train and benchmark the classic image classifiers on NumPy and CuPy."""


@app.command()
def bench(
    backend: Backend_ = BackendName.auto,
    dtype: Dtype = DtypeName.float32,
    data: Data = DataName.auto,
    data_dir: DataDir = None,
    seed: Seed = 0,
    samples: Annotated[
        int | None, typer.Option(min=200, help="Use this many training images; default all.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure the ladder: naive loops, textbook NumPy, this library on NumPy and on CuPy."""
    from gpuclf.backend import environment, get_backend
    from gpuclf.benchmark import IMPLEMENTATIONS, Inputs, Row, default_cases, run_case
    from gpuclf.benchmark.report import print_rows, write_json

    _prepare(json)
    if backend is BackendName.cupy:
        get_backend("cupy")  # where it was asked for by name, "not run" would be no answer
    listed = [i for i in IMPLEMENTATIONS if backend != "numpy" or i.array_library != "cupy"]
    rows: list[Row] = []
    with _progress() as progress:
        task = progress.add_task("preparing the data", total=None)
        dataset = _load(data, data_dir, seed)
        n_samples = min(samples or len(dataset.X_train), len(dataset.X_train))
        inputs = Inputs(dataset.X_train[:n_samples], dataset.y_train[:n_samples], dtype, seed)
        cases = default_cases(n_samples)
        progress.update(task, total=len(cases) * len(listed))
        for case in cases:
            rows += run_case(
                case,
                inputs,
                listed,
                lambda what: progress.update(task, description=what, advance=1),
            )
    found = environment()
    size = f"{n_samples:,} x {dataset.X_train.shape[1]:,}, {dtype}"
    _say(f"data: {dataset.source}; {size}")
    _say(f"machine: {_machine_line(found)}")
    print_rows(rows, console)
    if json is not None:
        settings = {"dtype": dtype, "seed": seed, "samples": n_samples, "backend": backend}
        write_json(
            json,
            {
                "dataset": _describe(dataset),
                "settings": settings,
                "environment": found,
                "rows": [row.as_dict() for row in rows],
            },
        )
        _say(f"written to {json}")


@app.command()
def train(
    model: Annotated[ModelName, typer.Argument(help="What to train.")],
    backend: Backend_ = BackendName.auto,
    dtype: Dtype = DtypeName.float32,
    data: Data = DataName.auto,
    data_dir: DataDir = None,
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, or L-BFGS iterations.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its largest; default 0.003 softmax, 0.05 two-layer.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default 200 for softmax, 256 for two-layer.")
    ] = None,
    reg: Annotated[
        float | None, typer.Option(help="Factor of sum(W * W); default 1e-3, 1e-4 two-layer.")
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="two-layer only; default 512.")
    ] = None,
    solver: Annotated[SolverName | None, typer.Option(help="softmax only; default sgd.")] = None,
    json: JsonFile = None,
) -> None:
    """Train a classifier and report its train, validation and test accuracy."""
    from gpuclf.augment import horizontal_flip
    from gpuclf.backend import environment, get_backend, synchronize, to_device
    from gpuclf.benchmark.report import write_json
    from gpuclf.estimators import SoftmaxClassifier, TwoLayerNetClassifier
    from gpuclf.estimators.gradient_classifier import GradientClassifier

    _prepare(json)
    options = {
        "max_iter": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "reg": reg,
        "hidden_size": hidden_size,
        "solver": None if solver is None else str(solver),
    }
    settings = RECIPES[model] | {k: v for k, v in options.items() if v is not None}
    foreign = {"hidden_size"} if model is ModelName.softmax else {"solver"}
    for name in foreign & settings.keys():
        raise typer.BadParameter(f"--{name.replace('_', '-')} does not apply to {model}")
    if settings.get("solver") == "lbfgs" and epochs is None:
        settings["max_iter"] = 60
    augment = horizontal_flip if settings.pop("augment", False) else None
    kind = SoftmaxClassifier if model is ModelName.softmax else TwoLayerNetClassifier
    classifier: GradientClassifier = kind(
        random_state=seed, precision=str(dtype), augment=augment, **settings
    )

    classifier.check_hyperparameters()  # before the data are loaded

    where = get_backend(backend)
    dataset = _load(data, data_dir, seed)
    _say(f"data: {dataset.source}")
    _say(f"on: {where.name} ({where.reason})")
    n_train = len(dataset.X_train) - N_VALIDATION
    parts = {
        "train": (dataset.X_train[:n_train], dataset.y_train[:n_train]),
        "val": (dataset.X_train[n_train:], dataset.y_train[n_train:]),
        "test": (dataset.X_test, dataset.y_test),
    }
    parts = {k: (to_device(X, where), to_device(y, where)) for k, (X, y) in parts.items()}

    with _progress() as progress:
        task = progress.add_task(f"training {model}", total=classifier.max_iter)

        def show(epoch: int, history: Any) -> None:
            recent = history.loss[-len(history.loss) // epoch :]
            line = f"epoch {epoch}: loss {sum(recent) / len(recent):.3f}"
            line += f", validation accuracy {history.val_accuracy[-1]:.3f}"
            progress.update(task, completed=epoch, description=line)
            if not console.is_terminal:
                progress.console.print(line)

        start = time.perf_counter()
        X_val, y_val = parts["val"]
        classifier.fit(*parts["train"], X_val=X_val, y_val=y_val, callback=show)
        synchronize()
        fit_seconds = time.perf_counter() - start
    accuracy = {name: classifier.score(*part) for name, part in parts.items()}

    table = Table(title=f"{model} on {dataset.name}", title_justify="left", title_style="bold")
    for column in ("train accuracy", "validation accuracy", "test accuracy", "time to fit"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{a:.4f}" for a in accuracy.values()), f"{fit_seconds:.1f} s")
    console.print(table)
    if json is not None:
        params = {k: v for k, v in classifier.get_params().items() if k != "augment"}
        params["augment"] = "horizontal_flip" if augment else None
        write_json(
            json,
            {
                "model": model,
                "dataset": _describe(dataset),
                "settings": params | {"backend": where.name},
                "environment": environment(),
                **{f"{name}_accuracy": value for name, value in accuracy.items()},
                "fit_seconds": fit_seconds,
                "loss_history": classifier.loss_history_,
                "val_accuracy_history": classifier.val_accuracy_history_,
            },
        )
        _say(f"written to {json}")


@app.command()
def info(json: JsonFile = None) -> None:
    """Show versions, devices, BLAS and its threads, and why there is no GPU if there is none."""
    from gpuclf.backend import INSTALL_HINT, environment
    from gpuclf.benchmark.report import write_json

    _prepare(json)
    found = environment()
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, version in found["versions"].items():
        table.add_row(name, version)
    table.add_row("Python", f"{found['python']} on {found['platform']}")
    cpu = f"{found['cpu']}, {found['cpu_count']} usable, L2 {found['cpu_l2_bytes'] >> 10:,} KiB"
    table.add_row("CPU", cpu)
    if found["memory_bytes"]:
        table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    for blas in found["blas"]:
        line = f"{blas['library']} {blas['version']}, {blas['threads']} threads"
        table.add_row("BLAS", line + (f", {blas['architecture']}" if blas["architecture"] else ""))
    gpu = found["gpu"]
    table.add_row("GPU", escape(gpu["reason"]))
    if gpu["usable"]:
        table.add_row("", f"compute capability {gpu['compute_capability']}")
        free, total = gpu["memory_free_bytes"] / 2**30, gpu["memory_bytes"] / 2**30
        table.add_row("", f"{free:.1f} of {total:.1f} GiB free, L2 {gpu['l2_bytes'] >> 20} MiB")
        table.add_row("", f"CUDA driver {gpu['cuda_driver']}, runtime {gpu['cuda_runtime']}")
    else:
        table.add_row("", escape(f"to use one: {INSTALL_HINT}"))
    console.print(table)
    if json is not None:
        write_json(json, found)
        _say(f"written to {json}")


def _prepare(json: Path | None) -> None:
    # Better now than after minutes of work whose result could not be written.
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.open("a").close()


def _load(data: DataName, data_dir: Path | None, seed: int) -> Any:
    from gpuclf.datasets import load_dataset

    return load_dataset(str(data), data_dir, seed)


def _describe(dataset: Any) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "train_samples": len(dataset.X_train),
        "test_samples": len(dataset.X_test),
    }


def _machine_line(found: dict[str, Any]) -> str:
    blas = found["blas"][0]["library"] if found["blas"] else "no BLAS found"
    return f"{found['cpu']}, {found['threads']} threads ({blas}); {found['gpu']['reason']}"


def _say(line: str) -> None:
    # Paths and install commands hold brackets, which rich would read as markup.
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def main() -> None:
    """Run the command line; expected errors end in one line, not in a traceback."""
    from gpuclf.backend import BackendUnavailableError

    # Why there is no GPU stands in the output; the library's log line would say it twice.
    logging.getLogger("gpuclf").setLevel(logging.ERROR)
    try:
        app()
    except (BackendUnavailableError, FloatingPointError, MemoryError, OSError, ValueError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
