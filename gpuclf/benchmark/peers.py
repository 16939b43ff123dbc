"""The same operations by other libraries, each written as its own users would write it.

All run in the dtype of the inputs, on the CPU, with the threads that the library takes by default.
Arrays are handed over before the call, as they would be for a training run.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from gpuclf.benchmark.cases import LEARNING_RATE, MOMENTUM, N_NEIGHBORS, REG, Case, Inputs
from gpuclf.benchmark.implementations import Call, Implementation, Unavailable, predicted

__all__ = ["PEERS"]


def pytorch(case: Case, inputs: Inputs) -> Call:
    """Call PyTorch: autograd for the gradients, torch.optim for the step, cdist for distances."""
    torch = _import("torch", "PyTorch")
    functional = torch.nn.functional
    y = torch.tensor(inputs.y[: case.samples], dtype=torch.int64)
    if case.operation.startswith("k-NN"):
        train, labels = torch.tensor(inputs.float_pixels), torch.tensor(inputs.y).long()
        queries, p = train[: case.samples], {"l2": 2.0, "l1": 1.0}[case.operation.split()[1]]

        def predict() -> tuple[float, Any]:
            distances = torch.cdist(queries, train, p=p)
            nearest = distances.topk(N_NEIGHBORS, largest=False).indices
            votes = functional.one_hot(labels[nearest]).sum(dim=1)
            return predicted(votes.argmax(dim=1).numpy(), y.numpy())

        return predict
    X = torch.tensor(inputs.floats[: case.samples])

    def loss_of(params: dict[str, Any]) -> Any:
        if case.operation.startswith("two-layer"):
            hidden = torch.relu(X @ params["W1"] + params["b1"])
            scores = hidden @ params["W2"] + params["b2"]
            penalty = params["W1"].square().sum() + params["W2"].square().sum()
        else:
            scores, penalty = X @ params["W"], params["W"].square().sum()
        if case.operation.startswith("svm"):
            data_loss = functional.multi_margin_loss(scores, y) * scores.shape[1]
        else:
            data_loss = functional.cross_entropy(scores, y)
        return data_loss + REG * penalty

    host = _params(case, inputs)
    params = {name: torch.tensor(value, requires_grad=True) for name, value in host.items()}
    optimizer = torch.optim.SGD(params.values(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)

    def call() -> tuple[Any, Any]:
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        if case.operation == "two-layer training step":
            optimizer.step()
            return loss.detach().numpy(), _result({k: v.detach() for k, v in params.items()})
        return loss.detach().numpy(), _result({k: v.grad for k, v in params.items()})

    return call


def jax_jit(case: Case, inputs: Inputs) -> Call:
    """Call JAX: one jitted function a case; the first call compiles it."""
    jax = _import("jax", "JAX")
    with jax.enable_x64(inputs.dtype == np.float64):
        call = _jax_call(jax, case, inputs)

    def in_precision() -> tuple[Any, Any]:
        with jax.enable_x64(inputs.dtype == np.float64):
            return call()

    return in_precision


def _jax_call(jax: Any, case: Case, inputs: Inputs) -> Call:
    jnp = jax.numpy
    y = jnp.asarray(inputs.y[: case.samples])
    if case.operation.startswith("k-NN"):
        if case.operation.endswith("l1"):
            raise Unavailable("the differences of all pairs would take 61 GB")
        train, labels = jnp.asarray(inputs.float_pixels), jnp.asarray(inputs.y)
        queries = train[: case.samples]

        def nearest_labels(queries: Any, train: Any, labels: Any) -> Any:
            squares = (train**2).sum(axis=1) - 2 * queries @ train.T
            _, nearest = jax.lax.top_k(-squares, N_NEIGHBORS)
            return jax.nn.one_hot(labels[nearest], 10).sum(axis=1).argmax(axis=1)

        compiled, host_y = jax.jit(nearest_labels), inputs.y[: case.samples]
        return lambda: predicted(np.asarray(compiled(queries, train, labels)), host_y)
    X = jnp.asarray(inputs.floats[: case.samples])

    def loss_of(params: dict[str, Any], X: Any, y: Any) -> Any:
        if case.operation.startswith("two-layer"):
            hidden = jax.nn.relu(X @ params["W1"] + params["b1"])
            scores = hidden @ params["W2"] + params["b2"]
            penalty = (params["W1"] ** 2).sum() + (params["W2"] ** 2).sum()
        else:
            scores, penalty = X @ params["W"], (params["W"] ** 2).sum()
        own = jnp.take_along_axis(scores, y[:, None], axis=1)
        if case.operation.startswith("svm"):
            margins = jax.nn.relu(scores - own + 1)
            data_loss = (margins.sum(axis=1) - 1).mean()  # the own class's margin is 1
        else:
            data_loss = (jax.nn.logsumexp(scores, axis=1) - own[:, 0]).mean()
        return data_loss + REG * penalty

    state = [{name: jnp.asarray(value) for name, value in _params(case, inputs).items()}]
    if case.operation != "two-layer training step":
        loss_and_gradient = jax.jit(jax.value_and_grad(loss_of))

        def call() -> tuple[Any, Any]:
            loss, grads = jax.block_until_ready(loss_and_gradient(state[0], X, y))
            return loss, _result(grads)

        return call

    def step(params: Any, velocity: Any, X: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, X, y)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v - LEARNING_RATE * g, velocity, grads)
        params = jax.tree.map(
            lambda w, v, g: w + MOMENTUM * v - LEARNING_RATE * g, params, velocity, grads
        )
        return loss, params, velocity

    compiled_step = jax.jit(step)
    state.append(jax.tree.map(jnp.zeros_like, state[0]))

    def call_step() -> tuple[Any, Any]:
        loss, *state[:] = jax.block_until_ready(compiled_step(*state, X, y))
        return loss, _result(state[0])

    return call_step


def scikit_learn(case: Case, inputs: Inputs) -> Call:
    """Call scikit-learn: the loss that LogisticRegression minimises, and brute-force neighbours."""
    y = inputs.y[: case.samples]
    if case.operation.startswith("k-NN"):
        from sklearn.neighbors import KNeighborsClassifier

        metric = {"l2": "euclidean", "l1": "manhattan"}[case.operation.split()[1]]
        classifier = KNeighborsClassifier(N_NEIGHBORS, algorithm="brute", metric=metric)
        classifier.fit(inputs.float_pixels, inputs.y)
        queries = inputs.float_pixels[: case.samples]
        return lambda: predicted(classifier.predict(queries), y)
    if not case.operation.startswith("softmax"):
        raise Unavailable("scikit-learn has no such function")
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    from gpuclf.backend import cpu_workers

    X, W = inputs.floats[: case.samples], inputs.W
    objective = LinearModelLoss(HalfMultinomialLoss(n_classes=W.shape[1]), fit_intercept=False)
    coefficients, labels = np.asfortranarray(W.T), y.astype(W.dtype)
    threads = cpu_workers()

    def call() -> tuple[Any, Any]:
        loss, gradient = objective.loss_gradient(
            coefficients, X, labels, l2_reg_strength=2 * REG, n_threads=threads
        )
        return loss, gradient.T

    return call


def _params(case: Case, inputs: Inputs) -> dict[str, Any]:
    if case.operation.startswith("two-layer"):
        return inputs.params(case.hidden_units)
    return {"W": inputs.W}


def _result(values: dict[str, Any]) -> Any:
    """Return what the other implementations return: a dict for the net, else W's array alone."""
    host = {name: np.asarray(value) for name, value in values.items()}
    return host.get("W", host)


def _import(name: str, title: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(
            f"{title} is not installed; pip install 'gpuclf[bench]' brings it"
        ) from None


PEERS = [
    Implementation("scikit-learn", "sklearn", "float", scikit_learn),
    Implementation("PyTorch", "torch", "float", pytorch),
    Implementation("JAX", "jax", "float", jax_jit),
]
