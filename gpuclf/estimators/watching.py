"""Who watches a fit: a progress bar (verbose), and scikit-learn's callbacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpuclf.estimators.bases import torn_down_after

__all__ = [
    "SECONDS_WITHOUT_A_WORD",
    "Tasks",
    "as_told",
    "has_callbacks",
    "part_task",
    "root_task",
    "shown",
    "sub_fit",
    "watched",
]

SECONDS_WITHOUT_A_WORD = 2.0

Tell = Callable[[int, float], None]  # (epochs done, loss)


@contextmanager
def shown(title: str, n_epochs: int) -> Iterator[Tell]:
    """Show how far a fit is, on the standard error.

    On a terminal that is a bar, which leaves nothing behind. Elsewhere (a file, a pipe) it is a
    line, after each two seconds in which there was none: a short fit prints nothing.
    """
    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(epoch: int, loss: float) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_WITHOUT_A_WORD:
                last = time.monotonic()
                print(f"{title}: {epoch} of {n_epochs}, loss {loss:.4g}", file=sys.stderr)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=n_epochs)
        yield lambda epoch, loss: bar.update(
            task, completed=epoch, description=f"{title}, loss {loss:.4g}"
        )


def has_callbacks(estimator: Any) -> bool:
    """Tell whether callbacks of scikit-learn's were set, or come from what surrounds it."""
    return bool(getattr(estimator, "_skl_callbacks", None)) or hasattr(
        estimator, "_parent_callback_ctx"
    )


class Tasks:
    """The epochs of a fit as scikit-learn's callbacks see them: tasks, one after another.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext
        Of what the epochs are part of.
    count : int
        There may be fewer.
    name : str
    told : dict
        What callbacks may ask for: estimator, X, y, metadata.
    """

    def __init__(self, context: Any, count: int, name: str, **told: Any) -> None:
        self.context, self.left, self.name, self.told = context, count, name, told
        self.current: Any = None
        self._begin()

    def _begin(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.current = self.context.subcontext(self.name)
            self.current.call_on_fit_task_begin(**self.told)

    def next(self, **more: Any) -> bool:
        """End a task and begin the next one; tell whether a callback wants to stop."""
        if self.current is None:  # one before it has stopped another fleet
            self._begin()
        if self.current is None:
            return False
        stop = bool(self.current.call_on_fit_task_end(**self.told, **more))
        self.current = None
        if not stop:
            self._begin()
        return stop

    def close(self) -> None:
        """End a task that never came to be, where the fit stopped early."""
        if self.current is not None:
            self.current.call_on_fit_task_end(**self.told)
            self.current = None


@contextmanager
def root_task(
    estimator: Any, n_parts: int, told: dict[str, Any], **at_end: Any
) -> Iterator[Any | None]:
    """Give the context of a whole fit to scikit-learn's callbacks; None where there are none."""
    if not has_callbacks(estimator):
        yield None
        return
    with torn_down_after(estimator):
        root = estimator._init_callback_context(max_subtasks=n_parts)
        root.call_on_fit_task_begin(**told)
        yield root
        root.call_on_fit_task_end(**told, **at_end)


@contextmanager
def part_task(
    root: Any | None, name: str, n_epochs: int, told: dict[str, Any]
) -> Iterator[Tasks | None]:
    """Give the epochs of a part of a fit (a fold, the members of an ensemble); None of None."""
    if root is None:
        yield None
        return
    context = root.subcontext(name, max_subtasks=n_epochs)
    context.call_on_fit_task_begin(**told)
    tasks = Tasks(context, n_epochs, "epoch", **told)
    yield tasks
    tasks.close()
    context.call_on_fit_task_end(**told)


@contextmanager
def sub_fit(root: Any | None, name: str, estimator: Any, told: dict[str, Any]) -> Iterator[None]:
    """Let the callbacks see the fit of another estimator, as a part of this one."""
    if root is None:
        yield
        return
    context = root.subcontext(name)
    with context.propagate_callback_context(estimator):
        context.call_on_fit_task_begin(**told)
        yield
    context.call_on_fit_task_end(**told)


@contextmanager
def watched(
    estimator: Any, X: Any, y: Any, sample_weight: Any, callback: Any = None
) -> Iterator[Any]:
    """Give a callback of :meth:`GradientClassifier.fit` that scikit-learn's hear of too.

    Nothing changes where there are none of scikit-learn's.
    """
    told = as_told(estimator, X, y, sample_weight)
    # No attributes are needed: the estimator has its parameters after each epoch.
    at_end: dict[str, Any] = {"reconstruction_attributes": {}}
    n_epochs = int(estimator.max_iter)
    with root_task(estimator, n_epochs, told, **at_end) as root:
        if root is None:
            yield callback
            return
        tasks = Tasks(root, n_epochs, "epoch", **told)

        def watch(epoch: int, history: Any) -> bool:
            stop = callback is not None and bool(callback(epoch, history))
            return tasks.next(**at_end) or stop

        yield watch
        tasks.close()


def as_told(estimator: Any, X: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
    """Return what a callback may ask for of a fit."""
    metadata = None if sample_weight is None else {"sample_weight": sample_weight}
    return {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
