"""What a model costs in a fleet of many, and a grid search by fleets beside searches one by one.

python -m benchmarks.fleet --out benchmarks/results/fleet.json    on 10,000 CIFAR-10 images

The searches compare 24 candidates on three folds: FleetSearchCV and GridSearchCV over the same
SoftmaxClassifier, and GridSearchCV over scikit-learn's own linear classifiers behind a
StandardScaler, with 24 candidates and as many epochs. Of these, SGDClassifier takes steps of one
sample (one class against the rest), and LogisticRegression full-batch steps (L-BFGS).
"""

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpuclf import FleetSearchCV, SoftmaxClassifier, Standardized, TwoLayerNetClassifier
from gpuclf.backend import environment
from gpuclf.benchmark.report import write_json
from gpuclf.benchmark.timing import settle
from gpuclf.datasets import load_dataset
from gpuclf.estimators.fleet_fitting import fit_together

console = Console()
BATCH = 200
N_FOLDS = 3
GRID = {
    "learning_rate": np.geomspace(1e-4, 3e-2, 6).tolist(),
    "reg": np.geomspace(1e-4, 1e0, 4).tolist(),
}


def cost_per_model(X: np.ndarray, y: np.ndarray, sizes: list[int], rounds: int) -> list[dict]:
    """Time fits of one epoch; each round takes every size once, alone and together."""
    kinds = {
        "softmax": partial(SoftmaxClassifier, max_iter=1, batch_size=BATCH, random_state=0),
        "two_layer": partial(TwoLayerNetClassifier, max_iter=1, batch_size=BATCH, random_state=0),
    }
    features, rows = Standardized.fit(X), []
    for kind, make in kinds.items():
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in track(range(rounds + 1), f"{kind}: cost per model", console=console):
            for size in sizes:
                models = [make(learning_rate=1e-3 / (k + 1)) for k in range(size)]
                settle()
                start = time.perf_counter()
                fit_together(models, features, y)
                seconds[size].append(time.perf_counter() - start)
        n_steps = -(-len(y) // BATCH)
        for size, times in seconds.items():
            median = float(np.median(times[1:]))  # the first round compiles
            rows.append(
                {
                    "model": kind,
                    "n_models": size,
                    "median_s": median,
                    "step_us_per_model": 1e6 * median / n_steps / size,
                }
            )
    return rows


def searches(X: np.ndarray, y: np.ndarray, epochs: int) -> list[dict]:
    """Run each search once over the same folds."""
    softmax = SoftmaxClassifier(max_iter=epochs, batch_size=BATCH, random_state=0)
    sgd = SGDClassifier(loss="log_loss", max_iter=epochs, tol=None, random_state=0)
    sgd.set_params(learning_rate="constant")
    lbfgs = LogisticRegression(max_iter=epochs)
    of_sgd = {"eta0": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], "alpha": GRID["reg"]}
    of_lbfgs = {"C": np.geomspace(1e-6, 1e2, 24).tolist()}
    floats = X.astype(np.float32)
    options = {"cv": StratifiedKFold(N_FOLDS), "refit": False}

    def behind_scaler(model: object, grid: dict) -> GridSearchCV:
        name = type(model).__name__.lower()
        pipeline = make_pipeline(StandardScaler(), model)
        return GridSearchCV(pipeline, {f"{name}__{k}": v for k, v in grid.items()}, **options)

    planned = {
        "FleetSearchCV, SoftmaxClassifier": (FleetSearchCV(softmax, GRID, **options), X),
        "GridSearchCV, SoftmaxClassifier": (GridSearchCV(softmax, GRID, **options), X),
        "GridSearchCV, SGDClassifier": (behind_scaler(sgd, of_sgd), floats),
        "GridSearchCV, LogisticRegression": (behind_scaler(lbfgs, of_lbfgs), floats),
    }
    rows = []
    for name, (search, samples) in planned.items():
        with console.status(name), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal epochs, not convergence
            settle()
            start = time.perf_counter()
            search.fit(samples, y)
            seconds = time.perf_counter() - start
        n_fits = N_FOLDS * len(search.cv_results_["params"])
        rows.append(
            {
                "search": name,
                "n_fits": n_fits,
                "seconds": seconds,
                "times_as_long_as_the_fleet": seconds / rows[0]["seconds"] if rows else 1.0,
                "best_score": float(search.best_score_),
                "best_params": search.best_params_,
            }
        )
        console.print(f"{name}: {n_fits} fits in {seconds:.1f} s, best {search.best_score_:.4f}")
    return rows


def main() -> None:
    """Measure both parts and write the record; each is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10, help="of a candidate")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32, 48, 72])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data)
    X, y = (a[: arguments.samples] for a in (dataset.X_train, dataset.y_train))
    record: dict = {
        "dataset": dataset.name,
        "n_samples": len(y),
        "batch_size": BATCH,
        "epochs": arguments.epochs,
        "n_folds": N_FOLDS,
        "grid": GRID,
        "environment": environment(),
    }
    record["cost_per_model"] = cost_per_model(X, y, arguments.models, arguments.rounds)
    write_json(arguments.out, record)
    for row in record["cost_per_model"]:
        console.print(json.dumps(row), soft_wrap=True)
    record["searches"] = searches(X, y, arguments.epochs)
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
