"""Frozen embeddings evaluated: linear probes and weighted neighbours, by this library and others.

A call trains all of its models on the embeddings, or keeps them, and returns the labels that each
gives to those held out. Iterations and steps are counted, not waited for: how many a tolerance
takes depends on the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuclf import KNeighborsClassifier, textbook
from gpuclf.bench.measure.cases import MOMENTUM, PROBE_KNN, PROBE_LBFGS, Case
from gpuclf.models import SOFTMAX
from gpuclf.samples.walk import row_slices
from gpuclf.training import LBFGSMember, Member, train_lbfgs, train_sgd

__all__ = [
    "faiss_probe",
    "gpuclf_probe",
    "pytorch_probe",
    "scikit_learn_probe",
    "textbook_probe",
]

PROBE_NEIGHBORS, TEMPERATURE = 20, 0.07
LBFGS_TOLERANCE = 1e-9  # so small that the iterations are as many as asked for
Probe = Callable[[], tuple[float, Any]]


def penalties(case: Case) -> list[float]:
    """Return the penalties of the models, from weak to strong."""
    return [float(reg) for reg in np.geomspace(1e-6, 1e-3, case.models)]


def rates(case: Case) -> list[float]:
    """Return the learning rates of the heads."""
    return [float(rate) for rate in np.geomspace(1e-2, 1e1, case.models)]


def zeros(inputs: Any) -> dict[str, Any]:
    """Return where every model starts."""
    params = SOFTMAX.initial_params(inputs.n_features, inputs.n_classes, np.random.default_rng(0))
    return {name: value.astype(inputs.dtype) for name, value in params.items()}


def batches(case: Case, inputs: Any) -> list[Any]:
    """Return the rows of every step, for every head the same."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(case.samples) for _ in range(case.epochs)]
    return [order[rows] for order in orders for rows in row_slices(case.samples, case.batch_size)]


def weights_of(distances: Any) -> Any:
    """Return how much a neighbour counts, by its cosine distance."""
    return np.exp((1 - distances) / TEMPERATURE)


def labels_of(params: dict[str, Any], X: Any) -> Any:
    """Return the labels that a linear model gives."""
    return (X @ params["W"] + params["b"]).argmax(axis=-1)


def gpuclf_probe(case: Case, inputs: Any, put: Callable[[Any], Any] = lambda array: array) -> Probe:
    """Call this library: all models in one pass. `put` copies arrays to its device."""
    X, y, queries = put(inputs.floats), put(inputs.y), put(inputs.queries)
    if case.kind == PROBE_KNN:
        classifier = KNeighborsClassifier(PROBE_NEIGHBORS, metric="cosine", weights=weights_of)
        return lambda: (0.0, classifier.fit(X, y).predict(queries))

    def probe() -> tuple[float, Any]:
        members: list[Any]
        if case.kind == PROBE_LBFGS:
            members = [
                LBFGSMember(put(zeros(inputs)), reg, case.epochs, LBFGS_TOLERANCE)
                for reg in penalties(case)
            ]
            train_lbfgs(SOFTMAX, members, X, y)
        else:
            members = [
                Member(put(zeros(inputs)), lambda step, rate=rate: rate, 0.0, MOMENTUM)  # type: ignore[misc]
                for rate in rates(case)
            ]
            train_sgd(
                *(SOFTMAX, members, X, y), batch_size=case.batch_size, epochs=case.epochs,
                nesterov=True, rng=np.random.default_rng(0),
            )  # fmt: skip
        return 0.0, np.stack([labels_of(member.params, queries) for member in members])

    return probe


def textbook_probe(case: Case, inputs: Any) -> Probe:
    """Call plain NumPy and SciPy: one model after another; all distances, sorted."""
    X, y, queries = inputs.floats, inputs.y, inputs.queries
    if case.kind == PROBE_KNN:

        def vote() -> tuple[float, Any]:
            a, b = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (queries, X))
            similarities = a @ b.T
            nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :PROBE_NEIGHBORS]
            weights = np.exp(np.take_along_axis(similarities, nearest, axis=1) / TEMPERATURE)
            return 0.0, _most_votes(y[nearest], weights, inputs.n_classes)

        return vote
    objective = partial(textbook.linear_objective, textbook.cross_entropy)
    one = _by_scipy if case.kind == PROBE_LBFGS else _by_steps
    own = penalties(case) if case.kind == PROBE_LBFGS else rates(case)

    def probe() -> tuple[float, Any]:
        found = [one(case, inputs, objective, setting) for setting in own]
        return 0.0, np.stack([labels_of(params, queries) for params in found])

    return probe


def _by_scipy(case: Case, inputs: Any, objective: Any, reg: float) -> dict[str, Any]:
    from scipy.optimize import minimize

    start = zeros(inputs)
    shape, dtype = start["W"].shape, inputs.dtype

    def params_at(point: Any) -> dict[str, Any]:
        n_weights = shape[0] * shape[1]
        W, b = point[:n_weights].reshape(shape), point[n_weights:]
        return {"W": W.astype(dtype), "b": b.astype(dtype)}

    def evaluate(point: Any) -> tuple[float, Any]:
        loss, grads = objective(params_at(point), inputs.floats, inputs.y, reg)
        gradient = np.concatenate([grads["W"].ravel(), grads["b"]])
        return float(loss), gradient.astype(np.float64)

    found = minimize(
        evaluate, np.zeros(shape[0] * shape[1] + shape[1]), jac=True, method="L-BFGS-B",
        options={
            "maxiter": case.epochs, "gtol": LBFGS_TOLERANCE, "ftol": 4 * np.finfo(dtype).eps,
        },
    )  # fmt: skip
    return params_at(found.x)


def _by_steps(case: Case, inputs: Any, objective: Any, rate: float) -> dict[str, Any]:
    params = zeros(inputs)
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for rows in batches(case, inputs):
        _, grads = objective(params, inputs.floats[rows], inputs.y[rows], 0.0)
        textbook.nesterov_step(params, velocity, grads, rate, MOMENTUM)
    return params


def _most_votes(labels: Any, weights: Any, n_classes: int) -> Any:
    votes = np.zeros((len(labels), n_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes.argmax(axis=1)


def scikit_learn_probe(case: Case, inputs: Any) -> Probe | None:
    """Call scikit-learn's classifiers, one after another; None for what it has not."""
    X, y, queries = inputs.floats, inputs.y, inputs.queries
    if case.kind == PROBE_KNN:
        from sklearn.neighbors import KNeighborsClassifier as Neighbors

        neighbors = Neighbors(
            PROBE_NEIGHBORS, metric="cosine", algorithm="brute", weights=weights_of
        )
        return lambda: (0.0, neighbors.fit(X, y).predict(queries))
    if case.kind != PROBE_LBFGS:
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def probe() -> tuple[float, Any]:
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for reg in penalties(case):
                C = 1 / (2 * reg * case.samples)
                one = LogisticRegression(C=C, max_iter=case.epochs, tol=LBFGS_TOLERANCE)
                found.append(one.fit(X, y).predict(queries))
        return 0.0, np.stack(found)

    return probe


def faiss_probe(case: Case, inputs: Any, faiss: Any) -> Probe | None:
    """Call faiss: products with all samples; None for what it has not."""
    if case.kind != PROBE_KNN:
        return None

    def vote() -> tuple[float, Any]:
        units = [np.array(Z, np.float32) for Z in (inputs.floats, inputs.queries)]
        for Z in units:
            faiss.normalize_L2(Z)
        index = faiss.IndexFlatIP(inputs.n_features)
        index.add(units[0])
        similarities, nearest = index.search(units[1], PROBE_NEIGHBORS)
        weights = np.exp(similarities / TEMPERATURE)
        return 0.0, _most_votes(inputs.y[nearest], weights, inputs.n_classes)

    return vote


def pytorch_probe(case: Case, inputs: Any, torch: Any) -> Probe:
    """Call PyTorch: torch.optim.LBFGS one by one; DINOv2's heads side by side, a loss of all."""
    put = partial(torch.tensor, device=inputs.device)
    X, y, queries = put(inputs.floats), put(inputs.y), put(inputs.queries)
    if case.kind == PROBE_KNN:
        return partial(_torch_vote, torch, X, y, queries, inputs.n_classes)
    cross_entropy = torch.nn.functional.cross_entropy

    def heads(n: int) -> list[Any]:
        made = [torch.nn.Linear(inputs.n_features, inputs.n_classes) for _ in range(n)]
        for head in made:
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
        return [head.to(X.device, X.dtype) for head in made]

    def labels(trained: list[Any]) -> tuple[float, Any]:
        with torch.no_grad():
            return 0.0, torch.stack([head(queries).argmax(dim=1) for head in trained])

    def by_lbfgs() -> tuple[float, Any]:
        trained = heads(case.models)
        for head, reg in zip(trained, penalties(case), strict=True):
            optimizer = torch.optim.LBFGS(
                head.parameters(), max_iter=case.epochs, max_eval=2 * case.epochs,
                tolerance_grad=LBFGS_TOLERANCE, tolerance_change=0.0, line_search_fn="strong_wolfe",
            )  # fmt: skip

            def closure(head: Any = head, reg: float = reg, optimizer: Any = optimizer) -> Any:
                optimizer.zero_grad()
                loss = cross_entropy(head(X), y) + reg * (head.weight**2).sum()
                loss.backward()
                return loss

            optimizer.step(closure)
        return labels(trained)

    rows_of_steps = [put(rows) for rows in batches(case, inputs)]

    def by_sgd() -> tuple[float, Any]:
        trained = heads(case.models)
        groups = [
            {"params": list(head.parameters()), "lr": rate}
            for head, rate in zip(trained, rates(case), strict=True)
        ]
        optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
        for rows in rows_of_steps:
            optimizer.zero_grad()
            samples, expected = X[rows], y[rows]
            sum(cross_entropy(head(samples), expected) for head in trained).backward()
            optimizer.step()
        return labels(trained)

    return by_lbfgs if case.kind == PROBE_LBFGS else by_sgd


def _torch_vote(torch: Any, X: Any, y: Any, queries: Any, n_classes: int) -> tuple[float, Any]:
    a, b = (torch.nn.functional.normalize(Z, dim=1) for Z in (queries, X))
    similarities, nearest = (a @ b.T).topk(PROBE_NEIGHBORS, dim=1)
    votes = torch.zeros(len(a), n_classes, dtype=X.dtype, device=X.device)
    votes.scatter_add_(1, y[nearest], (similarities / TEMPERATURE).exp())
    return 0.0, votes.argmax(dim=1)
