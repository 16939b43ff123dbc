"""``gpuclf train``: one classifier, trained and scored."""

from __future__ import annotations

import warnings
from enum import StrEnum
from typing import Annotated, Any

import typer

from gpuclf.cli import options, output
from gpuclf.cli.knn import train_knn
from gpuclf.cli.recipes import RECIPES, given, refuse_foreign

__all__ = ["train"]


SolverName = StrEnum("SolverName", ["sgd", "lbfgs"])
LBFGS_ITERATIONS = 60


def train(
    model: Annotated[options.ModelName, typer.Argument(help="What to train.")],
    backend: options.BackendOption = options.BackendName.auto,
    dtype: options.DtypeOption = options.DtypeName.float32,
    data_name: options.SamplesOption = "auto",
    data_dir: options.DataDirOption = None,
    image_size: options.ImageSizeOption = None,
    test_data: options.TestDataOption = None,
    test_fraction: options.TestFractionOption = None,
    seed: options.SeedOption = 0,
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
    metric: options.MetricOption = None,
    json: options.JsonOption = None,
) -> None:
    """Train a classifier, report train, validation and test accuracy (knn: test accuracy only)."""
    output.prepare(json)
    data = options.chosen_data(data_name, data_dir, image_size, test_data, test_fraction)
    chosen = given(max_iter=epochs, learning_rate=learning_rate, batch_size=batch_size, reg=reg)
    chosen |= given(hidden_size=hidden_size, solver=solver, n_neighbors=neighbors, metric=metric)
    refuse_foreign(model, chosen)
    recipe = RECIPES[model]
    settings = recipe.training | chosen
    if isinstance(data, options.OwnSamples):
        settings.pop("augment", None)  # a digit mirrored is another sign
    if solver is SolverName.lbfgs and epochs is None:
        settings["max_iter"] = LBFGS_ITERATIONS
    title = f"{model} on {{}}"
    if not recipe.by_gradients:
        dataset, where = output.load_for(backend, data, data_dir, seed, per_call=None)
        accuracy, seconds = train_knn(recipe.make(settings), dataset, where)
        names = {"neighbours": settings["n_neighbors"], "metric": settings["metric"]}
        results = output.report(title.format(dataset.name), accuracy, seconds, **names)
    else:
        classifier = recipe.make(settings | {"precision": str(dtype), "random_state": seed})
        classifier.check_hyperparameters()  # before the data are loaded
        per_call = classifier.batch_size if classifier.solver == "sgd" else 0
        dataset, where = output.load_for(backend, data, data_dir, seed, per_call)
        parts = output.parts(dataset, where)
        X_val, y_val = parts["val"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="L-BFGS stopped at max_iter")  # said below
            accuracy, seconds = output.fit_and_score(
                *(model, classifier, parts["train"], parts), describe=_epoch_line,
                X_val=X_val, y_val=y_val,
            )  # fmt: skip
        if classifier.history_.reached_max_iter:
            n_iter = classifier.max_iter
            output.say(f"L-BFGS had not converged after {n_iter} iterations (--epochs)")
        results = output.report(title.format(dataset.name), accuracy, seconds)
        for name in ("loss_history", "val_accuracy_history", "train_accuracy_history"):
            results[name] = getattr(classifier, f"{name}_")
        settings = classifier.get_params() | {"augment": settings.get("augment")}
    settings["backend"] = where.name
    described = {"model": model, "dataset": output.describe(dataset), "settings": settings}
    output.write(json, described | results)


def _epoch_line(epoch: int, history: Any) -> str:
    """Return what is said of an epoch; where there is no terminal, print it too."""
    recent = history.loss[-len(history.loss) // epoch :]
    line = f"epoch {epoch}: loss {sum(recent) / len(recent):.3f}"
    line += f", validation accuracy {history.val_accuracy[-1]:.3f}"
    if not output.console.is_terminal:
        output.console.print(line)
    return line
