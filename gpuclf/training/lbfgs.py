"""Full-batch L-BFGS, SciPy's, of one model or of several in lockstep.

Each member runs ``scipy.optimize.minimize`` in a thread of its own, as it would alone. Where SciPy
asks for loss and gradient, the member waits; when all that still run have asked, the caller's
thread answers them by one wide pass over the samples. A member that is done, or fails, leaves, and
the others go on. One member alone needs no thread: it is the same code, answered at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host, values_are_on_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.flat_params import flatten_params, unflatten_params
from gpuclf.models.model import Model, Params
from gpuclf.samples.holders import Chunk
from gpuclf.samples.sharded import Sharded
from gpuclf.samples.standardized import Standardized, is_sharded
from gpuclf.training.history import History, divergence, normalized_weights, quietly

__all__ = ["LBFGSMember", "minimize_lbfgs", "train_lbfgs"]

SMALL_PASS = 4_000_000  # multiplications of a model: below, two meet for longer than they share
PATH_STRIDE = 4  # along a path, every fourth penalty is trained before the others


@dataclass(eq=False)
class LBFGSMember:
    """One of the models that :func:`train_lbfgs` trains together, before and after.

    Attributes
    ----------
    params : dict of array
        Where it starts, and then where it ended; the arrays themselves are not changed.
    reg : float
        The penalty.
    max_iter : int
    tol : float
        Stop when no component of the gradient is larger.
    history : History
        To go on with.
    n_iter : int
        Iterations that were done.
    error : Exception or None
        Why the model was set aside. It keeps the parameters that it came with.
    """

    params: Params
    reg: float
    max_iter: int
    tol: float
    history: History = field(default_factory=History)
    n_iter: int = 0
    error: Exception | None = None


@quietly
@on_its_device
def train_lbfgs(
    model: Model,
    members: Sequence[LBFGSMember],
    X: Array | Standardized,
    y: Array,
    *,
    precision: str = "float32",
    sample_weight: Array | None = None,
    penalty_path: bool = False,
    on_iteration: Callable[[int, Params], bool | None] | None = None,
) -> None:
    """Train K models by full-batch L-BFGS, each as if alone, with one wide pass an evaluation.

    Parameters
    ----------
    model : Model
    members : sequence of LBFGSMember
        They get parameters, history, iterations and error.
    X : array of shape (N, D), Standardized, Streamed or Sharded
    y : integer array of shape (N,)
    precision : {"float32", "tf32", "float64"}, default "float32"
        As for :meth:`gpuclf.models.Model.objective`.
    sample_weight : array of shape (N,), optional
        Non-negative; a sample of weight 2 counts as two samples.
    penalty_path : bool, default False
        Train every fourth penalty first, and start the others where the nearest of those ended.
        They end elsewhere within their tolerance, often sooner.
    on_iteration : callable, optional
        ``on_iteration(number, params)``, called after each iteration of each member, with its
        number and parameters; its search ends if this returns True. Always called by the thread
        that called this function, and in the order of the members where several have iterated.

    Raises
    ------
    ValueError
        If the gradient of the model's loss has jumps.

    Notes
    -----
    The passes are as many as the slowest member needs, and as wide as there are members left (two
    on few samples in NumPy arrays have passes of their own, which take less than meeting). A
    wide sum rounds differently from a narrow one: in float64 members end where they end alone
    but for about 1e-12. Parameters and gradients travel between host and device at each evaluation
    (123 KB a model for CIFAR-10 in float32); X does not. Beside them a member takes SciPy's
    workspace, about 25 vectors in float64.

    Examples
    --------
    >>> from gpuclf.models import SOFTMAX
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> start = {"W": np.zeros((1, 2)), "b": np.zeros(2)}
    >>> weak, strong = (LBFGSMember(start, reg, max_iter=100, tol=1e-6) for reg in (0.01, 1.0))
    >>> train_lbfgs(SOFTMAX, [weak, strong], X, y)
    >>> bool(abs(weak.params["W"]).max() > abs(strong.params["W"]).max())
    True
    """
    if not model.is_smooth:
        raise ValueError(
            f"L-BFGS needs a gradient without jumps, which the loss of {model.name!r} does not "
            "have: use SGD"
        )
    like = members[0].params
    n_params = sum(math.prod(value.shape) for value in like.values())
    on_host = all(values_are_on_host(value) for value in like.values())
    is_small = on_host and int(X.shape[0]) * n_params < SMALL_PASS
    weights = normalized_weights(sample_weight, like)
    objective: Callable[..., tuple[Array, Params]] = model.objective
    if is_sharded(X):
        objective = partial(_sum_of_chunks, model)

    def evaluate(numbers: list[int], points: list[np.ndarray]) -> list[tuple[float, np.ndarray]]:
        reg: Any = np.array([members[k].reg for k in numbers])
        if len(numbers) == 1:  # without a model axis, so that every kernel for one serves it
            params, reg = unflatten_params(points[0], like), float(reg[0])
        else:
            params = unflatten_params(np.stack(points), like)
            reg = to_device(reg, like=next(iter(params.values())))
        losses, grads = objective(params, X, y, reg, weights, precision=precision)
        flat = [np.reshape(to_host(grads[name]), (len(numbers), -1)) for name in like]
        gradients = np.concatenate(flat, axis=1, dtype=np.float64)
        return list(zip(np.atleast_1d(to_host(losses)).tolist(), gradients, strict=True))

    def together(numbers: Sequence[int]) -> None:
        def answer(places: list[int], points: list[np.ndarray]) -> list[Any]:
            return evaluate([numbers[place] for place in places], points)

        def after_iteration(place: int, point: np.ndarray) -> bool:
            k = numbers[place]
            return on_iteration is not None and bool(
                on_iteration(k, unflatten_params(point, members[k].params))
            )

        searches = [_search_of(members[k], on_iteration is not None) for k in numbers]
        train = _in_turn if len(numbers) == 2 and is_small else _in_lockstep
        errors = train(searches, answer, after_iteration)
        for k, error in zip(numbers, errors, strict=True):
            members[k].error = members[k].error or error

    beside: AbstractContextManager[None] = nullcontext()
    if is_sharded(X):
        beside = (X.X if isinstance(X, Standardized) else X).beside(y, weights)
    with beside:
        if not penalty_path:
            return together(range(len(members)))
        return _along_a_path(members, together)


def _along_a_path(
    members: Sequence[LBFGSMember], together: Callable[[Sequence[int]], None]
) -> None:
    """Train every fourth penalty, and then the others, from where the nearest of those ended."""
    order = sorted(range(len(members)), key=lambda k: -members[k].reg)
    first, others = order[::PATH_STRIDE], [k for n, k in enumerate(order) if n % PATH_STRIDE]
    together(first)
    found = [members[k] for k in first if members[k].error is None]
    for k in others if found else ():
        members[k].params = _nearest(found, members[k].reg).params
    if others:
        together(others)


def _sum_of_chunks(
    model: Model, params: Params, X: Sharded | Standardized, y: Array, reg: Any,
    sample_weight: Array | None, *, precision: str,
) -> tuple[Array, Params]:  # fmt: skip
    """Compute the objective as a sum of those of the chunks, each with its share of the penalty."""
    shards: Any = X.X if isinstance(X, Standardized) else X
    scaling = (X.mean, X.scale) if isinstance(X, Standardized) else None
    args = model, params, scaling, reg, len(X), precision
    losses, grads = zip(*shards.map(_objective_of_chunk, *args), strict=True)
    summed = {}
    for name in params:
        total = np.zeros(grads[0][name].shape)
        for of_chunk in grads:
            total += of_chunk[name]
        summed[name] = total
    return sum(losses), summed


def _objective_of_chunk(
    chunk: Chunk, model: Model, params: Params, scaling: Any, reg: Any, n_samples: int,
    precision: str,
) -> tuple[Array, Params]:  # fmt: skip
    y, weights = chunk.beside
    params = to_device(params, like=chunk.X)
    share = reg * (int(chunk.X.shape[0]) / n_samples)
    xp = array_namespace(chunk.X)
    if weights is None:
        dtype = next(iter(params.values())).dtype
        weights = xp.full(chunk.X.shape[:1], 1 / n_samples, dtype=dtype, device=chunk.X.device)
    X = chunk.X if scaling is None else Standardized(chunk.X, *scaling)
    share = to_device(share, like=chunk.X) if np.ndim(share) else share
    return model.objective(params, X, y, share, weights, precision=precision)


def minimize_lbfgs(
    model: Model,
    params: Params,
    X: Array | Standardized,
    y: Array,
    *,
    reg: float,
    max_iter: int,
    tol: float,
    precision: str = "float32",
    sample_weight: Array | None = None,
    on_iteration: Callable[[Params, History], bool | None] | None = None,
    history: History | None = None,
) -> tuple[Params, History, int]:
    """Train one model by full-batch L-BFGS: see :func:`train_lbfgs`.

    Parameters
    ----------
    model, X, y, precision, sample_weight
        As for :func:`train_lbfgs`.
    params : dict of array
        Where to start; not changed.
    reg : float
    max_iter : int
    tol : float
        Stop when no component of the gradient is larger.
    on_iteration : callable, optional
        ``on_iteration(params, history)``; the search ends if it returns True.
    history : History, optional
        To go on with.

    Returns
    -------
    params : dict of array
    history : History
    n_iter : int

    Raises
    ------
    ValueError
        If the gradient of the model's loss has jumps.
    DivergedError
        If the loss is NaN or infinite at the end.
    """
    member = LBFGSMember(params, reg, max_iter, tol, History() if history is None else history)
    train_lbfgs(
        *(model, [member], X, y), precision=precision, sample_weight=sample_weight,
        on_iteration=on_iteration and (lambda _, now: on_iteration(now, member.history)),
    )  # fmt: skip
    if member.error is not None:
        raise member.error
    return member.params, member.history, member.n_iter


# What a member asks: loss and gradient at a point, or whether to stop there after an iteration.
Evaluate = Callable[[np.ndarray], "tuple[float, np.ndarray]"]
AfterIteration = Callable[[np.ndarray], bool]
Search = Callable[[Evaluate, AfterIteration], None]


def _search_of(member: LBFGSMember, is_watched: bool) -> Search:
    def search(evaluate: Evaluate, after_iteration: AfterIteration) -> None:
        from scipy.optimize import minimize

        history = member.history

        def callback(intermediate_result: Any) -> None:
            history.loss.append(float(intermediate_result.fun))
            if is_watched and after_iteration(intermediate_result.x):
                raise StopIteration

        first = next(iter(member.params.values()))
        rounding = float(array_namespace(first).finfo(first.dtype).eps)
        found = minimize(
            evaluate,
            flatten_params(member.params),
            jac=True,
            method="L-BFGS-B",
            callback=callback,
            options={"maxiter": member.max_iter, "gtol": member.tol, "ftol": 4 * rounding},
        )
        history.loss.append(float(found.fun))
        member.error = divergence(history, 1)
        if member.error is None:
            history.reached_max_iter = found.status == 1
            member.n_iter = int(found.nit)
            member.params = unflatten_params(found.x, member.params)

    return search


def _nearest(members: Sequence[LBFGSMember], reg: float) -> LBFGSMember:
    """Return the member of the nearest penalty, by their ratio."""
    tiny = np.finfo(np.float64).tiny  # for penalties of 0
    return min(members, key=lambda member: abs(np.log(max(member.reg, tiny) / max(reg, tiny))))


# --------------------------------------------------------------------------------- lockstep


class _AbandonedError(BaseException):
    """The caller's thread gave up; not an Exception, so that nothing on the way catches it."""


@dataclass(frozen=True)
class _Message:
    """What a member's thread tells the caller's: a question, or that it is done."""

    member: int
    point: np.ndarray | None = None  # where to evaluate
    ends_iteration: bool = False  # or whether to stop there
    error: Exception | None = None


def _in_turn(
    searches: Sequence[Search],
    evaluate: Callable[[list[int], list[Any]], list[Any]],
    after_iteration: Callable[[int, Any], bool],
) -> list[Exception | None]:
    """Do as :func:`_in_lockstep`, one search after another in this thread."""
    errors: list[Exception | None] = []
    ends_all: list[BaseException] = []

    def asked(answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except BaseException as error:
            ends_all.append(error)
            raise

    for k, search in enumerate(searches):

        def evaluate_one(x: np.ndarray, k: int = k) -> Any:
            return asked(lambda: evaluate([k], [x])[0])

        def stops(x: np.ndarray, k: int = k) -> bool:
            return bool(asked(lambda: after_iteration(k, x)))

        try:
            search(evaluate_one, stops)
            errors.append(None)
        except Exception as error:
            if ends_all:
                raise
            errors.append(error)
    return errors


def _in_lockstep(
    searches: Sequence[Search],
    evaluate: Callable[[list[int], list[Any]], list[Any]],
    after_iteration: Callable[[int, Any], bool],
) -> list[Exception | None]:
    """Run the searches to their ends, answering those that evaluate together.

    Return what each of several raised; what one alone raises passes through.
    """
    if len(searches) == 1:
        searches[0](lambda x: evaluate([0], [x])[0], lambda x: after_iteration(0, x))
        return [None]
    inbox: SimpleQueue[_Message] = SimpleQueue()
    answers: list[SimpleQueue[Any]] = [SimpleQueue() for _ in searches]

    def ask(question: _Message) -> Any:
        inbox.put(question)
        answer = answers[question.member].get()
        if isinstance(answer, _AbandonedError):
            raise answer
        return answer

    def run(k: int) -> None:
        error: Exception | None = None
        try:
            searches[k](
                lambda x: ask(_Message(k, x)), lambda x: ask(_Message(k, x, ends_iteration=True))
            )
        except Exception as caught:  # whatever it is, it is this member's alone
            error = caught
        except _AbandonedError:
            pass
        inbox.put(_Message(k, error=error))

    errors: list[Exception | None] = [None] * len(searches)
    running = set(range(len(searches)))
    waiting: dict[int, _Message] = {}
    threads: list[threading.Thread] = []
    try:
        for k in running:
            # A copied context carries numpy.errstate into the thread.
            thread = threading.Thread(target=copy_context().run, args=(run, k), daemon=True)
            thread.start()
            threads.append(thread)
        while True:
            while len(waiting) < len(running):
                message = inbox.get()
                if message.point is None:
                    running.discard(message.member)
                    errors[message.member] = message.error
                else:
                    waiting[message.member] = message
            if not running:
                return errors
            members = sorted(k for k in waiting if waiting[k].ends_iteration)
            if members:
                replies: list[Any] = [after_iteration(k, waiting[k].point) for k in members]
            else:
                members = sorted(waiting)
                replies = evaluate(members, [waiting[k].point for k in members])
            for k, reply in zip(members, replies, strict=True):
                del waiting[k]
                answers[k].put(reply)
    finally:
        for k in running:  # of an error in this thread: nobody shall wait for ever
            answers[k].put(_AbandonedError())
        for thread in threads:
            thread.join()
