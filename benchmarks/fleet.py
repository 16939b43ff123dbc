"""What models cost in fleets, penalties and a grid search beside others, and the course's search.

python -m benchmarks.fleet --out benchmarks/results/fleet.json    in some five minutes, on CIFAR-10
python benchmarks/performance_tables.py                           then writes docs/performance.md
python -m benchmarks.fleet --out fleet.json --try                 in seconds, on few images

Penalties are fitted by L-BFGS on the features of all 50,000 images, together, one by one, and by
scikit-learn's LogisticRegression, twice by turns; the faster turn counts.

The searches compare 24 candidates on three folds of 10,000 images: FleetSearchCV and GridSearchCV
over the same SoftmaxClassifier, by turns, and once GridSearchCV over scikit-learn's SGDClassifier
behind a StandardScaler, with 24 candidates and as many epochs, in as many processes as there are
processors. SGDClassifier takes steps of one sample and separates one class from the rest.

The course's search tries 64 settings of learning rate and penalty, 1,500 steps each, on all 49,000
training images, and keeps the best on 1,000 validation images.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpuclf import FleetSearchCV, SoftmaxClassifier, Standardized, TwoLayerNetClassifier
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.datasets import load_dataset
from gpuclf.devices.machine import environment
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.files import write_json
from gpuclf.image_features import extract_features
from gpuclf.models import SOFTMAX
from gpuclf.search import coarse_to_fine

console = Console()
BATCH = 200
N_FOLDS = 3
GRID = {
    "learning_rate": np.geomspace(1e-4, 3e-2, 6).tolist(),
    "reg": np.geomspace(1e-4, 1e0, 4).tolist(),
}
KINDS = {
    "softmax": partial(SoftmaxClassifier, max_iter=1, batch_size=BATCH, random_state=0),
    "two-layer": partial(TwoLayerNetClassifier, max_iter=1, batch_size=BATCH, random_state=0),
}
# 6 epochs of 250 steps; the ranges and the 1,000 images to validate on are `gpuclf search`'s.
COURSE = {"batch_size": 196, "max_iter": 6}
COURSE_SPACE = {"learning_rate": (1e-4, 1e-1), "reg": (1e-5, 1e0)}
N_VALIDATION = 1000


def seconds_of(call: Callable[[], object]) -> float:
    """Time a call on a quiet machine."""
    HostDevice().settle()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(
    sizes: list[int], rounds: int, what: str, prepare: Callable[[int], Callable[[], object]]
) -> dict[int, float]:
    """Time ``prepare(size)()``; each round takes every size once, and the first one compiles."""
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in track(range(rounds + 1), what, console=console):
        for size, times in seconds.items():
            times.append(seconds_of(prepare(size)))
    return {size: median(times[1:]) for size, times in seconds.items()}


def cost_per_model(X: np.ndarray, y: np.ndarray, sizes: list[int], rounds: int) -> list[dict]:
    """Time fits of one epoch."""
    rows = []
    for kind, make in KINDS.items():
        n_used = len(y) if kind == "softmax" else max(BATCH, len(y) // 5)  # a step takes far longer
        features, labels = Standardized.fit(X[:n_used]), y[:n_used]

        def fit(
            size: int, make: Any = make, features: Any = features, labels: Any = labels
        ) -> Callable[[], object]:
            models = [make(learning_rate=1e-3 / (k + 1)) for k in range(size)]
            return partial(fit_together, models, features, labels)

        for size, of_fleet in medians(sizes, rounds, f"{kind}: cost per model", fit).items():
            of_step = of_fleet / -(-n_used // BATCH) / size
            row = {"model": kind, "n_models": size, "median_s": of_fleet}
            rows.append(row | {"step_per_model_s": of_step})
    return rows


def cost_of_full_batches(X: np.ndarray, y: np.ndarray, sizes: list[int], rounds: int) -> list[dict]:
    """Time loss and gradient of softmax models over all samples."""
    kinds = {"pixels": Standardized.fit(X), "features": extract_features(X)}
    n_classes, rng, rows = int(y.max()) + 1, np.random.default_rng(0), []
    for kind, samples in kinds.items():
        shape = samples.shape[1], n_classes
        calls = {}
        for size in sizes:
            models = () if size == 1 else (size,)
            W = rng.normal(scale=0.01, size=(*models, *shape)).astype(np.float32)
            params = {"W": W, "b": np.zeros((*models, n_classes), np.float32)}
            calls[size] = partial(SOFTMAX.objective, params, samples, y, np.full(models, 0.1))
        found = medians(sizes, rounds, f"{kind}: full batches", calls.__getitem__)
        for size, of_all in found.items():
            row = {"samples": kind, "n_features": shape[0], "n_models": size, "median_s": of_all}
            rows.append(row | {"pass_per_model_s": of_all / size})
    return rows


def penalties(X: np.ndarray, y: np.ndarray, sizes: list[int], max_iter: int) -> list[dict]:
    """Fit softmax models of several penalties by L-BFGS: together, one by one, by scikit-learn."""
    features = Standardized.fit(extract_features(X)).to_array(np.float32)
    rows = []
    for size in sizes:
        regs = np.geomspace(1e-6, 1e-1, size).tolist()
        ours = partial(SoftmaxClassifier, solver="lbfgs", max_iter=max_iter)
        calls = {
            "gpuclf, together": lambda regs=regs, make=ours: fit_together(
                [make(reg=reg) for reg in regs], features, y
            ),
            "gpuclf, one by one": lambda regs=regs, make=ours: [
                make(reg=reg).fit(features, y) for reg in regs
            ],
            # Its penalty is half of ours, beside a sum over the samples.
            "scikit-learn, one by one": lambda regs=regs: [
                LogisticRegression(C=1 / (2 * reg * len(y)), max_iter=max_iter).fit(features, y)
                for reg in regs
            ],
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in (*calls, *calls):
            with console.status(f"{size} penalties: {name}"):
                seconds[name].append(seconds_of(calls[name]))
        together = min(seconds["gpuclf, together"])
        for name, times in seconds.items():
            row = {"fit": name, "n_models": size, "max_iter": max_iter, "seconds": min(times)}
            rows.append(row | {"times_as_long_as_together": min(times) / together})
            console.print(f"{size} penalties, {name}: {min(times):.2f} s")
    return rows


def searches(X: np.ndarray, y: np.ndarray, epochs: int) -> list[dict]:
    """Run each search over the same folds, this library's by turns."""
    softmax = SoftmaxClassifier(max_iter=epochs, batch_size=BATCH, random_state=0)
    options = {"cv": StratifiedKFold(N_FOLDS), "refit": False}
    sgd = SGDClassifier(loss="log_loss", max_iter=epochs, tol=None, random_state=0)
    sgd.set_params(learning_rate="constant")
    of_sgd = {"eta0": np.geomspace(1e-5, 1e0, 6).tolist(), "alpha": GRID["reg"]}
    of_sgd = {f"sgdclassifier__{name}": values for name, values in of_sgd.items()}
    pipeline = make_pipeline(StandardScaler(), sgd)
    fleet, grid = "gpuclf, FleetSearchCV", "gpuclf, GridSearchCV"
    planned = {
        fleet: (FleetSearchCV(softmax, GRID, **options), X),
        grid: (GridSearchCV(softmax, GRID, **options), X),
        "scikit-learn, GridSearchCV": (
            GridSearchCV(pipeline, of_sgd, n_jobs=os.cpu_count(), **options),
            X.astype(np.float32),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in planned}
    for name in (*planned, fleet, grid):
        search, samples = planned[name]
        with console.status(name):
            seconds[name].append(seconds_of(partial(search.fit, samples, y)))
        console.print(f"{name}: {seconds[name][-1]:.1f} s, best {search.best_score_:.4f}")
    return [
        {
            "search": name,
            "n_fits": N_FOLDS * len(search.cv_results_["params"]),
            "median_s": median(seconds[name]),
            "times_as_long_as_the_fleet": median(seconds[name]) / median(seconds[fleet]),
            "best_score": float(search.best_score_),
            "best_params": search.best_params_,
        }
        for name, (search, _) in planned.items()
    ]


def course_search(X: np.ndarray, y: np.ndarray) -> dict:
    """Search coarse to fine, two rounds of 32 settings."""
    n_train = len(y) - N_VALIDATION
    classifier = SoftmaxClassifier(**COURSE, precision="float32", random_state=0)
    features = Standardized.fit(X[:n_train])
    options = {"rounds": 2, "per_round": 32, "rng": 0, "refit": False}
    HostDevice().settle()
    start = time.perf_counter()
    with console.status("the course's search"):
        found = coarse_to_fine(
            classifier, COURSE_SPACE, features, y[:n_train], X[n_train:], y[n_train:], **options
        )
    seconds = time.perf_counter() - start
    best = found.best_val_accuracy
    console.print(f"{len(found.results)} settings in {seconds:.1f} s, best {best:.4f}")
    kept = ("params", "val_accuracy", "diverged")
    return {
        "n_settings": len(found.results),
        "n_samples": n_train,
        "steps": COURSE["max_iter"] * -(-n_train // COURSE["batch_size"]),
        "seconds": seconds,
        "best_val_accuracy": best,
        "best_params": found.best_params,
        "results": [{name: row[name] for name in kept} for row in found.results],
    }


def main() -> None:
    """Measure all parts and write the record; each is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--try", action="store_true", dest="rehearsed", help="small, in seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # few epochs, on purpose
    n_samples, epochs, sizes, rounds = 10_000, 5, [1, 2, 4, 8, 16, 32, 64], 5
    if options.rehearsed:
        n_samples, epochs, sizes, rounds = 300, 1, [1, 2], 1
    dataset = load_dataset("synthetic" if options.rehearsed else "auto")
    X, y = (a[:n_samples] for a in (dataset.X_train, dataset.y_train))
    record: dict = {
        "dataset": dataset.name,
        "n_samples": len(y),
        "batch_size": BATCH,
        "epochs": epochs,
        "n_folds": N_FOLDS,
        "grid": GRID,
        "environment": environment(),
    }
    record["cost_per_model"] = cost_per_model(X, y, sizes, rounds)
    write_json(options.out, record)
    record["full_batches"] = cost_of_full_batches(X, y, sizes, 2 * rounds)
    write_json(options.out, record)
    X_all, y_all = (X, y) if options.rehearsed else (dataset.X_train, dataset.y_train)
    record["penalties"] = penalties(X_all, y_all, [2, 16], 15)
    write_json(options.out, record)
    record["searches"] = searches(X, y, epochs)
    write_json(options.out, record)
    if not options.rehearsed:
        record["course_search"] = course_search(dataset.X_train, dataset.y_train)
        write_json(options.out, record)


if __name__ == "__main__":
    main()
