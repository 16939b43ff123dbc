"""``gpuclf search``: hyper-parameters, coarse to fine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import ceil
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from gpuclf import interrupts
from gpuclf.cli import options, output
from gpuclf.cli.following import described, keep_model
from gpuclf.cli.knn import search_knn
from gpuclf.cli.recipes import FINAL_EPOCHS, RECIPES, given, refuse_foreign
from gpuclf.cli.train import LBFGS_ITERATIONS, SolverName
from gpuclf.files import format_seconds

__all__ = ["search"]

N_LEADERS = 8
Range = Annotated[
    tuple[float, float] | None, typer.Option(help="Range to search.", metavar="LOW HIGH")
]


def search(
    model: Annotated[options.ModelName, typer.Argument(help="What to search for.")],
    backend: options.BackendOption = options.BackendName.auto,
    dtype: options.DtypeOption = options.DtypeName.float32,
    data_name: options.SamplesOption = "auto",
    data_dir: options.DataDirOption = None,
    image_size: options.ImageSizeOption = None,
    test_data: options.TestDataOption = None,
    test_fraction: options.TestFractionOption = None,
    seed: options.SeedOption = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Each in narrower ranges around the best so far; default 3."),
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="In a round; default 8.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a candidate; default 3, two-layer 2, lbfgs 60.")
    ] = None,
    final_epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the best one's training; default 10, lbfgs 60.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Train the candidates on this many images; default all."),
    ] = None,
    learning_rate: Range = None,
    reg: Range = None,
    hidden_size: Annotated[
        int | None, typer.Option(min=1, help="two-layer only; default 100.")
    ] = None,
    solver: Annotated[
        SolverName | None,
        typer.Option(help="softmax, two-layer; default sgd. lbfgs searches the penalty alone."),
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
    metric: options.MetricOption = None,
    n_jobs: Annotated[
        int | None,
        typer.Option("--n-jobs", min=1, help="Processes that share a round's candidates."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Of a dask cluster that shares them instead."),
    ] = None,
    json: options.JsonOption = None,
    plot: options.PlotOption = None,
    save: options.SaveOption = None,
) -> None:
    """Search for learning rate and penalty (k-NN: neighbours), train the best setting, test it."""
    from gpuclf.devices.backends import to_device
    from gpuclf.preprocessing import subtract_mean_image
    from gpuclf.samples.standardized import Standardized
    from gpuclf.search import check_search, coarse_to_fine, n_candidates

    output.prepare_picture(plot)
    output.prepare(json, plot=plot, save=save)
    if n_jobs is not None and scheduler is not None:
        raise typer.BadParameter("give --n-jobs or --scheduler, not both")
    data = options.chosen_data(data_name, data_dir, image_size, test_data, test_fraction)
    recipe = RECIPES[model]
    ranges = given(learning_rate=learning_rate, reg=reg)
    chosen = given(max_iter=epochs, hidden_size=hidden_size, metric=metric, solver=solver)
    sizes = given(final_epochs=final_epochs, rounds=rounds, candidates=candidates)
    sizes |= given(mean_image=mean_image or None, n_jobs=n_jobs, scheduler=scheduler)
    every = ranges | chosen | given(n_neighbors=neighbors or None) | sizes
    refuse_foreign(model, every, sizes if recipe.by_gradients else ())
    space = (recipe.mean_image_space if mean_image else recipe.space) | ranges
    settings, final = recipe.candidate | chosen, {}
    if recipe.by_gradients:
        settings |= {"precision": str(dtype), "random_state": seed}
        final = {"max_iter": final_epochs or FINAL_EPOCHS}
        if solver is SolverName.lbfgs:
            if learning_rate is not None:
                raise typer.BadParameter("--learning-rate does not apply to --solver lbfgs")
            space = {"reg": space["reg"]}
            settings["max_iter"] = epochs or LBFGS_ITERATIONS
            final["max_iter"] = final_epochs or LBFGS_ITERATIONS
    else:
        space = {"n_neighbors": _numbers_of_neighbors(neighbors, space["n_neighbors"], samples)}
    drawn: dict[str, Any] = {"rounds": rounds or 3, "per_round": candidates or 8}
    classifier = recipe.make(settings)
    check_search(classifier, space, **drawn)  # before the data are loaded

    connected = _checked_cluster(scheduler)
    output.known(model=model, settings=settings, space=space, results=[])
    dataset, where = output.load_for(backend, data, data_dir, seed, per_call=None)
    spread = n_jobs is not None or scheduler is not None
    parts = output.parts(dataset, "numpy" if spread else where)
    X, y = parts["train"]
    if recipe.by_gradients:  # once, not for each candidate
        X = subtract_mean_image(X) if mean_image else Standardized.fit(X)
    n_searched = min(samples or len(y), len(y))
    used = {"backend": where.name, "samples": n_searched, "seed": seed, "mean_image": mean_image}
    output.known(dataset=output.describe(dataset), settings=settings | used)
    start = time.perf_counter()
    searched = X[:n_searched], y[:n_searched], *parts["val"]
    if recipe.by_gradients:
        n_planned = n_candidates(space, **drawn)
        leaders = _Leaders(list(space), n_planned, classifier.max_iter)
        with warnings.catch_warnings(), connected(scheduler), leaders:
            warnings.filterwarnings("ignore", message="L-BFGS stopped at max_iter")
            found = coarse_to_fine(
                *(classifier, space, *searched), rng=seed, refit=False, **drawn,
                callback=leaders.show, on_epoch=leaders.show_epoch,
                n_jobs=-1 if scheduler else n_jobs,
                worker_backend=str(backend if scheduler else where.name) if spread else None,
            )  # fmt: skip
    else:
        found = search_knn(space["n_neighbors"], settings["metric"], *searched)
    seconds = {"search": time.perf_counter() - start}
    output.finished(results=found.results, best_params=found.best_params)
    output.console.print(_leaders(found.results, list(space)))

    if spread:  # the best one is trained here
        X, y = to_device(X, where), to_device(y, where)
    best = recipe.make(settings | final | found.best_params)
    params = ", ".join(f"{name} {value:g}" for name, value in found.best_params.items())
    about = _seconds_to_train(best, classifier, found.results, n_searched, dataset)
    output.say(f"training with {params} on all {len(y):,} images, about {format_seconds(about)}")
    scored = {name: parts[name] for name in ("val", "test")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="L-BFGS stopped at max_iter")  # said below
        accuracy, of_fit = output.fit_and_score(model, best, (X, y), scored)
    if recipe.by_gradients and best.history_.reached_max_iter:
        output.say(f"L-BFGS had not converged after {best.max_iter} iterations (--final-epochs)")
    seconds |= of_fit
    results = output.report(f"{model} on {dataset.name}", accuracy, seconds)
    content = {
        "model": model,
        "dataset": output.describe(dataset),
        "settings": settings | final | found.best_params | used,
        "space": space,
        "results": found.results,
        "best_params": found.best_params,
    }
    with interrupts.deferred():
        summary = described(model, dataset, settings | final | found.best_params | used)
        output.save(
            save,
            lambda path: keep_model(path, best, dataset, summary | results, data, seed),
            "model saved",
        )
        output.write(json, content | results)
        output.save(plot, lambda path: _draw(path, found.results, list(space)), "drawn")


def _checked_cluster(scheduler: str | None) -> Callable[[str | None], Any]:
    """Return what connects to dask's workers for a search; without dask, say how to get it."""
    if scheduler is None:
        return nullcontext
    try:
        from distributed import Client
    except ImportError:
        raise typer.BadParameter(
            "--scheduler needs dask, which is not installed: pip install 'dask[array]' distributed"
        ) from None

    @contextmanager
    def connected(address: str | None) -> Iterator[None]:
        from joblib import parallel_config

        with Client(address, timeout="10s") as client, parallel_config("dask", client=client):
            yield

    return connected


def _numbers_of_neighbors(asked: list[int] | None, default: list[int], n: int | None) -> list[int]:
    """Return each number to try once; of the default, those that there are n samples for."""
    if asked and n and max(asked) > n:
        raise typer.BadParameter(f"--neighbors is above the {n} of --samples")
    return list(dict.fromkeys(asked or [k for k in default if k <= (n or k)]))


def _seconds_to_train(
    best: Any, candidate: Any, results: list[dict[str, Any]], n_searched: int, dataset: Any
) -> float:
    """Return how long training and testing the best setting may take, given the candidates."""
    n_val = output.n_validation(dataset)
    n_train = len(dataset.X_train) - n_val
    if hasattr(candidate, "max_iter"):
        of_candidate = ceil(n_searched / candidate.samples_of_step(n_searched)) * candidate.max_iter
        of_best = ceil(n_train / best.samples_of_step(n_train)) * best.max_iter  # steps
        longer: float = of_best / of_candidate
        return median([float(row["fit_seconds"]) for row in results]) * longer
    # Nothing is trained, scoring takes the time; a candidate scores two validation sets.
    longer = (n_val + len(dataset.X_test)) / (2 * n_val) * len(results)
    return median([float(row["seconds"]) for row in results]) * longer * n_train / n_searched


def _draw(path: Path, results: list[dict[str, Any]], names: list[str]) -> None:
    from gpuclf.plots import plot_search

    ax: Any = plot_search(results, names[0], names[1] if len(names) > 1 else None)
    output.write_picture(path, ax)


def _leaders(results: list[dict[str, Any]], names: list[str]) -> Table:
    """Return a table of the best candidates, best first, those that failed last."""
    columns = (*(name.replace("_", " ") for name in names), "validation", "train", "round", "time")
    table = output.table("best candidates, by validation accuracy", *columns)
    ranked = sorted(results, key=lambda row: row["val_accuracy"] or -1, reverse=True)
    for row in ranked[:N_LEADERS]:
        accuracies = (
            ("diverged" if row["diverged"] else "failed") if value is None else f"{value:.4f}"
            for value in (row["val_accuracy"], row["train_accuracy"])
        )
        values = (f"{row['params'][name]:g}" for name in names)
        table.add_row(*values, *accuracies, str(row["round"] + 1), f"{row['seconds']:.1f} s")
    return table


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
        interrupts.check()
        trained = count * epoch / (self._n_epochs or epoch)
        together = f"{count} candidates together" if count > 1 else "1 candidate"
        line = f"{together}: epoch {epoch} of {self._n_epochs}, "
        line += self._left(self._n_rows + 0.9 * trained, line)  # they are still to be scored
        if not output.console.is_terminal:
            output.say(line)

    def show(self, results: list[dict[str, Any]]) -> None:
        """Bring the view up to date; where there is no terminal, print a line."""
        from gpuclf.search import best_row

        interrupts.check()
        self._n_rows = len(results)
        best = best_row(results)
        output.finished(results=results, best_params=best and best["params"])
        done = f"{self._n_rows} of {self._n_planned}"
        left = self._left(self._n_rows, f"{done}, ")
        if output.console.is_terminal:
            self._live.update(self._view(results), refresh=True)
            return
        row = results[-1]
        params = ", ".join(f"{name} {value:g}" for name, value in row["params"].items())
        failure = "diverged" if row["diverged"] else row["error"] and f"failed: {row['error']}"
        accuracy = failure or f"validation accuracy {row['val_accuracy']}"
        output.say(f"{done}: {params}: {accuracy} ({left})")

    def _left(self, done: float, what: str) -> str:
        """Return the time that is left, and show it below the table."""
        # The rows of candidates that were trained together come when all of them are done.
        self._done = max(self._done, done)
        of_one = (time.perf_counter() - self._start) / self._done
        seconds = of_one * (self._n_planned - self._done)
        left = f"about {format_seconds(seconds)} of searching left" if seconds else "searched"
        self._progress.update(self._task, completed=self._done, description=what + left)
        return left

    def _view(self, results: list[dict[str, Any]]) -> Group:
        return Group(_leaders(results, self._names), self._progress)
