"""Two pretended GPUs that compute, with CuPy's rule: on the current device, with arrays of it.

NumPy behind the array API standard. What is made lies on the current device, whatever `device=`
says (array-api-compat hands it to nobody); an operation with an array of the other one raises, as
it does between GPUs that cannot read each other's memory.
"""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np

from gpuclf import arrays, dispatch
from gpuclf.devices import cupy as cupy_device

PLAIN = ("isdtype", "finfo", "iinfo", "can_cast")  # of the standard, and return no arrays
current = [0]


class Device:
    def __init__(self, number=None):
        self.id = current[-1] if number is None else number

    def __enter__(self):
        current.append(self.id)

    def __exit__(self, *_):
        current.pop()

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None

    def __repr__(self):
        return f"GPU {self.id}"


class Placed(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, values):
        self.values, self.device = np.asarray(values), Device()

    for _name in ("shape", "ndim", "size", "dtype", "nbytes", "itemsize", "flags"):
        locals()[_name] = property(lambda self, _name=_name: getattr(self.values, _name))
    T = property(lambda self: self._view(self.values.T))
    data = property(lambda self: SimpleNamespace(device_id=self.device.id))

    def _view(self, values):  # which CuPy makes without a look at the current device
        with self.device:
            return Placed(values)

    def __len__(self):
        return len(self.values)

    def __array_namespace__(self, api_version=None):
        return namespace

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        assert method == "__call__"
        found = ufunc(*map(here, inputs), **options)
        if out is None:
            return placed(found)
        here(out[0])[...] = found
        return out[0]

    def __getitem__(self, key):
        basic = all(isinstance(k, slice | int | type(...) | None) for k in _parts(key))
        return self._view(self.values[key]) if basic else placed(here(self)[here(key)])

    def __setitem__(self, key, value):
        here(self)[here(key)] = here(value)

    def get(self):
        return self.values.copy()

    def set(self, source, stream):
        assert stream.device == self.device == Device()
        self.values[...] = source


def _parts(key):
    return key if isinstance(key, tuple) else (key,)


def here(value):
    """Return NumPy's arrays for those of the current device, and refuse all others."""
    if isinstance(value, Placed):
        if value.device != Device():
            raise ValueError(f"array device = {value.device.id} while current = {Device().id}")
        return value.values
    assert not isinstance(value, np.ndarray) or not value.ndim, "a NumPy array met CuPy's"
    return type(value)(map(here, value)) if isinstance(value, tuple | list) else value


def placed(found):
    if isinstance(found, np.ndarray | np.generic):
        return Placed(found)
    return type(found)(map(placed, found)) if type(found) in (tuple, list) else found


class Namespace(ModuleType):
    def __getattr__(self, name):
        function = getattr(np, name)
        if name in PLAIN or not callable(function) or isinstance(function, type):
            return function
        return lambda *args, device=None, **options: placed(
            function(*here(args), **{key: here(value) for key, value in options.items()})
        )


def asarray(values, *, dtype=None, device=None, copy=None):
    given = values.values if isinstance(values, Placed) and here(values) is not None else values
    return Placed(np.array(given, dtype=dtype, copy=copy))


class Stream:
    def __init__(self, non_blocking=False):
        self.device = Device()

    def record(self):
        assert self.device == Device()
        return SimpleNamespace(synchronize=lambda: None)

    def wait_event(self, event):
        assert self.device == Device()


namespace = Namespace("cupy")
namespace.asarray = asarray
module = ModuleType("cupy")
module.ndarray, module.asarray = Placed, asarray
module.empty = lambda shape, dtype: Placed(np.empty(shape, dtype))
module.cuda = SimpleNamespace(
    Device=Device,
    Stream=Stream,
    get_current_stream=Stream,
    memory=SimpleNamespace(OutOfMemoryError=MemoryError),
    runtime=SimpleNamespace(memGetInfo=lambda: (1 << 30, 1 << 30), getDevice=lambda: current[-1]),
)


@contextmanager
def pretended(monkeypatch):
    """Let CuPy be two such GPUs; no function is replaced by a faster one, on NumPy neither."""
    cupyx = ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setitem(arrays._libraries, Placed, (namespace, "cupy"))
    monkeypatch.setattr(cupy_device, "in_use", lambda: True)
    monkeypatch.setattr(dispatch, "_imported", lambda name: _declines)
    before = [(seam.kernels, dict(seam.kernels)) for seam in dispatch.SEAMS.values()]
    for kernels, _ in before:
        kernels.clear()
    yield
    for kernels, was in before:
        kernels.clear()
        kernels.update(was)


def _declines(*_, **__):
    return NotImplemented


def on(number, values):
    """Return arrays on a device for NumPy's, in dicts too."""
    if isinstance(values, dict):
        return {name: on(number, value) for name, value in values.items()}
    with Device(number):
        return Placed(np.array(values))
