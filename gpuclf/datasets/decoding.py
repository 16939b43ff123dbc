"""Pictures decoded to rows of bytes, in threads."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "check_size",
    "decode",
    "find_common_size",
    "import_pillow",
    "is_picture",
    "late_progress",
    "resize_planes",
]

# By content, not by name: others of Pillow's many decoders, some of which start programs, are
# never reached.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF
# How many times the wanted size a JPEG is decoded at, where it is larger.
_DRAFT = 4
_QUIET_SECONDS = 2.0
_now = time.monotonic


def import_pillow() -> Any:
    """Return PIL.Image, or raise an ImportError with the command that installs it."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "reading images needs Pillow, which is not installed: pip install pillow"
        ) from None
    return Image


def is_picture(image: object) -> bool:
    """Tell whether this is an image of Pillow, without importing it."""
    return any(kind.__module__.startswith("PIL.") for kind in type(image).__mro__)


def check_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width); one number stands for both."""
    if size is None:
        return None
    try:
        height, width = size if isinstance(size, Sequence) else (size, size)
        height, width = operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise TypeError(
            f"size must be a number of pixels or (height, width), got {size!r}"
        ) from None
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 pixel each way, got {size!r}")
    return height, width


def find_common_size(images: Sequence[Any]) -> tuple[int, int]:
    """Return the (height, width) that all pictures have; an error names two that differ."""
    pillow = import_pillow()
    first: tuple[int, int] | None = None
    for i, image in enumerate(images):
        try:
            with _opened(pillow, image) as picture:
                width, height = picture.size
                turned = picture.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        except Exception as error:  # as in decode
            raise ValueError(f"{_name(images, i)} cannot be read: {_reason(error)}") from error
        size = (width, height) if turned else (height, width)
        first = first or size
        if size != first:
            raise ValueError(
                f"images differ in size: {_name(images, 0)} is {first[0]} x {first[1]} (height x "
                f"width) and {_name(images, i)} is {size[0]} x {size[1]}; give the size that all "
                "shall have, such as size=(32, 32)"
            )
    assert first is not None
    return first


def decode(
    images: Sequence[Any], size: tuple[int, int], channels: int
) -> tuple[npt.NDArray[np.uint8], dict[int, tuple[str, str]]]:
    """Decode pictures or files of them, in threads.

    Returns
    -------
    rows : ndarray of uint8, shape (N, channels * height * width)
        Zeros for those that could not be read.
    failed : dict
        For the position of each of these, its name and the reason.
    """
    pillow = import_pillow()
    rows = np.zeros((len(images), channels * size[0] * size[1]), np.uint8)
    failed: dict[int, tuple[str, str]] = {}

    def one(i: int) -> None:
        try:
            with _opened(pillow, images[i]) as picture:
                if picture is not images[i]:
                    # The decoder leaves out detail that is thrown away below.
                    picture.draft(None, (_DRAFT * max(size),) * 2)
                rows[i] = _pixels(pillow, picture, size, channels)
        # On damaged files the decoders raise nearly anything: struct.error, SyntaxError, ...
        except Exception as error:
            failed[i] = _name(images, i), _reason(error)

    with (
        late_progress("reading images", len(images)) as advance,
        ThreadPoolExecutor(
            min(16, os.cpu_count() or 1), thread_name_prefix="gpuclf-images"
        ) as pool,
    ):
        for _ in pool.map(one, range(len(images))):
            advance()
    return rows, dict(sorted(failed.items()))


@contextmanager
def _opened(pillow: Any, image: Any) -> Iterator[Any]:
    if is_picture(image):
        yield image
        return
    with pillow.open(Path(image).expanduser(), formats=_FORMATS) as picture:
        yield picture


def _name(images: Sequence[Any], i: int) -> str:
    return f"image {i}" if is_picture(images[i]) else os.fspath(images[i])


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"not an image in {', '.join(_FORMATS)}, or damaged"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


def _pixels(pillow: Any, picture: Any, size: tuple[int, int], channels: int) -> Any:
    """Return the planes of one picture, flattened."""
    from PIL import ImageOps

    height, width = size
    mode = "RGB" if channels == 3 else "L"
    picture = _eight_bits(pillow, ImageOps.exif_transpose(picture))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = pillow.new("RGBA", picture.size, "white")
        picture = pillow.alpha_composite(white, picture)
    picture = picture.convert(mode)
    if picture.size != (width, height):
        picture = picture.resize((width, height), pillow.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.uint8)
    return np.moveaxis(pixels.reshape(height, width, channels), -1, 0).reshape(-1)


def _eight_bits(pillow: Any, picture: Any) -> Any:
    """Return a picture whose numbers have eight bits; Pillow would cut larger ones off at 255."""
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits each, and what is white is not known")
    if not picture.mode.startswith("I;16"):
        return picture
    return pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def resize_planes(planes: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return planes (N, height, width) stretched to another (height, width)."""
    pillow = import_pillow()
    resized = np.empty((len(planes), *size), np.uint8)
    with late_progress("resizing images", len(planes)) as advance:
        for plane, result in zip(planes, resized, strict=True):
            picture = pillow.fromarray(plane).resize(size[::-1], pillow.Resampling.BILINEAR)
            result[...] = np.asarray(picture)
            advance()
    return resized


@contextmanager
def late_progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function to call after each of `total` steps; a bar shows once it takes seconds."""
    start, done = _now(), 0
    bar = task = None

    def advance() -> None:
        nonlocal bar, task, done
        done += 1
        if bar is None:
            if _now() - start < _QUIET_SECONDS:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(what, total=total)
        bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()
