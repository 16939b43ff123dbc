"""Files that are written whole or not at all, and durations as people read them."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["alone_in", "format_seconds", "sweep", "write_json", "write_whole"]

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 24 * 3600.0
NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+)\]")


def format_seconds(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit.

    Examples
    --------
    >>> format_seconds(0.0734), format_seconds(4000.0)
    ('73.4 ms', '1.11 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds * 1e9:.0f} ns"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the result as JSON, whole or not at all, creating the folder if need be."""
    text = json.dumps(content, indent=1)
    text = NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    write_whole(path, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, creating the folder if need be.

    Several processes may write the same file: it is that of the last one.
    """
    if path.exists() and not path.is_file():  # a device or a pipe stays what it is
        path.write_text(text, encoding="utf-8", errors="replace")
        return
    path = path.resolve()  # what a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, and with room for it where the file's own name has the longest that is
    # allowed. Not by tempfile, whose files nobody else may read.
    prefix = f".{path.name[:40]}."
    unfinished = path.with_name(f"{prefix}{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("x", encoding="utf-8", errors="replace") as file:
            if path.exists():
                shutil.copymode(path, unfinished)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sweep(path.parent, prefix, ".unfinished")


def sweep(folder: Path, prefix: str, suffix: str) -> None:
    """Remove files of these names that a process was writing when it was killed: a day ago."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(prefix) and path.name.endswith(suffix):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                        path.unlink()


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold a folder against other processes that ask for the same, waiting until they are done.

    Yields
    ------
    bool
        False where there is no such folder, or neither system nor file system has locks: then
        others may be in it.

    Notes
    -----
    The lock ends with the process, however that ends. No file is left behind.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        yield _lock(handle, folder, fcntl.flock, fcntl.LOCK_EX, fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, flock: Any, exclusively: int, without_waiting: int) -> bool:
    try:
        try:
            flock(handle, exclusively | without_waiting)
        except BlockingIOError:
            logger.warning("another process is at work in %s: waiting until it is done", folder)
            flock(handle, exclusively)
    except OSError:
        return False
    return True
