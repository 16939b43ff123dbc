"""The same operations by other libraries, each written as its own users would write it.

All run in the dtype of the inputs, with the threads that the library takes by default. Arrays are
handed over before the call, as they would be for a training run. On a GPU the precision of the
products is set for each row: left alone, one library would round to TF32 where another does not.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpuclf.bench.measure import probes
from gpuclf.bench.measure.cases import LEARNING_RATE, LOSS, MOMENTUM, N_NEIGHBORS, REG, Case, Inputs
from gpuclf.bench.measure.implementations import (
    Call,
    Implementation,
    Unavailable,
    copied,
    decline_tf32_neighbors,
    predicted,
    refuse_other_kinds,
)
from gpuclf.models import SOFTMAX

__all__ = ["PEERS", "device_peers"]

JAX_PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32"}
GRAPH_WARM_UPS = 3


def pytorch(
    case: Case,
    inputs: Inputs,
    how: str = "eager",
    precision: str = "float32",
    uploads: bool = False,
) -> Call:
    """Call PyTorch: autograd for the gradients, torch.optim for the step, cdist for distances.

    Parameters
    ----------
    case : Case
    inputs : Inputs
    how : {"eager", "compiled", "graphed"}
        As it is, through ``torch.compile``, or replayed from CUDA graphs.
    precision : {"float32", "tf32"}
    uploads : bool
        Take X from the host's memory in each call.
    """
    _decline(case, precision)
    torch = _import("torch", "PyTorch")
    if inputs.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no CUDA device")
    if how == "graphed" and inputs.device == "cpu":
        raise Unavailable("CUDA graphs need a CUDA device")
    if case.is_probe:
        if how != "eager":
            raise Unavailable("nobody has written its probes so")
        return probes.pytorch_probe(case, inputs, torch)
    if precision == "float32":
        return _torch_call(torch, case, inputs, how, uploads)
    with _torch_tf32(torch):
        call = _torch_call(torch, case, inputs, how, uploads)
    return _torch_tf32(torch)(call)


@contextmanager
def _torch_tf32(torch: Any) -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _torch_call(torch: Any, case: Case, inputs: Inputs, how: str, uploads: bool) -> Call:
    refuse_other_kinds(case)
    if case.is_epoch:
        return _torch_epoch(torch, case, inputs, how)
    if case.model is None:
        evaluate, state = _torch_neighbors(torch, case, inputs, how), {}
        copies = [torch.tensor(inputs.float_pixels[: case.samples], device=inputs.device)]
    else:
        evaluate, state = _torch_loss(torch, case, inputs, how)
        put = partial(torch.tensor, device="cpu" if uploads else inputs.device)
        copies = copied(inputs.floats[: case.samples], inputs, put)
    if how == "graphed":
        graphs = itertools.cycle(_captured(torch, evaluate, copies, **state))
        return lambda: _replay(*next(graphs))
    batches = itertools.cycle(copies)
    if uploads:
        return lambda: evaluate(next(batches).to(inputs.device))
    return lambda: evaluate(next(batches))


def _torch_epoch(torch: Any, case: Case, inputs: Inputs, how: str) -> Call:
    """Train on every batch of an epoch; a graph holds a step, as PyTorch's users capture it."""
    put = partial(torch.tensor, device=inputs.device)
    X, y = put(inputs.floats[: case.samples]), put(inputs.y[: case.samples]).long()
    evaluate, state = _torch_loss(torch, case, inputs, how)
    orders, params = inputs.orders(case.samples), state["params"]

    def train(rows: Any) -> Any:
        return evaluate(X[rows], y[rows])[0]

    step: Callable[[Any], Any] = train
    if how == "graphed":
        if case.samples % case.batch_size:
            raise Unavailable("a graph's batches are of one size")
        rows = put(np.zeros(case.batch_size, np.int64))
        ((graph, loss),) = _captured(torch, train, [rows], **state)

        def replay(batch: Any) -> Any:
            rows.copy_(batch)
            graph.replay()
            return loss.clone()

        step = replay

    def epoch() -> tuple[Any, Any]:
        order = put(next(orders))
        losses = [step(rows) for rows in order.split(case.batch_size)]
        return torch.stack(losses), {name: value.detach() for name, value in params.items()}

    return epoch


def _torch_loss(torch: Any, case: Case, inputs: Inputs, how: str) -> Any:
    """Return ``evaluate(X, y) -> (loss, result)``, and the parameters and velocities it moves."""
    functional = torch.nn.functional
    loss_of = _objective(
        case,
        torch.matmul,
        torch.relu,
        softmax_cross_entropy=functional.cross_entropy,
        # Theirs is divided by the number of classes.
        multiclass_hinge=lambda scores, y: (
            scores.shape[1] * functional.multi_margin_loss(scores, y)
        ),
    )
    labels = torch.tensor(inputs.y[: case.samples], dtype=torch.int64, device=inputs.device)
    params = {
        name: torch.tensor(value, requires_grad=True, device=inputs.device)
        for name, value in inputs.start(case).items()
    }
    optimizer = torch.optim.SGD(params.values(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    objective = _compiled(torch, loss_of, inputs) if how == "compiled" else loss_of

    def evaluate(X: Any, y: Any = labels) -> tuple[Any, Any]:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(params, X, y)
        loss.backward()
        if case.is_training:
            optimizer.step()
            return loss.detach(), {name: value.detach() for name, value in params.items()}
        return loss.detach(), {name: value.grad for name, value in params.items()}

    return evaluate, {"params": params, "optimizer": optimizer}


def _torch_neighbors(torch: Any, case: Case, inputs: Inputs, how: str) -> Any:
    train = torch.tensor(inputs.float_pixels, device=inputs.device)
    labels = torch.tensor(inputs.y, dtype=torch.int64, device=inputs.device)
    p, n_classes = {"l2": 2.0, "l1": 1.0}[case.kind], inputs.n_classes

    def nearest_labels(queries: Any) -> Any:
        distances = torch.cdist(queries, train, p=p)
        nearest = distances.topk(N_NEIGHBORS, largest=False).indices
        votes = torch.nn.functional.one_hot(labels[nearest], n_classes).sum(dim=1)
        return votes.argmax(dim=1)

    predict = _compiled(torch, nearest_labels, inputs) if how == "compiled" else nearest_labels
    return lambda queries: predicted(predict(queries))


def _compiled(torch: Any, function: Callable[..., Any], inputs: Inputs) -> Any:
    # On a CPU, where this is only rehearsed, without the minutes that a C++ compiler would take.
    return torch.compile(function, backend="inductor" if inputs.device == "cuda" else "aot_eager")


def _captured(
    torch: Any,
    evaluate: Callable[[Any], Any],
    given: list[Any],
    params: dict[str, Any] | None = None,
    optimizer: Any = None,
) -> list[tuple[Any, Any]]:
    """Capture a CUDA graph for each argument; return it with the result that it writes.

    The warm-ups that a capture needs move the parameters of a training step. They are put back in
    place, because the graphs hold their addresses.
    """
    before = [(value, value.detach().clone()) for value in (params or {}).values()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARM_UPS):
            evaluate(given[0])
    torch.cuda.current_stream().wait_stream(side)
    captured = []
    for argument in given:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = evaluate(argument)  # which forgets the gradients: each graph has its own
        captured.append((graph, result))
    with torch.no_grad():
        for value, start in before:
            value.copy_(start)
            for buffer in optimizer.state[value].values():
                if buffer is not None:
                    buffer.zero_()
    return captured


def _replay(graph: Any, result: tuple[Any, Any]) -> tuple[Any, Any]:
    graph.replay()
    return result


def jax_jit(case: Case, inputs: Inputs, precision: str = "float32") -> Call:
    """Call JAX: one jitted function a case; the first call compiles it."""
    _decline(case, precision)
    if case.is_probe:
        raise Unavailable("nobody has written probes for it")
    jax = _import("jax", "JAX")
    try:
        device = jax.devices("gpu" if inputs.device == "cuda" else "cpu")[0]
    except RuntimeError as error:
        raise Unavailable(f"JAX {jax.__version__} has no such device: {error}") from None
    if inputs.dtype != np.float64:
        return _jax_call(jax, case, inputs, device, precision)
    with jax.enable_x64(True):
        call = _jax_call(jax, case, inputs, device, precision)

    def in_float64() -> tuple[Any, Any]:
        with jax.enable_x64(True):
            return call()

    return in_float64


def _jax_call(jax: Any, case: Case, inputs: Inputs, device: Any, precision: str) -> Call:
    jnp = jax.numpy
    put = partial(jax.device_put, device=device)
    matmul = partial(jnp.matmul, precision=JAX_PRECISIONS[precision])
    y = put(inputs.y[: case.samples])
    if case.model is None:
        if case.kind == "l1":
            raise Unavailable("the differences of all pairs would take too much memory")
        train, labels, n_classes = put(inputs.float_pixels), put(inputs.y), inputs.n_classes
        queries = train[: case.samples]

        def nearest_labels(queries: Any, train: Any, labels: Any) -> Any:
            squares = (train**2).sum(axis=1) - 2 * matmul(queries, train.T)
            _, nearest = jax.lax.top_k(-squares, N_NEIGHBORS)
            return jax.nn.one_hot(labels[nearest], n_classes).sum(axis=1).argmax(axis=1)

        compiled = jax.jit(nearest_labels)
        return lambda: predicted(compiled(queries, train, labels))
    batches = itertools.cycle(copied(inputs.floats[: case.samples], inputs, put))

    def own_scores(scores: Any, y: Any) -> Any:
        return jnp.take_along_axis(scores, y[:, None], axis=1)

    loss_of = _objective(
        case,
        matmul,
        jax.nn.relu,
        softmax_cross_entropy=lambda scores, y: (
            jax.nn.logsumexp(scores, axis=1) - own_scores(scores, y)[:, 0]
        ).mean(),
        multiclass_hinge=lambda scores, y: (
            # The own class's margin is 1.
            jax.nn.relu(scores - own_scores(scores, y) + 1).sum(axis=1) - 1
        ).mean(),
    )
    refuse_other_kinds(case)
    params = {name: put(value) for name, value in inputs.start(case).items()}
    if not case.is_training:
        loss_and_gradient = jax.jit(jax.value_and_grad(loss_of))
        return lambda: loss_and_gradient(params, next(batches), y)

    def step(params: Any, velocity: Any, X: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, X, y)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v - LEARNING_RATE * g, velocity, grads)
        params = jax.tree.map(
            lambda w, v, g: w + MOMENTUM * v - LEARNING_RATE * g, params, velocity, grads
        )
        return loss, params, velocity

    state = [params, jax.tree.map(jnp.zeros_like, params)]
    if case.is_epoch:
        return _jax_epoch(jax, case, inputs, step, state, (next(batches), y))
    compiled_step = jax.jit(step)

    def call_step() -> tuple[Any, Any]:
        loss, *state[:] = compiled_step(*state, next(batches), y)
        return loss, state[0]

    return call_step


def _jax_epoch(
    jax: Any, case: Case, inputs: Inputs, step: Callable[..., Any], state: Any, samples: Any
) -> Call:
    """Compile the steps of an epoch into one function."""
    if case.samples % case.batch_size:
        raise Unavailable("scan's batches are of one size")

    def epoch(params: Any, velocity: Any, order: Any, X: Any, y: Any) -> Any:
        def one(carried: Any, rows: Any) -> Any:
            loss, *carried = step(*carried, X[rows], y[rows])
            return tuple(carried), loss

        batches = order.reshape(-1, case.batch_size)
        carried, losses = jax.lax.scan(one, (params, velocity), batches)
        return losses, *carried

    compiled, orders = jax.jit(epoch), inputs.orders(case.samples)

    def call() -> tuple[Any, Any]:
        losses, *state[:] = compiled(*state, next(orders), *samples)
        return losses, state[0]

    return call


def wait_for_jax(result: Any) -> None:
    """Return when JAX, which has a queue of its own, has finished a result."""
    sys.modules["jax"].block_until_ready(result)


def scikit_learn(case: Case, inputs: Inputs) -> Call:
    """Call scikit-learn: the loss that LogisticRegression minimises, and brute-force neighbours."""
    if case.is_probe:
        return _written(probes.scikit_learn_probe(case, inputs))
    if case.model is None:
        from sklearn.neighbors import KNeighborsClassifier

        metric = {"l2": "euclidean", "l1": "manhattan"}[case.kind]
        classifier = KNeighborsClassifier(N_NEIGHBORS, algorithm="brute", metric=metric)
        classifier.fit(inputs.float_pixels, inputs.y)
        queries = inputs.float_pixels[: case.samples]
        return lambda: predicted(classifier.predict(queries))
    if case.model != SOFTMAX or case.kind != LOSS or case.models > 1:
        raise Unavailable("scikit-learn has no such function")
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    from gpuclf.devices.cpu import cpu_workers

    X, W, y = inputs.floats[: case.samples], inputs.W, inputs.y[: case.samples]
    objective = LinearModelLoss(HalfMultinomialLoss(n_classes=W.shape[1]), fit_intercept=False)
    coefficients, labels = np.asfortranarray(W.T), y.astype(W.dtype)
    threads = cpu_workers()

    def call() -> tuple[Any, Any]:
        loss, gradient = objective.loss_gradient(
            coefficients, X, labels, l2_reg_strength=2 * REG, n_threads=threads
        )
        return loss, {"W": gradient.T}

    return call


def faiss(case: Case, inputs: Inputs) -> Call:
    """Call faiss: neighbours of embeddings by cosine; always in float32, as it knows no other."""
    if not case.is_probe:
        raise Unavailable("nobody has written this for it")
    return _written(probes.faiss_probe(case, inputs, _import("faiss", "faiss")))


def _written(probe: Call | None) -> Call:
    if probe is None:
        raise Unavailable("it has no such function")
    return probe


def _decline(case: Case, precision: str) -> None:
    decline_tf32_neighbors(case, precision)
    if case.models > 1 and not case.is_probe:
        raise Unavailable("written for one model")


def _objective(
    case: Case,
    matmul: Callable[[Any, Any], Any],
    relu: Callable[[Any], Any],
    **losses: Callable[[Any, Any], Any],
) -> Callable[[dict[str, Any], Any, Any], Any]:
    """Return ``loss(params, X, y)`` of a linear model or a net, for a library to differentiate.

    `losses` are its versions of data losses, by the names that models give theirs.
    """
    name = getattr(case.model and case.model.data_loss, "machine_code", None)
    if name not in losses:
        raise Unavailable("nobody has written this data loss for it")
    data_loss = losses[name]

    def loss(params: dict[str, Any], X: Any, y: Any) -> Any:
        of_layer = ""
        if "W1" in params:
            X, of_layer = relu(matmul(X, params["W1"]) + params["b1"]), "2"
        scores = matmul(X, params[f"W{of_layer}"])
        if f"b{of_layer}" in params:
            scores = scores + params[f"b{of_layer}"]
        penalty = sum((value**2).sum() for name, value in params.items() if name[0] == "W")
        return data_loss(scores, y) + REG * penalty

    return loss


def _import(name: str, title: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise Unavailable(f"{title} is not installed: pip install {package}") from None


def _torch(name: str, **options: Any) -> Implementation:
    row = {key: options[key] for key in ("precision", "uploads") if key in options}
    compiles = options.get("how") == "compiled"
    prepare = partial(pytorch, **options)
    return Implementation(name, "torch", "float", prepare, compiles=compiles, **row)


def _jax(name: str, precision: str = "float32") -> Implementation:
    prepare = partial(jax_jit, precision=precision)
    return Implementation(name, "jax", "float", prepare, precision=precision, wait=wait_for_jax)


def _on_gpu(peer: Implementation) -> Implementation:
    def prepare(case: Case, inputs: Inputs) -> Call:
        return peer.prepare(case, inputs.on("cuda"))

    return replace(peer, name=f"{peer.name} on GPU", prepare=prepare, device="cuda")


PEERS = [
    Implementation("scikit-learn", "sklearn", "float", scikit_learn),
    _torch("PyTorch"),
    _jax("JAX"),
    _on_gpu(_torch("PyTorch")),
    _on_gpu(_jax("JAX")),
    Implementation("faiss", "faiss", "float", faiss),
]


def device_peers(device: str = "cuda") -> list[Implementation]:
    """Return PyTorch's and JAX's ways on the device of the inputs, each with its precision."""
    listed = [
        _torch("PyTorch eager"),
        _torch("PyTorch eager TF32", precision="tf32"),
        _torch("PyTorch eager +upload", uploads=True),
        _torch("PyTorch compiled", how="compiled"),
        _torch("PyTorch graphed", how="graphed"),
        _torch("PyTorch graphed TF32", how="graphed", precision="tf32"),
        _jax("JAX jit"),
        _jax("JAX jit TF32", precision="tf32"),
    ]
    return [replace(peer, device=device) for peer in listed]
