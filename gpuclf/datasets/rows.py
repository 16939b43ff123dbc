"""Images as rows, in the one layout of this library: the planes one after another.

A row is an image of shape (channels, height, width), flattened row-major, as in CIFAR-10's own
files: first every pixel of the red plane, then the green and the blue one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from gpuclf.arrays import Array, array_namespace, library_of, values_are_on_host
from gpuclf.datasets.decoding import (
    check_size,
    decode,
    find_common_size,
    is_picture,
    resize_planes,
)
from gpuclf.devices.uploads import row_slices
from gpuclf.samples.walk import block_rows, concat_row_blocks

__all__ = ["LAYOUTS", "ImageShape", "as_bytes", "as_rows", "resize_rows", "to_rows"]

ImageShape = tuple[int, int, int]
LAYOUTS = ("NHWC", "NCHW", "NHW")
_CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha


def as_rows(
    X: Array, layout: str | None = None, name: str = "X"
) -> tuple[Array, ImageShape | None, str | None]:
    """Flatten images to rows, the planes first; no value is changed or looked at.

    Parameters
    ----------
    X : array
        Images of shape (N, height, width, channels), (N, channels, height, width) or
        (N, height, width), or rows (N, D). Of any array library and dtype.
    layout : {"NHWC", "NCHW", "NHW"}, optional
        What the axes of X are. By default the shape tells: of four axes, the one of length 1, 3
        or 4 at either end is the channels; three axes are grey images.
    name : str
        Of X, for the error.

    Returns
    -------
    rows : array of shape (N, channels * height * width)
        A view of X where its memory is in that order already.
    image_shape : tuple of int or None
        (channels, height, width), as :func:`gpuclf.augment.horizontal_flip` takes it; None where X
        is rows already.
    layout : str or None
        What was taken for the layout: passed on for further images of the same kind, it leaves
        nothing to guess.

    Raises
    ------
    ValueError
        If the shape has two readings or none, or is not one of `layout`.

    Notes
    -----
    No array says whether its colours are red, green, blue or blue, green, red (OpenCV's order).

    Examples
    --------
    >>> import numpy as np
    >>> rows, image_shape, layout = as_rows(np.zeros((5, 32, 24, 3), np.uint8))
    >>> rows.shape, image_shape, layout
    ((5, 2304), (3, 32, 24), 'NHWC')
    """
    xp = array_namespace(X)
    shape = tuple(map(int, X.shape))
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if len(shape) == 2:
        return X, None, None
    layout = layout or _layout_of(shape, name)
    if len(layout) != len(shape):
        remedy = (
            f"a single image is a batch of its own: {name}[None, ...]"
            if len(shape) == len(layout) - 1
            else "leave layout out"
        )
        raise ValueError(
            f"{name} has shape {shape}, which is not of layout {layout!r}, {len(layout)} axes; "
            f"{remedy}"
        )
    if layout == "NHWC":
        X = xp.permute_dims(X, (0, 3, 1, 2))
    image_shape = _image_shape(shape, layout)
    return xp.reshape(X, (shape[0], math.prod(image_shape))), image_shape, layout


def _image_shape(shape: tuple[int, ...], layout: str) -> ImageShape:
    size = dict(zip(layout, shape, strict=True))
    return size.get("C", 1), size["H"], size["W"]


def _layout_of(shape: tuple[int, ...], name: str) -> str:
    """Return the one layout that a shape of three or four axes can have."""
    if len(shape) == 3:
        n, height, width = shape
        # One colour image that was not put into a batch would pass for a batch of grey ones.
        if n != 3 and not (width in (3, 4) and height not in (3, 4)):
            return "NHW"
        raise ValueError(
            f"{name} of shape {shape} may be {n} grey images of {height} x {width} pixels, or one "
            f"colour image; give layout='NHW' for the first, {name}[None, ...] for the second"
        )
    if len(shape) != 4:
        raise ValueError(
            f"{name} must be images of shape (N, height, width, channels), (N, channels, height, "
            f"width) or (N, height, width), or rows (N, D), got {shape}"
        )
    possible = [layout for layout in ("NCHW", "NHWC") if shape[layout.index("C")] in _CHANNELS]
    if len(possible) == 1:
        return possible[0]
    _, first, second, last = shape
    neither = "" if possible else ", though neither end has 1, 3 or 4 channels"
    raise ValueError(
        f"{name} of shape {shape} may be images of {first} planes of {second} x {last} pixels, or "
        f"of {first} x {second} pixels with {last} channels{neither}; give layout='NCHW' for the "
        "first, layout='NHWC' for the second"
    )


def to_rows(
    images: Any,
    size: int | tuple[int, int] | None = None,
    *,
    layout: str | None = None,
    channels: int = 3,
) -> Array:
    """Return images as rows of bytes, whatever they come as.

    Parameters
    ----------
    images : array, or sequence of PIL images, paths or arrays
        An array as for :func:`gpuclf.datasets.rows.as_rows`; arrays of a list must all have one
        shape, (height, width) or with channels at one end. Pictures and files of pictures may be
        grey, coloured, with alpha (shown on white) or a palette; EXIF's rotation is applied.
    size : int or (height, width), optional
        What every image is stretched to, which pictures of different sizes need. By default each
        keeps its size.
    layout : {"NHWC", "NCHW", "NHW"}, optional
        Of arrays, where the shape has two readings.
    channels : {3, 1}, default 3
        What pictures and files become: red, green and blue, or grey. Arrays keep their channels.

    Returns
    -------
    uint8 array of shape (N, channels * height * width)
        One image a row, the planes one after another. In the array library of `images`.

    Raises
    ------
    ValueError
        If a shape has two readings, sizes differ, a file cannot be read, or values can be neither
        bytes nor fractions of them.
    ImportError
        If Pillow is wanted and missing.

    Notes
    -----
    Values become bytes by one rule. uint8 stays; other integers must be in 0..255; of booleans,
    True is 255. Floats that reach at most 1 are fractions, times 255 and rounded; other floats must
    be whole and in 0..255. Everything else is refused: standardised or signed images cannot be made
    bytes again (the classifiers take them as floats).

    Examples
    --------
    >>> import numpy as np
    >>> to_rows(np.full((2, 32, 32, 3), 0.5)).shape
    (2, 3072)
    >>> to_rows(np.array([[[0.0, 0.5], [1.0, 0.25]]]))
    array([[  0, 128, 255,  64]], dtype=uint8)
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (colour) or 1 (grey), got {channels!r}")
    wanted = check_size(size)
    if isinstance(images, (str, os.PathLike)) or is_picture(images):
        images = [images]
    if not _is_array(images):
        if not isinstance(images, Iterable):
            raise TypeError(
                "images must be an array, or a list of PIL images, paths or arrays, got "
                f"{type(images).__name__}"
            )
        images = list(images)
        if not images:
            raise ValueError("images is empty: there is no image in the list")
        if all(isinstance(image, (str, os.PathLike)) or is_picture(image) for image in images):
            return _decoded(images, wanted, channels)
        images = _stacked(images)
    rows, image_shape, _ = as_rows(images, layout, "images")
    rows = as_bytes(rows, "images")
    if wanted is None:
        return rows
    if image_shape is None:
        raise ValueError(
            f"images of shape {tuple(images.shape)} are rows already, of unknown height and width; "
            "give size with images of three or four axes only"
        )
    return resize_rows(rows, image_shape, wanted)


def _is_array(images: Any) -> bool:
    return hasattr(images, "shape") and hasattr(images, "dtype")


def _decoded(images: list[Any], size: tuple[int, int] | None, channels: int) -> npt.NDArray[Any]:
    rows, failed = decode(images, size or find_common_size(images), channels)
    if failed:
        listed = "; ".join(f"{which}: {why}" for which, why in list(failed.values())[:5])
        raise ValueError(f"{len(failed)} of {len(images)} images cannot be read: {listed}")
    return rows


def _stacked(images: list[Any]) -> Array:
    """Return the arrays of a list as one."""
    odd = next((image for image in images if not _is_array(image)), None)
    if odd is not None:
        raise TypeError(
            "a list of images must hold PIL images and paths, or arrays, got an item of type "
            f"{type(odd).__name__}; for numbers in lists, pass numpy.asarray(images)"
        )
    shapes = sorted({tuple(map(int, image.shape)) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"the arrays of images have different shapes, such as {shapes[0]} and {shapes[1]}; "
            "pass pictures, which size=(32, 32) makes alike: "
            "[PIL.Image.fromarray(image) for image in images]"
        )
    if len(shapes[0]) not in (2, 3):
        raise ValueError(
            "the arrays of a list must be one image each, (height, width) or with channels at one "
            f"end, got shape {shapes[0]}; put batches together with numpy.concatenate(images)"
        )
    return array_namespace(*images).stack(images, axis=0)


def as_bytes(rows: Array, name: str = "images") -> Array:
    """Return rows (N, D) as uint8 by the rule of :func:`to_rows`, block by block."""
    xp = library_of(rows)
    if rows.dtype == xp.uint8:
        return rows
    if rows.dtype == xp.bool:
        return xp.astype(rows, xp.uint8) * 255
    is_float = xp.isdtype(rows.dtype, "real floating")
    if not is_float and not xp.isdtype(rows.dtype, "integral"):
        raise TypeError(f"{name} must be integers, booleans or floats, got {rows.dtype}")
    n_rows, n_columns = map(int, rows.shape)
    if n_rows * n_columns == 0:
        return xp.astype(rows, xp.uint8)
    # Libraries lack functions of short floats and of unsigned integers.
    dtype = xp.float32 if is_float and rows.dtype != xp.float64 else xp.float64
    like = xp.zeros((1,), dtype=dtype, device=rows.device)
    step = block_rows(like, n_rows, 3 * n_columns, converted=True)

    def block(part: slice) -> Array:
        return xp.astype(rows[part, :], dtype, copy=False)

    high = _check_range((block(part) for part in row_slices(n_rows, step)), is_float, name)
    factor = 255 if is_float and high <= 1 else 1

    def bytes_of(part: slice) -> Array:
        return xp.astype(xp.round(block(part) * factor), xp.uint8)

    return concat_row_blocks(bytes_of, n_rows, step)


def _check_range(blocks: Iterable[Array], is_float: bool, name: str) -> float:
    """Return the largest value; raise where the values can be neither bytes nor fractions."""
    lows, highs, whole = [], [], True
    for values in blocks:
        xp = library_of(values)
        lows.append(float(xp.min(values)))
        highs.append(float(xp.max(values)))
        if not (math.isfinite(lows[-1]) and math.isfinite(highs[-1])):
            raise ValueError(f"{name} hold NaN or infinity; replace it, or leave these images out")
        whole = whole and (not is_float or bool(xp.all(values == xp.round(values))))
    low, high = min(lows), max(highs)
    found = f"{name} are {low:g}..{high:g}, neither fractions 0..1 nor whole numbers 0..255"
    if low >= 0 and (high <= 1 or (high <= 255 and whole)):
        return high
    if low >= 0 and high <= 255:
        remedy = f"round pixels with numpy.round({name}), or cut fractions off at 1"
    elif low >= 0 and high <= 65535 and whole:
        remedy = f"of 16 bits a pixel, take the upper eight: {name} // 256"
    elif low >= -1 and high <= 1:
        remedy = f"if they were scaled to -1..1, undo that: ({name} + 1) / 2"
    else:
        remedy = (
            "give standardised images to the classifiers as the floats they are, as rows: "
            f"gpuclf.datasets.rows.as_rows({name})[0]"
        )
    raise ValueError(f"{found}; {remedy}")


def resize_rows(rows: Array, image_shape: ImageShape, size: tuple[int, int]) -> Array:
    """Return rows of bytes, the images stretched to (height, width)."""
    if tuple(image_shape[1:]) == tuple(size):
        return rows
    if not values_are_on_host(rows):
        raise TypeError(
            "only NumPy arrays are resized; bring the images to the host first: "
            "gpuclf.to_host(images)"
        )
    resized = resize_planes(rows.reshape(-1, *image_shape[1:]), size)
    return resized.reshape(len(rows), image_shape[0] * math.prod(size))
