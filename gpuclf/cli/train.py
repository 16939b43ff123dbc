"""``gpuclf train``: one classifier, trained and scored."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuclf import interrupts
from gpuclf.cli import options, output
from gpuclf.cli.following import Log, described, keep_model, logging_to
from gpuclf.cli.knn import train_knn
from gpuclf.cli.recipes import RECIPES, augmentation, given, refuse_foreign

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
        int | None,
        typer.Option(min=1, help="Default 200, two-layer on CIFAR-10 256; of few, a tenth."),
    ] = None,
    reg: Annotated[
        float | None,
        typer.Option(help="Factor of sum(W * W); default 1e-3 softmax, 0.03 svm, 1e-4 two-layer."),
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="two-layer only; default 512.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="two-layer only: share of hidden units left out; default 0."),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Mirror half of the images; default two-layer on CIFAR-10 only.",
        ),
    ] = None,
    shift: Annotated[
        int | None,
        typer.Option(min=1, help="Move each image by up to so many pixels each way; default not."),
    ] = None,
    solver: Annotated[
        SolverName | None, typer.Option(help="softmax, two-layer; default sgd.")
    ] = None,
    neighbors: Annotated[int | None, typer.Option(min=1, help="knn only; default 5.")] = None,
    metric: options.MetricOption = None,
    checkpoint: options.CheckpointOption = None,
    every: options.EveryOption = None,
    resume: options.ResumeOption = False,
    json: options.JsonOption = None,
    save: options.SaveOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, writable=True, help="Draw losses and accuracies; not knn."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            dir_okay=False,
            writable=True,
            help="Write a line an epoch to this file, as it is trained; gpuclf runs compares them.",
        ),
    ] = None,
) -> None:
    """Train a classifier, report train, validation and test accuracy (knn: test accuracy only)."""
    from gpuclf.devices.machine import environment

    output.prepare_picture(plot)
    output.prepare(json, save=save, log=log, plot=plot)
    data = options.chosen_data(data_name, data_dir, image_size, test_data, test_fraction)
    chosen = given(max_iter=epochs, learning_rate=learning_rate, batch_size=batch_size, reg=reg)
    chosen |= given(hidden_size=hidden_size, dropout=dropout, solver=solver)
    chosen |= given(n_neighbors=neighbors, metric=metric)
    recipe = RECIPES[model]
    beside = given(plot=plot, flip=flip, shift=shift)
    refuse_foreign(model, chosen | beside, beside if recipe.by_gradients else ())
    checkpoints = options.chosen_checkpoints(model, checkpoint, every, resume)
    settings = recipe.training | chosen
    if batch_size is None and isinstance(data, options.OwnSamples):
        settings.pop("batch_size", None)  # fewer than CIFAR-10's, or a batch may be all there is
    is_lbfgs = solver is SolverName.lbfgs
    if is_lbfgs and (flip or shift):
        raise typer.BadParameter(
            f"--{'flip' if flip else 'shift'} draws anew for each batch, and L-BFGS sees all "
            "samples at once: leave it out with lbfgs"
        )
    if flip is None:  # a digit mirrored is another sign
        flip = recipe.flips and not isinstance(data, options.OwnSamples) and not is_lbfgs
    if is_lbfgs and epochs is None:
        settings["max_iter"] = LBFGS_ITERATIONS
    per_call = None
    if recipe.by_gradients:
        classifier = recipe.make(settings | {"precision": str(dtype), "random_state": seed})
        classifier.check_hyperparameters()  # before the data are loaded
        per_call = classifier.samples_of_step(1 << 30) if classifier.solver == "sgd" else 0
    else:
        classifier = recipe.make(settings)
    dataset, where = output.load_for(backend, data, data_dir, seed, per_call)
    shown = settings
    if recipe.by_gradients:
        classifier.augment, named = augmentation(flip, shift, dataset)
        shown = classifier.get_params() | {"augment": named}
    about = described(model, dataset, shown | {"backend": where.name})
    output.known(**about)
    with logging_to(log) as follow:
        follow.write("start", about | {"environment": environment()})
        if recipe.by_gradients:
            results = _fit(model, classifier, dataset, where, follow, checkpoints)
        else:
            results = _look_up(model, classifier, dataset, where)
        follow.write("result", results)
    histories = {
        name.removesuffix("_"): getattr(classifier, name)
        for name in ("loss_history_", "val_accuracy_history_", "train_accuracy_history_")
        if recipe.by_gradients
    }
    with interrupts.deferred():
        output.save(
            save,
            lambda path: keep_model(path, classifier, dataset, about | results, data, seed),
            "model saved",
        )
        output.write(json, about | results | histories)
        output.save(plot, lambda path: _draw(path, classifier), "drawn")


def _fit(
    model: str,
    classifier: Any,
    dataset: Any,
    where: Any,
    follow: Log,
    checkpoints: dict[str, Any],
) -> dict[str, float]:
    """Train by gradients, and report."""
    parts = output.parts(dataset, where)
    X_val, y_val = parts["val"]

    def describe(epoch: int, history: Any) -> str:
        follow.write_epoch(epoch, history)
        recent = history.loss[-len(history.loss) // epoch :]
        line = f"epoch {epoch}: loss {sum(recent) / len(recent):.3f}"
        output.say(f"{line}, validation accuracy {history.val_accuracy[-1]:.3f}")
        return f"training {model}, {epoch} of {classifier.max_iter} epochs"

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="L-BFGS stopped at max_iter")  # said below
        accuracy, seconds = output.fit_and_score(
            *(model, classifier, parts["train"], parts), describe=describe,
            X_val=X_val, y_val=y_val, **checkpoints,
        )  # fmt: skip
    if classifier.solver == "sgd":  # one that had ended is resumed without an epoch
        follow.write_epoch(classifier.n_iter_, classifier.history_)
    if classifier.history_.reached_max_iter:
        n_iter = classifier.max_iter
        output.say(f"L-BFGS had not converged after {n_iter} iterations (--epochs)")
    return output.report(f"{model} on {dataset.name}", accuracy, seconds)


def _look_up(model: str, classifier: Any, dataset: Any, where: Any) -> dict[str, float]:
    """Look the test images up among the training images, and report."""
    accuracy, seconds = train_knn(classifier, dataset, where)
    names = {"neighbours": classifier.n_neighbors, "metric": classifier.metric}
    return output.report(f"{model} on {dataset.name}", accuracy, seconds, **names)


def _draw(path: Path, classifier: Any) -> None:
    from gpuclf.plots import plot_history

    output.write_picture(path, plot_history(classifier))
