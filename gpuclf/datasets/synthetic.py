"""CIFAR-shaped images made in memory, for tests and benchmarks that must not need a download."""

import operator

import numpy as np
import numpy.typing as npt

__all__ = ["make_synthetic"]

_N_CLASSES = 10
_IMAGE_SIDE = 32
_IMAGE_BYTES = 3 * _IMAGE_SIDE * _IMAGE_SIDE

# The task (class pictures, backgrounds) hangs on this seed alone, so that samples drawn with
# different seeds are samples of one and the same task.
_TASK_SEED = 20090408
_N_MODES = 4
_N_BACKGROUNDS = 1024
_GRID_SIDE = 8
_SHIFTS = (-2, 0, 2)

# A pixel is 128 plus a class picture (at most 17 + 8), two backgrounds (34 each), a brightness
# (12) and noise (15), so it lies in 8..248. That bound is what lets the sums below run in uint8,
# modulo 256, without a wider copy and without a clipping pass.
_MODE_AMPLITUDE = 17
_SIGNED_AMPLITUDE = 8
_BACKGROUND_AMPLITUDE = 34
_BRIGHTNESS_AMPLITUDE = 12

# 256 rows of 3,072 bytes: a block and its two work buffers stay in a core's L2 cache.
_BLOCK_ROWS = 256


def make_synthetic(
    n: int = 50_000, seed: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Make a learnable ten-class data set in the shape of CIFAR-10.

    Parameters
    ----------
    n : int, default 50_000
        Number of samples, 0 or more.
    seed : int, default 0
        Chooses the samples, not the task: every seed draws from the same ten classes, so a
        training set of one seed and a test set of another belong together.

    Returns
    -------
    X : ndarray of uint8, shape (n, 3072)
        Images, one a row, in CIFAR's order: the red, green and blue plane, each 32 x 32 row-major.
    y : ndarray of int64, shape (n,)
        Labels 0..9, drawn independently and uniformly.

    Raises
    ------
    ValueError
        If `n` or `seed` is negative.
    TypeError
        If `n` or `seed` is not an integer.

    Notes
    -----
    An image is the sum of smooth, low-frequency fields:

    - one of four pictures of its class, mirrored half of the time and shifted by up to two
      pixels. Its mean over a class is what a linear classifier can find;
    - a picture of its class added with a random sign. Its mean is zero, so that no linear
      classifier can use it, but a hidden layer can;
    - the difference of two out of 1,024 backgrounds, which carry no information on the class and
      cover the same frequencies;
    - a brightness of its own, and noise in every pixel.

    A softmax classifier trained on 50,000 images is right on about half of new ones, a two-layer
    net with 100 hidden units on clearly more.

    The same arguments give the same bytes on every machine: only integer arithmetic and the raw
    stream of PCG64, which NumPy guarantees to keep, are used. ``make_synthetic(m, seed)`` with
    ``m < n`` is the beginning of ``make_synthetic(n, seed)``.

    Examples
    --------
    >>> X, y = make_synthetic(n=100, seed=0)
    >>> X.shape, X.dtype.name, y.shape, y.dtype.name
    ((100, 3072), 'uint8', (100,), 'int64')
    >>> X_test, y_test = make_synthetic(n=20, seed=1)
    """
    n, seed = operator.index(n), operator.index(seed)
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")

    pictures, backgrounds = _render_task()
    pictures_per_class = len(pictures) // _N_CLASSES
    bits = np.random.PCG64(seed)
    X = np.empty((n, _IMAGE_BYTES), np.uint8)
    y = np.empty(n, np.int64)
    work = np.empty((_BLOCK_ROWS, _IMAGE_BYTES), np.uint8)

    for start in range(0, n, _BLOCK_ROWS):
        # Whole blocks are drawn even where the last one is cut, so that n does not change the
        # samples before it.
        picture = _integers(bits, len(pictures), _BLOCK_ROWS)
        added = _integers(bits, len(backgrounds), _BLOCK_ROWS)
        subtracted = _integers(bits, len(backgrounds), _BLOCK_ROWS)
        brightness = _integers(bits, 2 * _BRIGHTNESS_AMPLITUDE + 1, _BLOCK_ROWS)
        brightness -= _BRIGHTNESS_AMPLITUDE
        noise = _bytes(bits, _BLOCK_ROWS * _IMAGE_BYTES).reshape(_BLOCK_ROWS, _IMAGE_BYTES)

        images = X[start : start + _BLOCK_ROWS]
        rows = len(images)
        term = work[:rows]
        y[start : start + rows] = picture[:rows] // pictures_per_class
        # mode="clip" is there for speed alone: with the default, take() buffers its output.
        np.take(pictures, picture[:rows], axis=0, out=images, mode="clip")
        np.take(backgrounds, added[:rows], axis=0, out=term, mode="clip")
        np.add(images, term, out=images)
        np.take(backgrounds, subtracted[:rows], axis=0, out=term, mode="clip")
        np.subtract(images, term, out=images)
        np.add(images, brightness[:rows, np.newaxis].astype(np.uint8), out=images)
        # The difference of a byte's two halves is triangular on -15..15: a bell-like noise out of
        # one random byte a pixel.
        np.right_shift(noise[:rows], 4, out=term)
        np.add(images, term, out=images)
        np.bitwise_and(noise[:rows], 15, out=term)
        np.subtract(images, term, out=images)
    return X, y


def _render_task() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the class pictures, sorted by class, and the backgrounds: uint8 (rows, 3072)."""
    bits = np.random.PCG64(_TASK_SEED)
    modes = _smooth_fields(bits, _N_CLASSES * _N_MODES, _MODE_AMPLITUDE)
    signed = _smooth_fields(bits, _N_CLASSES, _SIGNED_AMPLITUDE)
    backgrounds = _smooth_fields(bits, _N_BACKGROUNDS, _BACKGROUND_AMPLITUDE)

    # Axes: class, mode, sign, plane, row, column; each step below adds variants as axis 1.
    modes = modes.reshape(_N_CLASSES, _N_MODES, 1, *modes.shape[1:])
    signed = np.stack([signed, -signed], axis=1)[:, np.newaxis]
    pictures = (modes + signed).reshape(_N_CLASSES, -1, *modes.shape[3:])
    pictures = np.concatenate([pictures, pictures[..., ::-1]], axis=1)
    pictures = np.concatenate([np.roll(pictures, shift, axis=-1) for shift in _SHIFTS], axis=1)
    pictures = np.concatenate([np.roll(pictures, shift, axis=-2) for shift in _SHIFTS], axis=1)
    pictures += 128
    return (
        pictures.reshape(-1, _IMAGE_BYTES).astype(np.uint8),
        backgrounds.reshape(-1, _IMAGE_BYTES).astype(np.uint8),
    )


def _smooth_fields(bits: np.random.PCG64, count: int, amplitude: int) -> npt.NDArray[np.int16]:
    """Return int16 (count, 3, 32, 32): random grids, interpolated, within +-`amplitude`."""
    grids = _integers(bits, 2 * amplitude + 1, count * 3 * _GRID_SIDE**2) - amplitude
    fields = grids.astype(np.int16).reshape(count * 3, _GRID_SIDE, _GRID_SIDE)
    # Bilinear interpolation in integers: floating point could round differently elsewhere. The
    # grid closes on itself, so that a shifted picture has no seam.
    step = _IMAGE_SIDE // _GRID_SIDE
    for axis, shape in ((1, (-1, _IMAGE_SIDE, _GRID_SIDE)), (2, (-1, _IMAGE_SIDE, _IMAGE_SIDE))):
        following = np.roll(fields, -1, axis=axis)
        between = [(step - k) * fields + k * following for k in range(step)]
        fields = np.stack(between, axis=axis + 1).reshape(shape)
    fields //= step**2
    return fields.reshape(count, 3, _IMAGE_SIDE, _IMAGE_SIDE)


def _integers(bits: np.random.PCG64, bound: int, count: int) -> npt.NDArray[np.int64]:
    """Return `count` integers in 0..bound-1 from the raw stream, which never changes in NumPy."""
    raw = bits.random_raw(count) >> np.uint64(32)
    return ((raw * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _bytes(bits: np.random.PCG64, count: int) -> npt.NDArray[np.uint8]:
    """Return `count` random bytes, `count` a multiple of eight, the same on either byte order."""
    return bits.random_raw(count // 8).astype("<u8", copy=False).view(np.uint8)
