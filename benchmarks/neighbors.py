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
ROUNDS, ENOUGH_S = 7, 12.0  # or fewer, at least two, when these seconds are over
CHECKED = 5  # queries
SIZES = [(5000, 5000, 64), (1000, 200_000, 128), (1000, 50_000, 3072)]
HOSTILE = 1000, 20_000, 128, 100
COSINES = [(5000, 5000, 64, 5, 10), (1000, 10_000, 256, 20, 100), (2500, 10_000, 384, 20, 10),
           (500, 20_000, 384, 20, 1000)]  # fmt: skip
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Task:
    """A search or a prediction, by both, and what tells whether ours is right."""

    group: str
    what: str
    sizes: tuple[int, int, int, int]  # queries, training samples, features, neighbours
    calls: dict[str, Callable[[], Any]]
    wrong: Callable[[dict[str, Any]], float]  # of both results

    @property
    def title(self) -> str:
        """Name it, for people and for patterns."""
        n, m, n_features, k = self.sizes
        return f"{self.group}, {self.what}, {n} x {m} x {n_features}, k={k}"


def searches(group: str, what: str, A: Any, B: Any, k: int, metric: str = "l2") -> Task:
    """Search the same neighbours twice."""
    named = {"l2": "euclidean", "l1": "manhattan"}[metric]
    neighbors = NearestNeighbors(n_neighbors=k, metric=named, algorithm="brute").fit(B)
    calls = {THEIRS: lambda: neighbors.kneighbors(A), OURS: lambda: k_neighbors(A, B, k, metric)}
    return Task(group, what, (*A.shape[:1], *B.shape, k), calls, partial(_wrong, A, B, k, metric))


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


def votes(n: int, m: int, n_features: int, k: int, n_classes: int, weights: Any) -> Task:
    """Predict the same labels twice, by weighted cosines; wrong: labels that differ."""
    X, y = make_embeddings(n + m, n_features, n_classes)
    theirs = TheirClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    ours = KNeighborsClassifier(k, metric="cosine", weights=weights)
    calls = {
        name: partial(classifier.fit(X[n:], y[n:]).predict, X[:n])
        for name, classifier in ((THEIRS, theirs), (OURS, ours))
    }
    by = weights if isinstance(weights, str) else "exp(cos / T)"
    return Task(
        "cosine", f"{n_classes:,} classes, votes by {by}", (n, m, n_features, k), calls,
        lambda results: float(np.mean(results[OURS] != results[THEIRS])),
    )  # fmt: skip


def hostile(n: int, m: int, D: int, k: int) -> Iterator[Task]:
    """Yield searches among samples that rounded distances do not tell apart, and what is near."""
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    distinct, centres, originals = draw((5, D)), 1e5 * draw((10, D)), draw((m // 200, D))
    A, B, which = draw((n, D)), draw((m, D)), rng.integers(0, 10, m)
    near = centres[rng.integers(0, 10, n)] + A
    outliers = np.where(np.arange(m)[:, None] % 1000, B, 1e6 * B)
    for what, queries, samples in (
        ("all samples equal", A, np.repeat(B[:1], m, axis=0)),
        ("five distinct samples", distinct[rng.integers(0, 5, n)], distinct[which // 2]),
        ("ten far clusters", near, centres[which] + B),
        ("ten far clusters, sorted", near, centres[np.sort(which)] + B),
        ("200 near copies of each", originals[rng.integers(0, m // 200, n)] + 1e-5 * A,
         originals[rng.integers(0, m // 200, m)] + 1e-5 * B),
        ("tenths", rng.integers(0, 3, (n, D)) / 10, rng.integers(0, 3, (m, D)) / 10),
        ("outliers", A, outliers),
        ("far from the origin", A + 1e4, B + 1e4),
        ("unit samples, zero queries", 0 * A, B / np.linalg.norm(B, axis=1, keepdims=True)),
        ("permutations, zero queries", 0 * A,
         rng.permuted(np.repeat(B[:1], m, axis=0), axis=1)),
    ):  # fmt: skip
        yield searches("hostile", what, queries.astype("f4"), samples.astype("f4"), k)


def tasks(few: bool) -> Iterator[Task]:
    """Yield everything that is measured; or little of it, with few samples."""
    rng = np.random.default_rng(0)

    def normal(n: int, n_features: int) -> Any:
        return rng.standard_normal((n, n_features), dtype=np.float32)

    for n, m, D in [(100, 9000, 300)] if few else SIZES:
        A, B = normal(n, D), normal(m, D)
        for k in (1, 5, 100):
            yield searches("l2", "normal", A, B, k)
    yield searches("l1", "normal", *(normal(m, 384) for m in (500, 5000)), 5, "l1")
    for sizes in [(100, 9000, 300, 20, 10)] if few else COSINES:
        for weights in ("distance", similarities):
            yield votes(*sizes, weights)
    yield from hostile(*((100, 9000, 300, 10) if few else HOSTILE))


def measure(task: Task, rounds: int) -> list[dict]:
    """Time both by turns; compare their results."""
    seconds, results, begun = dict.fromkeys(task.calls, np.inf), {}, time.perf_counter()
    for turn in range(rounds):
        for name, call in task.calls.items():
            start = time.perf_counter()
            results[name] = call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
        if turn and time.perf_counter() - begun > ENOUGH_S:
            break
    n, m, n_features, k = task.sizes
    sizes = {"queries": n, "samples": m, "n_features": n_features, "neighbors": k}
    wrong = task.wrong(results)
    factor = seconds[THEIRS] / seconds[OURS]
    console.print(f"{task.title}: {factor:.2f} times in {turn + 1} turns, {wrong:.2%} wrong")
    of = {"title": task.title, "group": task.group, "what": task.what, **sizes, "wrong": wrong}
    return [{**of, "implementation": name, "fastest_s": seconds[name]} for name in task.calls]


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
