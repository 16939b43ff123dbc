"""Files that are written whole or not at all, and durations as people read them."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "alone_in",
    "check_writable",
    "format_seconds",
    "is_standard_output",
    "replace_whole",
    "sweep",
    "write_json",
    "write_whole",
]

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 24 * 3600.0
LONGEST_NAME = 240  # of 255 bytes: copies and backups of a file have longer names than it
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


def is_standard_output(path: Path) -> bool:
    """Whether a path is "-", or the file that standard output goes to."""
    if str(path) == "-":
        return True
    try:  # a file that is replaced while lines are printed to it would lose them
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno())) and path.is_file()
    except (AttributeError, OSError, ValueError):
        return False


def check_writable(path: Path) -> None:
    """Raise an OSError if :func:`write_whole` could not write there; nothing is left behind."""
    if is_standard_output(path):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written")
    if path.exists() and not path.is_file():
        return  # whoever reads from a pipe would take a trial for the whole
    try:
        path = path.resolve()
    except RuntimeError as error:  # links in a circle
        raise OSError(str(error)) from None
    if path.is_symlink():  # the same from Python 3.13 on
        raise OSError(f"{path} is one of links in a circle: name a file")
    n_bytes = len(os.fsencode(path.name))
    if n_bytes > LONGEST_NAME:
        raise OSError(
            f"{path.name[:20]}... is a name of {n_bytes} bytes: give one of {LONGEST_NAME} or fewer"
        )
    missing = [folder for folder in path.parents if not folder.exists()]
    there = next(folder for folder in path.parents if folder not in missing)
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: name a folder")
    trial = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.open("x").close()
        trial.unlink()
    except OSError as error:
        raise type(error)(f"no file can be made in {path.parent}: {error.strerror}") from None
    finally:
        for folder in missing:
            if folder.exists():
                folder.rmdir()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, creating the folder if need be; "-" is standard output.

    Several processes may write the same file: it is that of the last one.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    if is_standard_output(path):
        sys.stdout.write(data.decode("utf-8"))
        sys.stdout.flush()
        return
    if path.exists() and not path.is_file():  # a device or a pipe stays what it is
        path.write_bytes(data)
        return
    replace_whole(path, data)


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever it is called; see :func:`write_whole`."""
    path = path.resolve()  # what a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, and with room for it where the file's own name has the longest that is
    # allowed. Not by tempfile, whose files nobody else may read.
    prefix = f".{path.name[:40]}."
    unfinished = path.with_name(f"{prefix}{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("xb") as file:
            if path.exists():
                shutil.copymode(path, unfinished)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a crash may leave the new name with no content
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
