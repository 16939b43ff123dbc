"""``gpuclf search``: hyper-parameters, coarse to fine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from gpuclf.cli import output
from gpuclf.cli.knn import search_knn
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
    PlotOption,
    SeedOption,
    refuse_foreign,
)

__all__ = ["search"]


@dataclass(frozen=True)
class Recipe:
    """How a model is searched: the candidates' settings, and where they differ."""

    classifier: str  # its name in gpuclf
    space: dict[str, Any]
    mean_image_space: dict[str, Any] = field(default_factory=dict)  # where pixels are not scaled
    settings: dict[str, Any] = field(default_factory=dict)
    final_epochs: int | None = None  # None: not trained by gradients


# Ranges and epochs: chosen on CIFAR-10's validation images, for two minutes on two cores. Of pixels
# s times as large, a linear model wants 1/s^2 of the learning rate and s^2 of the penalty; s = 64.
RECIPES = {
    ModelName.softmax: Recipe(
        "SoftmaxClassifier",
        {"learning_rate": (1e-4, 1e-1), "reg": (1e-5, 1e0)},
        {"learning_rate": (2.5e-8, 2.5e-5), "reg": (4e-2, 4e3)},
        {"max_iter": 3},
        final_epochs=10,
    ),
    ModelName.svm: Recipe(
        "LinearSVMClassifier",
        {"learning_rate": (1e-5, 1e-2), "reg": (1e-4, 1e1)},
        {"learning_rate": (2.5e-9, 2.5e-6), "reg": (4e-1, 4e4)},
        {"max_iter": 3},
        final_epochs=10,
    ),
    ModelName.two_layer: Recipe(
        "TwoLayerNetClassifier",
        {"learning_rate": (5e-3, 5e-1), "reg": (1e-6, 1e-2)},
        {"learning_rate": (1e-5, 1e-3), "reg": (1e-4, 1e1)},
        {"max_iter": 2, "hidden_size": 100},
        final_epochs=10,
    ),
    ModelName.knn: Recipe(
        "KNeighborsClassifier", {"n_neighbors": [1, 3, 5, 8, 10, 12, 15, 20, 50, 100]}
    ),
}
N_LEADERS = 8


def search(
    model: Annotated[ModelName, typer.Argument(help="What to search for.")],
    backend: BackendOption = BackendName.auto,
    dtype: DtypeOption = DtypeName.float32,
    data: DataOption = DataName.auto,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Each in narrower ranges around the best so far; default 3."),
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="In a round; default 8.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a candidate; default 3, two-layer 2.")
    ] = None,
    final_epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the best one's training; default 10.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Train the candidates on this many images; default all."),
    ] = None,
    learning_rate: Annotated[
        tuple[float, float] | None, typer.Option(help="Range to search.", metavar="LOW HIGH")
    ] = None,
    reg: Annotated[
        tuple[float, float] | None, typer.Option(help="Range to search.", metavar="LOW HIGH")
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="two-layer only; default 100.")
    ] = None,
    mean_image: Annotated[
        bool,
        typer.Option(
            "--mean-image", help="Subtract the mean image only, as the course does; no scaling."
        ),
    ] = False,
    neighbors: Annotated[
        list[int] | None,
        typer.Option(min=1, help="knn only; once for each number to try; default 1 to 100."),
    ] = None,
    metric: Annotated[MetricName | None, typer.Option(help="knn only; default l2.")] = None,
    json: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Search for learning rate and penalty (k-NN: neighbours), train the best setting, test it."""
    import gpuclf
    from gpuclf.devices.backends import get_backend, synchronize, to_device
    from gpuclf.devices.machine import environment
    from gpuclf.files import format_seconds, write_json
    from gpuclf.preprocessing import subtract_mean_image
    from gpuclf.samples.standardized import Standardized
    from gpuclf.search import check_search, coarse_to_fine, n_candidates

    output.prepare(json)
    output.prepare_picture(plot)
    recipe = RECIPES[model]
    by_gradients = recipe.final_epochs is not None
    ranges = {"learning_rate": learning_rate, "reg": reg}
    options = {"max_iter": epochs, "hidden_size": hidden_size}
    sizes = {"final_epochs": final_epochs, "rounds": rounds, "candidates": candidates}
    for_knn = {"neighbors": neighbors, "metric": metric}
    given = {k: v for k, v in (ranges | options | sizes | for_knn).items() if v}
    given |= {"mean_image": True} if mean_image else {}
    by_name = {*recipe.space, *recipe.settings, *sizes, "mean_image"}
    allowed = by_name if by_gradients else set(for_knn)
    refuse_foreign(model, given, allowed)
    rounds, candidates = rounds or 3, candidates or 8
    space = (recipe.mean_image_space if mean_image else recipe.space) | {
        k: v for k, v in ranges.items() if v
    }
    if not by_gradients:
        space = {"n_neighbors": list(dict.fromkeys(neighbors or _that_fit(space, samples)))}
        if samples and max(space["n_neighbors"]) > samples:
            raise typer.BadParameter(f"--neighbors is above the {samples} of --samples")
    settings = recipe.settings | {k: v for k, v in options.items() if v}
    if by_gradients:
        settings |= {"precision": str(dtype), "random_state": seed}
    else:
        settings |= {"metric": str(metric or MetricName.l2)}
    classifier = getattr(gpuclf, recipe.classifier)(**settings)
    check_search(classifier, space, rounds, candidates)  # before the data are loaded
    n_planned = n_candidates(space, rounds, candidates)

    where = get_backend(backend)
    dataset = output.load(data, data_dir, seed)
    output.say(f"data: {dataset.source}")
    output.say(f"on: {where.name} ({where.reason})")
    n_train = len(dataset.X_train) - output.N_VALIDATION
    n_searched = min(samples or n_train, n_train)
    X, y = (to_device(a, where) for a in (dataset.X_train, dataset.y_train))
    X_val, y_val = X[n_train:], y[n_train:]
    test = tuple(to_device(a, where) for a in (dataset.X_test, dataset.y_test))
    X, y = X[:n_train], y[:n_train]
    if by_gradients:
        # Once, not for each candidate.
        X = subtract_mean_image(X) if mean_image else Standardized.fit(X)

    start = time.perf_counter()
    leaders = _Leaders(list(space), n_planned, settings.get("max_iter"))
    searched = X[:n_searched], y[:n_searched], X_val, y_val
    if by_gradients:
        with leaders:
            found = coarse_to_fine(
                *(classifier, space, *searched),
                rounds=rounds,
                per_round=candidates,
                rng=seed,
                callback=leaders.show,
                on_epoch=leaders.show_epoch,
                refit=False,
            )
    else:
        found = search_knn(space["n_neighbors"], settings["metric"], *searched)
    search_seconds = time.perf_counter() - start
    output.console.print(leaders.table(found.results))

    final = {"max_iter": final_epochs or recipe.final_epochs} if by_gradients else {}
    best = getattr(gpuclf, recipe.classifier)(**settings | final | found.best_params)
    chosen = ", ".join(f"{name} {value:g}" for name, value in found.best_params.items())
    if by_gradients:
        of_candidate = ceil(n_searched / classifier.batch_size) * classifier.max_iter  # steps
        longer = ceil(n_train / best.batch_size) * best.max_iter / of_candidate
        seconds = median(row["fit_seconds"] for row in found.results) * longer
    else:
        # Nothing is trained, scoring takes the time; a candidate scores two validation sets.
        longer = (
            (output.N_VALIDATION + len(dataset.X_test))
            / (2 * output.N_VALIDATION)
            * len(found.results)
        )
        seconds = median(row["seconds"] for row in found.results) * longer * n_train / n_searched
    about = f"about {format_seconds(seconds)}"
    output.say(f"training with {chosen} on all {n_train:,} images, {about}")
    with output.progress() as progress:
        task = progress.add_task(f"training {model}", total=final.get("max_iter"))
        start = time.perf_counter()
        if by_gradients:
            best.fit(X, y, callback=lambda epoch, _: progress.update(task, completed=epoch))
        else:
            best.fit(X, y)
        synchronize()
        fit_seconds = time.perf_counter() - start
        progress.update(task, description="testing", total=None)
        accuracy = {"val": best.score(X_val, y_val), "test": best.score(*test)}

    table = Table(title=f"{model} on {dataset.name}", title_justify="left", title_style="bold")
    for column in ("validation accuracy", "test accuracy", "time to search", "time to fit"):
        table.add_column(column, justify="right")
    times = (f"{search_seconds:.1f} s", f"{fit_seconds:.1f} s")
    table.add_row(*(f"{a:.4f}" for a in accuracy.values()), *times)
    output.console.print(table)
    if plot is not None:
        from gpuclf.plots import plot_search

        names = list(space)
        ax: Any = plot_search(found.results, names[0], names[1] if len(names) > 1 else None)
        plot.parent.mkdir(parents=True, exist_ok=True)
        ax.figure.savefig(plot, dpi=150)
        output.say(f"drawn to {plot}")
    if json is not None:
        write_json(
            json,
            {
                "model": model,
                "dataset": output.describe(dataset),
                "settings": settings
                | final
                | found.best_params
                | {"backend": where.name, "samples": n_searched, "seed": seed}
                | {"mean_image": mean_image},
                "space": space,
                "environment": environment(),
                "results": found.results,
                "best_params": found.best_params,
                "search_seconds": search_seconds,
                "fit_seconds": fit_seconds,
                **{f"{part}_accuracy": value for part, value in accuracy.items()},
            },
        )
        output.say(f"written to {json}")


def _failure(row: dict[str, Any]) -> str | None:
    return "diverged" if row["diverged"] else row["error"] and f"failed: {row['error']}"


def _that_fit(space: dict[str, Any], samples: int | None) -> list[int]:
    """Return the numbers of neighbours that there are samples for."""
    return [k for k in space["n_neighbors"] if samples is None or k <= samples]


class _Leaders:
    """The best candidates so far, with the progress of the search below them."""

    def __init__(self, names: list[str], n_planned: int, n_epochs: int | None) -> None:
        self._names = names
        self._progress = output.progress()
        self._task = self._progress.add_task("searching", total=n_planned)
        self._n_planned, self._n_epochs = n_planned, n_epochs
        self._n_rows = 0
        self._done = 0.0  # candidates, those that are being trained in part
        self._live = Live(self._view([]), console=output.console, transient=True)

    def __enter__(self) -> _Leaders:
        self._start = time.perf_counter()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show_epoch(self, count: int, epoch: int) -> None:
        """Say how far the candidates are that are trained together."""
        trained = count * epoch / (self._n_epochs or epoch)
        left = self._left(self._n_rows + 0.9 * trained)  # they are still to be scored
        together = f"{count} candidates together" if count > 1 else "1 candidate"
        line = f"{together}: epoch {epoch} of {self._n_epochs}, {left}"
        self._progress.update(self._task, completed=self._done, description=line)
        if not output.console.is_terminal:
            output.say(line)

    def show(self, results: list[dict[str, Any]]) -> None:
        """Bring the view up to date; where there is no terminal, print a line."""
        self._n_rows = len(results)
        left = self._left(self._n_rows)
        line = f"{self._n_rows} of {self._n_planned}, {left}"
        self._progress.update(self._task, completed=self._done, description=line)
        if output.console.is_terminal:
            self._live.update(self._view(results), refresh=True)
            return
        row = results[-1]
        params = ", ".join(f"{name} {value:g}" for name, value in row["params"].items())
        accuracy = _failure(row) or f"validation accuracy {row['val_accuracy']}"
        output.say(f"{self._n_rows} of {self._n_planned}: {params}: {accuracy} ({left})")

    def _left(self, done: float) -> str:
        from gpuclf.files import format_seconds

        # The rows of candidates that were trained together come when all of them are done.
        self._done = max(self._done, done)
        of_one = (time.perf_counter() - self._start) / self._done
        seconds = of_one * (self._n_planned - self._done)
        return f"about {format_seconds(seconds)} of searching left" if seconds else "searched"

    def table(self, results: list[dict[str, Any]]) -> Table:
        """Return the best candidates, best first, those that failed last."""
        table = Table(
            title="best candidates, by validation accuracy",
            title_justify="left",
            title_style="bold",
        )
        for column in (
            *(name.replace("_", " ") for name in self._names),
            *("validation", "train", "round", "time"),
        ):
            table.add_column(column, justify="right")
        ranked = sorted(results, key=lambda row: row["val_accuracy"] or -1, reverse=True)
        for row in ranked[:N_LEADERS]:
            accuracies = (
                ("diverged" if row["diverged"] else "failed") if value is None else f"{value:.4f}"
                for value in (row["val_accuracy"], row["train_accuracy"])
            )
            values = (f"{row['params'][name]:g}" for name in self._names)
            table.add_row(*values, *accuracies, str(row["round"] + 1), f"{row['seconds']:.1f} s")
        return table

    def _view(self, results: list[dict[str, Any]]) -> Group:
        return Group(self.table(results), self._progress)
