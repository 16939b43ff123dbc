"""An array library whose values cannot be looked at: NumPy behind the array API standard.

As on a GPU, work is queued and nobody sees a value: float(), bool(), int(), iteration, conversion
to NumPy and indexing by an array raise. The one way out is DLPack, which is counted, and so are
ways in and functions whose result has a shape that depends on the values.
"""

import contextlib
import operator
import types
from collections import Counter

import numpy as np

DEVICE = "opaque:0"
# The standard's functions that return no arrays of the library, with arguments left as they are.
PLAIN = ("isdtype", "finfo", "iinfo", "can_cast")
LOOKS = ("nonzero", "unique_values", "unique_counts", "unique_inverse", "unique_all")

counts = Counter()


@contextlib.contextmanager
def counted():
    """Give the counts of what crosses between host and device inside the block."""
    counts.clear()
    yield counts


class OpaqueArray:
    __module__ = "opaque"  # whose types are remembered, as those of CuPy are
    __array_priority__ = 1000
    __array_ufunc__ = None  # NumPy arrays do not mix with these

    def __init__(self, values):
        self._values = np.asarray(values)

    device = DEVICE
    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    dtype = property(lambda self: self._values.dtype)
    T = property(lambda self: _wrap(self._values.T))
    mT = property(lambda self: _wrap(self._values.mT))  # noqa: N815

    def astype(self, dtype):  # as CuPy's arrays have
        return _wrap(self._values.astype(dtype))

    def __len__(self):
        return len(self._values)

    def __repr__(self):
        return f"OpaqueArray({self.dtype} {self.shape})"

    def __array_namespace__(self, api_version=None):
        return namespace

    def __dlpack__(self, **kwargs):
        counts["to host"] += 1
        return self._values.copy().__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()

    def __getitem__(self, key):
        return _wrap(self._values[_key(key)])

    def __setitem__(self, key, value):
        self._values[_key(key)] = _unwrap(value)


def _refuse(name):
    def refused(self, *args, **kwargs):
        raise TypeError(f"{name} looks at a value on the device")

    return refused


for _name in ("bool", "float", "int", "index", "complex", "iter", "array", "contains", "format"):
    setattr(OpaqueArray, f"__{_name}__", _refuse(f"__{_name}__"))


def _operation(name, in_place):
    function = getattr(operator, name)

    def operate(self, other):
        result = function(self._values, _unwrap(other))
        if not in_place:
            return _wrap(result)
        self._values[...] = result
        return self

    def reflected(self, other):
        return _wrap(function(_unwrap(other), self._values))

    return reflected if in_place is None else operate


ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
BITWISE = ("and_", "or_", "xor", "lshift", "rshift")
for _name in (*ARITHMETIC, *BITWISE):
    _bare = _name.strip("_")
    setattr(OpaqueArray, f"__{_bare}__", _operation(_name, in_place=False))
    setattr(OpaqueArray, f"__i{_bare}__", _operation(_name, in_place=True))
    setattr(OpaqueArray, f"__r{_bare}__", _operation(_name, in_place=None))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(OpaqueArray, f"__{_name}__", _operation(_name, in_place=False))
OpaqueArray.__hash__ = None
for _name in ("neg", "abs", "invert"):
    _unary = getattr(operator, _name)
    setattr(OpaqueArray, f"__{_name}__", lambda self, _unary=_unary: _wrap(_unary(self._values)))


def _key(key):
    for part in key if isinstance(key, tuple) else (key,):
        if not (part is None or part is Ellipsis or isinstance(part, slice | int)):
            raise TypeError(f"indexing by {type(part).__name__} looks at values on the device")
    return key


def _wrap(value):
    if isinstance(value, np.ndarray | np.generic):
        return OpaqueArray(value)
    return type(value)(map(_wrap, value)) if type(value) in (tuple, list) else value


def _unwrap(value):
    if isinstance(value, OpaqueArray):
        return value._values
    if isinstance(value, np.ndarray | np.generic):
        raise TypeError("a NumPy array met an array on a device")
    return type(value)(map(_unwrap, value)) if isinstance(value, tuple | list) else value


def asarray(values, *, dtype=None, device=None, copy=None):
    if isinstance(values, OpaqueArray):
        return OpaqueArray(np.array(values._values, dtype=dtype, copy=copy))
    assert device == DEVICE, "without a device the array would stay on the host"
    counts["to device"] += 1
    counts["bytes to device"] += np.asarray(values).nbytes
    return OpaqueArray(np.array(values, dtype=dtype))


class _Namespace(types.ModuleType):
    def __getattr__(self, name):
        function = getattr(np, name)
        if name in PLAIN or not callable(function) or isinstance(function, type):
            return function

        def call(*args, device=DEVICE, **kwargs):
            assert device == DEVICE
            counts["data-dependent shapes"] += name in LOOKS
            return _wrap(function(*_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()}))

        return call


namespace = _Namespace("opaque_arrays.opaque")
namespace.asarray = asarray
