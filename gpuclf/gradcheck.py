"""Gradients by centred differences, and the comparison of an analytic gradient with them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.flat_params import flatten_params, unflatten_params

__all__ = ["GradCheck", "grad_check", "numeric_gradient"]

MODES = ("auto", "full", "sampled", "direction")
MOST_COORDINATES = 1000  # "auto" samples from more, and with more a terminal sees the progress
# A value that rounding hides is small beside the gradient's largest, or it cannot be judged.
NEGLIGIBLE = 1e-3
# Rounding of a sum of N losses grows slower than N; 16 units in the last place cover the sizes
# that anyone checks coordinate by coordinate.
ROUNDING_UNITS = 16


@dataclass(frozen=True)
class GradCheck:
    """What :func:`grad_check` found.

    Attributes
    ----------
    passed : bool
        No coordinate is wrong, and at least half of them could be judged.
    max_relative_error : float
        The largest of the judged coordinates; NaN if there is none.
    worst : tuple of (str, tuple of int) or None
        Name and index of that coordinate; None for a random direction. A gradient that was not
        given as a dict is called "x".
    analytic, numeric : float
        The two values there.
    n_checked : int
        Coordinates (or directions) judged.
    n_kinks : int
        Coordinates not judged, because the function has a kink within the step or is curved too
        strongly for it.
    rtol : float
    n_hidden : int
        Coordinates not judged, because rounding of f explains both values.
    advice : str
        What to do about those, empty where there are none.
    """

    max_relative_error: float
    worst: tuple[str, tuple[int, ...]] | None
    analytic: float
    numeric: float
    n_checked: int
    n_kinks: int
    rtol: float
    n_hidden: int = 0
    advice: str = ""

    @property
    def passed(self) -> bool:
        """Whether no coordinate is wrong, and at least half of them could be judged."""
        enough = self.n_checked >= self.n_kinks + self.n_hidden
        return self.max_relative_error <= self.rtol and enough

    def __str__(self) -> str:
        n_unjudged = self.n_kinks + self.n_hidden
        counts = f"{self.n_checked} checked, {self.n_kinks} at kinks"
        counts += f", {self.n_hidden} not judged" if self.n_hidden else ""
        if self.n_checked < n_unjudged and not self.max_relative_error > self.rtol:
            judged = f"only {self.n_checked} of {self.n_checked + n_unjudged}"
            why = (
                self.advice
                if self.n_hidden >= self.n_kinks
                else "within the step the function has kinks, or is curved too strongly for the "
                "step; check at another point, or with a smaller h"
            )
            return (
                f"failed: {judged if self.n_checked else 'nothing'} could be judged ({counts}): "
                f"{why}"
            )
        where = "along a random direction"
        if self.worst is not None:
            name, index = self.worst
            where = f"at {name}[{', '.join(map(str, index))}]" if index else f"at {name}"
        return (
            f"{'passed' if self.passed else 'failed'}: max relative error "
            f"{self.max_relative_error:.1e} {where} (analytic {self.analytic:.9g}, numeric "
            f"{self.numeric:.9g}), tolerance {self.rtol:.0e}; {counts}"
        )

    def __repr__(self) -> str:
        return f"<GradCheck {self}>"


def numeric_gradient(f: Callable[[Any], Any], x: Any, h: float = 1e-5) -> Any:
    r"""Gradient of a function by centred differences, one coordinate after the other.

    .. math:: \frac{\partial f}{\partial x_i} \approx \frac{f(x + h e_i) - f(x - h e_i)}{2h}

    Parameters
    ----------
    f : callable
        Takes what `x` is and returns one number.
    x : array of any shape, or dict of arrays
        Never changed: `f` gets copies, as float64 on the same device, because in float32 the
        rounding of f would drown the difference.
    h : float
        The step. The error is about :math:`h^2 f'''/6` plus the rounding of f divided by h.

    Returns
    -------
    array or dict of arrays, float64
        The shapes of `x`, on its device.

    Raises
    ------
    TypeError, ValueError
        If `x` is neither an array nor a dict of arrays, f does not return one number, or h is not
        above 0.

    Notes
    -----
    Calls f twice for each number in x. Source: Stanford CS231n, "Neural networks part 3",
    section on gradient checks.

    Examples
    --------
    >>> numeric_gradient(lambda x: (x**2).sum(), np.array([1.0, -3.0])).round(6)
    array([ 2., -6.])
    """
    like, value = _as_flat_function(f, x, h)
    flat = flatten_params(like)
    gradient = np.empty_like(flat)
    for i in range(flat.size):
        gradient[i] = _centred_difference(value, partial(_step_along, flat, i), h)
    found = unflatten_params(gradient, like, np.float64)
    return found if isinstance(x, dict) else found["x"]


def grad_check(
    f: Callable[[Any], Any],
    x: Any,
    analytic_gradient: Any,
    *,
    mode: str = "auto",
    n_checks: int = 100,
    h: float = 1e-5,
    rtol: float = 1e-7,
    atol: float | None = None,
    seed: int = 0,
) -> GradCheck:
    r"""Compare an analytic gradient a with centred differences n.

    The relative error is

    .. math:: \frac{|a - n|}{\max(|a| + |n|,\; \mathrm{atol} / \mathrm{rtol})}

    Hinge losses and ReLU have kinks. Where one lies within the step, n is no gradient. So each
    coordinate that does not agree is measured again with half the step: where these differences
    disagree among themselves by as much as with a, it counts as "at a kink", not as wrong. Where
    only curvature is in the way, whose error falls by 4 with half the step, the two steps together
    give a difference free of it (Richardson's extrapolation), and a is held against that.

    Where rounding of f is larger than both a and n, it hides any error, a wrong sign too: such a
    coordinate counts as "not judged", unless what hides is small (1/1000) beside the gradient's
    largest value, or f is the same at a thousandfold step as well. A f whose values all fit float32
    is taken to be rounded to float32.

    Parameters
    ----------
    f : callable
        Takes what `x` is and returns one number; called with float64 copies, see
        :func:`numeric_gradient`.
    x : array of any shape, or dict of arrays
        Where to check.
    analytic_gradient : array or dict of arrays
        The shapes of `x`.
    mode : {"auto", "full", "sampled", "direction"}
        "full" is all coordinates; "sampled" `n_checks` of them drawn at random; "direction" the
        slope along one random direction, which sees every coordinate in two calls of f, but not
        which one is wrong. "auto" is "full" for up to 1,000 coordinates, and else "sampled" and
        "direction" together. Of more than 1,000, a terminal sees the progress.
    n_checks : int
        For "sampled" and "auto"; all coordinates if there are no more.
    h : float
        The step.
    rtol : float
        Largest relative error that passes. For a gradient computed in float32 use about 1e-3.
    atol : float, optional
        Differences up to this pass. By default what rounding explains: 16 units in the last place
        of f, divided by h, and of the largest value of the gradient.
    seed : int
        For "sampled" and "direction".

    Returns
    -------
    GradCheck
        Look at its `passed`; printed, it names the worst coordinate.

    Raises
    ------
    TypeError, ValueError
        As :func:`numeric_gradient`, and if the gradient's names or shapes are not those of `x`.

    Notes
    -----
    Source: Stanford CS231n, "Neural networks part 3", section on gradient checks, where relative
    errors of 1e-7 and less are called happy.

    Examples
    --------
    >>> x = np.array([1.0, -3.0])
    >>> grad_check(lambda x: (x**2).sum(), x, 2 * x).passed
    True
    >>> grad_check(lambda x: (x**2).sum(), x, np.array([2.0, -7.0])).worst
    ('x', (1,))
    >>> grad_check(lambda x: np.abs(x).sum(), np.array([0.0, -3.0]), np.array([1.0, -1.0])).n_kinks
    1
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if mode in ("auto", "sampled") and n_checks < 1:
        raise ValueError(f"n_checks must be at least 1, got {n_checks!r}")
    if not rtol > 0:
        raise ValueError(f"rtol must be above 0, got {rtol!r}")
    like, exact = _as_flat_function(f, x, h)
    value = _Watched(exact)
    analytic = _flatten_gradient(analytic_gradient, x, like)
    flat = flatten_params(like)
    size = abs(value(flat)) if atol is None else 0.0
    lines = _lines(flat, analytic, mode, n_checks, seed)
    numeric = [_centred_difference(value, line, h) for _, line, _ in _with_progress(lines)]

    rounding = 0.0  # what it explains, where nobody says what to allow
    if atol is None:
        gradients = analytic_gradient.values() if isinstance(x, dict) else [analytic_gradient]
        of_gradient = max(_rounding(g) for g in gradients) * np.abs(analytic).max()
        rounding = atol = ROUNDING_UNITS * float(value.eps * size / h + of_gradient)
    floor = max(atol / rtol, np.finfo(np.float64).tiny)
    largest = float(np.abs(analytic).max())
    hides = rounding > NEGLIGIBLE * largest

    worst = GradCheck(math.nan, None, math.nan, math.nan, 0, 0, rtol)
    n_kinks = n_hidden = 0
    for (i, line, a), n in zip(lines, numeric, strict=True):
        if hides and max(abs(a), abs(n)) <= 2 * rounding:
            agree = abs(a - n) <= rtol * (abs(a) + abs(n))
            # Two zeros may be two that rounding made.
            if not agree or (a == 0 and _centred_difference(value, line, 1000 * h) != 0):
                n_hidden += 1
                continue
        error = abs(a - n) / max(abs(a) + abs(n), floor)
        if not error <= rtol:  # also NaN
            extrapolated, error_by_kink = _look_closer(value, line, h)
            closer = abs(a - extrapolated) / max(abs(a) + abs(extrapolated), floor)
            if closer <= rtol:
                n, error = extrapolated, closer
            elif abs(a - n) <= error_by_kink:
                n_kinks += 1
                continue
            error = math.inf if math.isnan(error) else error
        if not error <= worst.max_relative_error:  # also the first
            where = None if i is None else _name_coordinate(i, like)
            worst = GradCheck(error, where, a, n, 0, 0, rtol)
    advice = _advice(value, size, h, largest) if n_hidden else ""
    n_checked = len(lines) - n_kinks - n_hidden
    return replace(worst, n_checked=n_checked, n_kinks=n_kinks, n_hidden=n_hidden, advice=advice)


def _lines(
    flat: np.ndarray, analytic: np.ndarray, mode: str, n_checks: int, seed: int
) -> list[tuple[int | None, _Line, float]]:
    """Return along what to differentiate: the coordinate, if it is one, the line, and a."""
    rng = np.random.default_rng(seed)
    samples = mode == "sampled" or (mode == "auto" and flat.size > MOST_COORDINATES)
    order: Any = rng.permutation(flat.size)[:n_checks] if samples else range(flat.size)
    lines: list[tuple[int | None, _Line, float]] = []
    if mode != "direction":
        lines = [(int(i), partial(_step_along, flat, i), float(analytic[i])) for i in order]
    if mode == "direction" or (mode == "auto" and samples):
        direction = rng.standard_normal(flat.size)
        direction /= np.linalg.norm(direction)
        lines.append((None, lambda t: flat + t * direction, float(analytic @ direction)))
    return lines


def _with_progress(lines: list[Any]) -> Iterator[Any]:
    """Yield each, and count on a terminal where there are many."""
    shows = len(lines) > MOST_COORDINATES and sys.stderr is not None and sys.stderr.isatty()
    for done, line in enumerate(lines):
        if shows and done % 100 == 0:
            print(f"\rchecked {done:,} of {len(lines):,} coordinates", end="", file=sys.stderr)
        yield line
    if shows:
        print("\r" + " " * 60, end="\r", file=sys.stderr)


def _advice(value: _Watched, size: float, h: float, largest: float) -> str:
    """Say what makes the differences larger than their rounding."""
    is_single = value.eps > np.finfo(np.float64).eps
    # The step whose rounding is a thousandth of the gradient.
    longer = ROUNDING_UNITS * value.eps * size / (NEGLIGIBLE * largest) if largest > 0 else math.inf
    longer = 10.0 ** math.ceil(math.log10(longer)) if 0 < longer < math.inf else math.inf
    step = f", or check with h={longer:g}" if h < longer <= 1 else ""
    if is_single:
        return (
            "f is rounded to float32, which hides its differences: let it compute in the float64 "
            f"that it is called with{step}"
        )
    return (
        f"f is about {size:.1g}, and its rounding hides differences of a step of {h:g}: take what "
        f"does not depend on x out of f{step}"
    )


class _Watched:
    """A function that remembers whether its values were all those of float32."""

    def __init__(self, value: _Value) -> None:
        self._value = value
        self._seen: set[float] = set()  # some, as long as all are
        self._is_single = True

    def __call__(self, flat: np.ndarray) -> float:
        found = self._value(flat)
        if self._is_single and math.isfinite(found):
            with np.errstate(over="ignore"):
                self._is_single = float(np.float32(found)) == found
            if len(self._seen) < 3:
                self._seen.add(found)
        return found

    @property
    def eps(self) -> float:
        """Of the floats that the values are rounded to, as far as they show it."""
        is_single = self._is_single and len(self._seen) > 1
        return float(np.finfo(np.float32 if is_single else np.float64).eps)


_Line = Callable[[float], np.ndarray]  # the point at a distance from x
_Value = Callable[[np.ndarray], float]


def _step_along(flat: np.ndarray, i: int, t: float) -> np.ndarray:
    moved = flat.copy()
    moved[i] += t
    return moved


def _centred_difference(value: _Value, line: _Line, h: float) -> float:
    return (value(line(h)) - value(line(-h))) / (2 * h)


def _look_closer(value: _Value, line: _Line, h: float) -> tuple[float, float]:
    """Return a difference without the error of order h^2, and bound the error that kinks cause.

    A kink at distance d < h, where the slope jumps by J, moves the difference by J (1 - d/h) / 2.
    Halving h shows it in the difference itself unless d = 0, and in the change of slope (twice as
    much at h as at h/2, if the function is smooth) unless d = h/3. Of the larger of the two, the
    error is at most 2.5 times, reached at d = 2h/7.
    """
    here = value(line(0.0))

    def differences(h: float) -> tuple[float, float]:
        above, below = value(line(h)), value(line(-h))
        return (above - below) / (2 * h), (above - 2 * here + below) / h

    (slope, change), (slope_of_half, change_of_half) = differences(h), differences(h / 2)
    extrapolated = (4 * slope_of_half - slope) / 3
    return extrapolated, 2.5 * max(abs(slope - slope_of_half), abs(change - 2 * change_of_half))


def _as_flat_function(f: Callable[[Any], Any], x: Any, h: float) -> tuple[dict[str, Array], _Value]:
    """Return x as a dict, and f as a function of one float64 vector."""
    if not h > 0:
        raise ValueError(f"h must be above 0, got {h!r}")
    like: dict[str, Array] = x if isinstance(x, dict) else {"x": x}
    array_namespace(**like)  # raises if something is no array
    if sum(math.prod(value.shape) for value in like.values()) == 0:
        raise ValueError("x holds no numbers: there is no gradient")

    def value(flat: np.ndarray) -> float:
        point = unflatten_params(flat, like, np.float64)
        found = f(point if isinstance(x, dict) else point["x"])
        if isinstance(found, tuple):
            raise TypeError(
                f"f must return one number, got a tuple of {len(found)}; of (loss, gradient) "
                "pass the loss alone: lambda x: f(x)[0]"
            )
        number = np.asarray(found if np.isscalar(found) else to_host(found))
        if number.size != 1:
            raise ValueError(f"f must return one number, got an array of shape {number.shape}")
        return float(number.reshape(()))

    return like, value


def _flatten_gradient(gradient: Any, x: Any, like: dict[str, Array]) -> np.ndarray:
    """Return the gradient as one vector, after checking that it fits x."""
    if isinstance(x, dict) != isinstance(gradient, dict):
        raise TypeError(
            f"the gradient must be what x is, a dict or an array; x is {type(x).__name__}, the "
            f"gradient {type(gradient).__name__}"
        )
    gradients: dict[str, Array] = gradient if isinstance(x, dict) else {"x": gradient}
    array_namespace(**gradients)
    found = {name: tuple(value.shape) for name, value in gradients.items()}
    wanted = {name: tuple(value.shape) for name, value in like.items()}
    if found != wanted:
        raise ValueError(f"the gradient must have the shapes of x, {wanted}, got {found}")
    return flatten_params({name: gradients[name] for name in like})


def _rounding(gradient: Array) -> float:
    xp = array_namespace(gradient)
    is_float = xp.isdtype(gradient.dtype, "real floating")
    return float(xp.finfo(gradient.dtype).eps) if is_float else 0.0


def _name_coordinate(i: int, like: dict[str, Array]) -> tuple[str, tuple[int, ...]]:
    for name, value in like.items():
        size = math.prod(value.shape)
        if i < size:
            return name, tuple(int(k) for k in np.unravel_index(i, tuple(value.shape)))
        i -= size
    raise IndexError(i)
