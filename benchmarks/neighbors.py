"""What exact k-NN of floats costs beside scikit-learn's, on samples that are easy and hard to tell.

python -m benchmarks.neighbors --out benchmarks/results/neighbors.json    about 6 minutes
python benchmarks/performance_tables.py                                   then writes the table
python -m benchmarks.neighbors --out neighbors.json --try                 in seconds, on few

With `--only PATTERN` what it does not name stays in the record as it was: the machine need not be
quiet for long. On all cores, by the clock; the fastest of the calls counts, taken by turns. The
neighbours of some queries are held against all distances by differences in float64.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.neighbors import KNeighborsClassifier as TheirClassifier
from sklearn.neighbors import NearestNeighbors

from gpuclf import KNeighborsClassifier
from gpuclf.datasets import make_embeddings
from gpuclf.devices.machine import environment
from gpuclf.files import write_json
from gpuclf.models.neighbors import k_neighbors

console = Console()
OURS, THEIRS = "gpuclf on NumPy", "scikit-learn"
ROUNDS, LEAST, ENOUGH_S = 7, 3, 12.0  # turns, and how few when these seconds are over
CHECKED = 5  # queries
SIZES = [(5000, 5000, 64), (1000, 200_000, 128), (1000, 50_000, 3072)]
HOSTILE = 1000, 20_000, 128, 100
COSINES = [(10, 5000, 5000, 64, 5), (100, 1000, 10_000, 256, 20), (10, 2500, 10_000, 384, 20),
           (1000, 500, 20_000, 384, 20)]  # fmt: skip
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Task:
    """A search or a prediction: what it is called, and what makes it."""

    group: str
    what: str
    sizes: tuple[int, int, int, int]  # queries, training samples, features, neighbours
    # The calls of both, and what tells the share of wrong answers from their results.
    prepare: Callable[[], tuple[dict[str, Callable[[], Any]], Callable[[dict[str, Any]], float]]]

    @property
    def title(self) -> str:
        """Name it, for people and for patterns."""
        n, m, n_features, k = self.sizes
        return f"{self.group}, {self.what}, {n} x {m} x {n_features}, k={k}"


def searches(k: int, metric: str, make: Callable[[], tuple[Any, Any]]) -> Any:
    """Search the same neighbours twice."""
    A, B = make()
    named = {"l2": "euclidean", "l1": "manhattan"}[metric]
    neighbors = NearestNeighbors(n_neighbors=k, metric=named, algorithm="brute").fit(B)
    calls = {THEIRS: lambda: neighbors.kneighbors(A), OURS: lambda: k_neighbors(A, B, k, metric)}
    return calls, partial(_wrong, A, B, k, metric)


def _wrong(A: Any, B: Any, k: int, metric: str, results: dict[str, Any]) -> float:
    """Return the share of some queries whose neighbours are not those of float64."""
    distances, indices = results[OURS]
    queries = range(0, len(A), max(1, len(A) // CHECKED))
    wrong = 0
    for i in queries:
        parts = (A[i].astype(float) - part.astype(float) for part in np.array_split(B, 50))
        true = np.concatenate([
            np.abs(d).sum(axis=1) if metric == "l1" else np.sqrt((d * d).sum(axis=1)) for d in parts
        ])  # fmt: skip
        wanted = np.sort(true)[:k]
        found = np.allclose(distances[i], wanted, rtol=1e-12, atol=0)
        wrong += not (found and np.allclose(true[indices[i]], wanted, rtol=1e-12, atol=0))
    return wrong / len(queries)


def similarities(distances: Any) -> Any:
    """Return how much a neighbour counts, by its cosine distance."""
    return np.exp((1 - distances) / TEMPERATURE)


def votes(n: int, m: int, n_features: int, k: int, n_classes: int, weights: Any) -> Any:
    """Predict the same labels twice, by weighted cosines; wrong: labels that differ."""
    X, y = make_embeddings(n + m, n_features, n_classes)
    theirs = TheirClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    ours = KNeighborsClassifier(k, metric="cosine", weights=weights)
    calls = {
        name: partial(classifier.fit(X[n:], y[n:]).predict, X[:n])
        for name, classifier in ((THEIRS, theirs), (OURS, ours))
    }
    return calls, lambda results: float(np.mean(results[OURS] != results[THEIRS]))


def normal(n: int, m: int, D: int) -> tuple[Any, Any]:
    """Draw queries and samples."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((rows, D), dtype=np.float32) for rows in (n, m))


def hostile(n: int, m: int, D: int) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return what makes queries and samples that rounded distances do not tell apart."""
    rng = np.random.default_rng(0)
    A, B, clusters = (rng.standard_normal((rows, D)) for rows in (n, m, 10))
    own, of = rng.integers(0, 10, n), rng.integers(0, 10, m)
    copied = B[rng.integers(0, m // 200, n + m)]
    zeros = 0 * A
    return {
        "all samples equal": lambda: (A, np.repeat(B[:1], m, axis=0)),
        "ten distinct samples": lambda: (clusters[own], clusters[of]),
        "ten far clusters": lambda: (1e5 * clusters[own] + A, 1e5 * clusters[of] + B),
        "ten far clusters, sorted": lambda: (
            1e5 * clusters[own] + A, 1e5 * clusters[np.sort(of)] + B,
        ),
        "200 near copies of each": lambda: (copied[:n] + 1e-5 * A, copied[n:] + 1e-5 * B),
        "tenths": lambda: (rng.integers(0, 3, (n, D)) / 10, rng.integers(0, 3, (m, D)) / 10),
        "outliers": lambda: (A, np.where(np.arange(m)[:, None] % 1000, B, 1e6 * B)),
        "far from the origin": lambda: (A + 1e4, B + 1e4),
        "unit samples, zero queries": lambda: (
            zeros, B / np.linalg.norm(B, axis=1, keepdims=True),
        ),
        "permutations, zero queries": lambda: (
            zeros, rng.permuted(np.repeat(B[:1], m, axis=0), axis=1),
        ),
    }  # fmt: skip


def hostile_floats(what: str, *sizes: int) -> tuple[Any, Any]:
    """Make queries and samples of one kind."""
    A, B = hostile(*sizes)[what]()
    return A.astype(np.float32), B.astype(np.float32)


def tasks(few: bool) -> Iterator[Task]:
    """Yield everything that is measured; or little of it, with few samples."""
    for sizes in [(100, 9000, 300)] if few else SIZES:
        for k in (1, 5, 100):
            make = partial(searches, k, "l2", partial(normal, *sizes))
            yield Task("l2", "normal", (*sizes, k), make)
    make = partial(searches, 5, "l1", partial(normal, 500, 5000, 384))
    yield Task("l1", "normal", (500, 5000, 384, 5), make)
    for n_classes, *sizes in [(10, 100, 9000, 300, 20)] if few else COSINES:
        for by, weights in (("distance", "distance"), ("exp(cos / T)", similarities)):
            what = f"{n_classes} classes, votes by {by}"
            yield Task("cosine", what, tuple(sizes), partial(votes, *sizes, n_classes, weights))
    *sizes, k = (100, 9000, 300, 10) if few else HOSTILE
    for what in hostile(*sizes):
        make = partial(searches, k, "l2", partial(hostile_floats, what, *sizes))
        yield Task("hostile", what, (*sizes, k), make)


def measure(task: Task, rounds: int) -> list[dict]:
    """Time both by turns; compare their results."""
    calls, share_of_wrong = task.prepare()
    seconds, results, begun = dict.fromkeys(calls, np.inf), {}, time.perf_counter()
    for turn in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
        if turn + 1 >= LEAST and time.perf_counter() - begun > ENOUGH_S:
            break
    n, m, n_features, k = task.sizes
    sizes = {"queries": n, "samples": m, "n_features": n_features, "neighbors": k}
    wrong = share_of_wrong(results)
    factor = seconds[THEIRS] / seconds[OURS]
    console.print(f"{task.title}: {factor:.2f} times in {turn + 1} turns, {wrong:.2%} wrong")
    of = {"title": task.title, "group": task.group, "what": task.what, **sizes, "wrong": wrong}
    return [{**of, "implementation": name, "fastest_s": seconds[name]} for name in calls]


def main() -> None:
    """Measure everything, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--try", action="store_true", dest="rehearsed", help="small, in seconds")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="which, by their titles")
    options = parser.parse_args()
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    k_neighbors(*np.zeros((2, 6000, 64), np.float32), 1)  # compiles
    found: dict[str, list[dict]] = {}
    for task in tasks(options.rehearsed):
        found[task.title] = [row for row in kept if row["title"] == task.title]
        if fnmatch(task.title, options.only):
            found[task.title] = measure(task, 1 if options.rehearsed else ROUNDS)
    rows = [row for of_task in found.values() for row in of_task]
    write_json(options.out, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
