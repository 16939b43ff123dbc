"""``gpuclf train``: one classifier, trained and scored."""

from __future__ import annotations

import time
import warnings
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from gpuclf.cli import output
from gpuclf.cli.knn import train_knn
from gpuclf.cli.options import (
    BackendName,
    BackendOption,
    DataDirOption,
    DataName,
    DataOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    MetricName,
    ModelName,
    SeedOption,
    refuse_foreign,
)

__all__ = ["train"]


class SolverName(StrEnum):
    """Values of --solver."""

    sgd = "sgd"
    lbfgs = "lbfgs"


# What `gpuclf train` uses where no option says otherwise: chosen on CIFAR-10's validation images.
RECIPES: dict[ModelName, dict[str, Any]] = {
    ModelName.softmax: {"max_iter": 10},
    ModelName.svm: {"max_iter": 10},
    ModelName.two_layer: {"hidden_size": 512, "max_iter": 6, "batch_size": 256, "augment": True},
}
_BY_GRADIENTS = {"max_iter", "learning_rate", "batch_size", "reg"}
APPLICABLE: dict[ModelName, set[str]] = {
    ModelName.softmax: _BY_GRADIENTS | {"solver"},
    ModelName.svm: _BY_GRADIENTS,
    ModelName.two_layer: _BY_GRADIENTS | {"hidden_size"},
    ModelName.knn: {"neighbors", "metric"},
}


def train(
    model: Annotated[ModelName, typer.Argument(help="What to train.")],
    backend: BackendOption = BackendName.auto,
    dtype: DtypeOption = DtypeName.float32,
    data: DataOption = DataName.auto,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, or L-BFGS iterations.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its largest; default 0.003 softmax, 0.0003 svm, 0.05 two-layer."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default 200, two-layer 256.")
    ] = None,
    reg: Annotated[
        float | None,
        typer.Option(help="Factor of sum(W * W); default 1e-3 softmax, 0.03 svm, 1e-4 two-layer."),
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="two-layer only; default 512.")
    ] = None,
    solver: Annotated[SolverName | None, typer.Option(help="softmax only; default sgd.")] = None,
    neighbors: Annotated[int | None, typer.Option(min=1, help="knn only; default 5.")] = None,
    metric: Annotated[MetricName | None, typer.Option(help="knn only; default l2.")] = None,
    json: JsonOption = None,
) -> None:
    """Train a classifier, report train, validation and test accuracy (knn: test accuracy only)."""
    from gpuclf.augment import horizontal_flip
    from gpuclf.bench.measure.break_even import measured_break_even
    from gpuclf.devices.backends import get_backend, synchronize, to_device
    from gpuclf.devices.machine import environment
    from gpuclf.estimators import LinearSVMClassifier, SoftmaxClassifier, TwoLayerNetClassifier
    from gpuclf.estimators.gradient_classifier import GradientClassifier
    from gpuclf.files import write_json

    output.prepare(json)
    options = {
        "max_iter": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "reg": reg,
        "hidden_size": hidden_size,
        "solver": None if solver is None else str(solver),
    }
    given = options | {"neighbors": neighbors, "metric": metric}
    refuse_foreign(model, [k for k, v in given.items() if v is not None], APPLICABLE[model])
    if model is ModelName.knn:
        return train_knn(neighbors or 5, str(metric or "l2"), backend, data, data_dir, seed, json)
    settings = RECIPES[model] | {k: v for k, v in options.items() if v is not None}
    if settings.get("solver") == "lbfgs" and epochs is None:
        settings["max_iter"] = 60
    augment = horizontal_flip if settings.pop("augment", False) else None
    kinds: dict[ModelName, type[GradientClassifier]] = {
        ModelName.softmax: SoftmaxClassifier,
        ModelName.svm: LinearSVMClassifier,
        ModelName.two_layer: TwoLayerNetClassifier,
    }
    classifier = kinds[model](random_state=seed, precision=str(dtype), augment=augment, **settings)

    classifier.check_hyperparameters()  # before the data are loaded

    if backend is BackendName.cupy:
        get_backend("cupy")  # better refused before the data are loaded
    dataset = output.load(data, data_dir, seed)
    per_call = None if classifier.solver != "sgd" else classifier.batch_size
    where = get_backend(
        backend,
        nbytes=dataset.X_train[:per_call].nbytes,
        break_even=measured_break_even() if backend == "auto" else None,
    )
    output.say(f"data: {dataset.source}")
    output.say(f"on: {where.name} ({where.reason})")
    n_train = len(dataset.X_train) - output.N_VALIDATION
    parts = {
        "train": (dataset.X_train[:n_train], dataset.y_train[:n_train]),
        "val": (dataset.X_train[n_train:], dataset.y_train[n_train:]),
        "test": (dataset.X_test, dataset.y_test),
    }
    parts = {k: (to_device(X, where), to_device(y, where)) for k, (X, y) in parts.items()}

    with output.progress() as progress:
        task = progress.add_task(f"training {model}", total=classifier.max_iter)

        def show(epoch: int, history: Any) -> None:
            recent = history.loss[-len(history.loss) // epoch :]
            line = f"epoch {epoch}: loss {sum(recent) / len(recent):.3f}"
            line += f", validation accuracy {history.val_accuracy[-1]:.3f}"
            progress.update(task, completed=epoch, description=line)
            if not output.console.is_terminal:
                progress.console.print(line)

        start = time.perf_counter()
        X_val, y_val = parts["val"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="L-BFGS stopped at max_iter")  # said below
            classifier.fit(*parts["train"], X_val=X_val, y_val=y_val, callback=show)
        synchronize()
        fit_seconds = time.perf_counter() - start
    if classifier.history_.reached_max_iter:
        output.say(f"L-BFGS had not converged after {classifier.max_iter} iterations (--epochs)")
    accuracy = {name: classifier.score(*part) for name, part in parts.items()}

    table = Table(title=f"{model} on {dataset.name}", title_justify="left", title_style="bold")
    for column in ("train accuracy", "validation accuracy", "test accuracy", "time to fit"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{a:.4f}" for a in accuracy.values()), f"{fit_seconds:.1f} s")
    output.console.print(table)
    if json is not None:
        params = {k: v for k, v in classifier.get_params().items() if k != "augment"}
        params["augment"] = "horizontal_flip" if augment else None
        write_json(
            json,
            {
                "model": model,
                "dataset": output.describe(dataset),
                "settings": params | {"backend": where.name},
                "environment": environment(),
                **{f"{name}_accuracy": value for name, value in accuracy.items()},
                "fit_seconds": fit_seconds,
                "loss_history": classifier.loss_history_,
                "val_accuracy_history": classifier.val_accuracy_history_,
                "train_accuracy_history": classifier.train_accuracy_history_,
            },
        )
        output.say(f"written to {json}")
