"""Ctrl-C and SIGTERM on the command line: heard at any moment, never lost, acted on once.

An exception out of a signal's handler can be lost: Python drops it in finalizers and callbacks of
C, and an import that it breaks off may end as another error. So what was received is remembered,
`check` raises it again, and whatever a command ends with, `heard` ends it as interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "Interrupted",
    "acknowledge",
    "check",
    "deferred",
    "exit_code",
    "heard",
    "received",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST_S = 1.0  # what starts a process may pass on the signal that it has got as well


class Interrupted(KeyboardInterrupt):
    """Somebody wants the process to end. A KeyboardInterrupt, which libraries let through."""


class _State:
    def __init__(self) -> None:
        self.depth = 0  # of `heard`
        self.forget()

    def forget(self) -> None:
        self.signum: int | None = None
        self.when = 0.0
        self.deferring = 0
        self.acknowledged = False


_state = _State()


def received() -> int | None:
    """Return the signal that was received, if there was one."""
    return _state.signum


def exit_code() -> int:
    """Return what a process ends with that was interrupted: 128 and the signal's number."""
    return 128 + (_state.signum or signal.SIGINT)


def check() -> None:
    """Raise again what was received, unless that is being acted on or waits."""
    if _state.signum is not None and not _state.acknowledged and not _state.deferring:
        raise Interrupted


def acknowledge() -> None:
    """Take over: what is finished is being kept, and nothing is raised any more."""
    _state.acknowledged = True


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait for the end of the block."""
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1
    check()


@contextmanager
def heard(then: Any = None) -> Iterator[None]:
    """End the block with SystemExit 130 or 143 where a signal comes, whatever else comes of it.

    Parameters
    ----------
    then : signal.Handlers, optional
        What signals do after the block; by default what they did before.
    """
    if _state.depth:
        yield
        return
    _state.forget()
    _state.depth += 1
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # another thread than the first hears no signals
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, or behind a shell's `&`
                previous[signum] = signal.signal(signum, _handle)
    try:
        yield
        check()
    except BaseException as error:
        if _state.signum is None:
            raise
        if not _state.acknowledged:
            acknowledge()
            with contextlib.suppress(OSError, ValueError):
                print("interrupted before anything was done", file=sys.stderr)
        if isinstance(error, SystemExit) and error.code == exit_code():
            raise
        raise SystemExit(exit_code()) from None
    finally:
        _state.deferring += 1  # a signal that comes now breaks nothing off
        in_time = _state.signum is not None
        for number, handler in previous.items():
            signal.signal(number, handler if then is None else then)
        sys.unraisablehook = hook
        _state.depth -= 1
        _state.deferring -= 1
        if _state.signum is not None and not in_time:
            with contextlib.suppress(OSError, ValueError):
                print("interrupted when all was done", file=sys.stderr)
            raise SystemExit(exit_code()) from None


def _handle(signum: int, frame: object) -> None:
    now = time.monotonic()
    waits = _state.acknowledged or _state.deferring
    if _state.signum is not None and waits:
        if now - _state.when > SAME_REQUEST_S:  # asked for again, while results are written
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        return
    if _state.signum is None:
        _state.signum, _state.when = signum, now
    if not waits:
        raise Interrupted


def _unraisable(found: Any) -> None:
    if not (isinstance(found.exc_value, KeyboardInterrupt) and _state.signum is not None):
        sys.__unraisablehook__(found)
