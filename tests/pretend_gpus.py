"""Two pretended GPUs: a stand-in for CuPy that computes nothing and notes what happens where."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np

from gpuclf.devices import cupy as cupy_device
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building import plans
from gpuclf.kernels.epochs import on_gpu as epochs
from gpuclf.kernels.linear_pass import on_gpu as linear
from gpuclf.kernels.linear_pass import single_on_gpu as single
from gpuclf.kernels.two_layer_pass import on_gpu as two_layer


class Gpus:
    """Stands in for CuPy; notes what happens, and on which device."""

    def __init__(self):
        self.current, self.log = [0], []
        gpus = self

        class Device:
            def __init__(self, number=None):
                self.id = gpus.current[-1] if number is None else number

            def __enter__(self):
                gpus.current.append(self.id)
                return self

            def __exit__(self, *_):
                gpus.current.pop()

            def __eq__(self, other):
                return self.id == other.id

            __hash__ = None

        class Stream:
            def __init__(self, non_blocking=False, name="upload"):
                self.name, self.device = f"{name} {gpus.current[-1]}", gpus.current[-1]
                self.ptr = hash(self.name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def record(self):
                gpus.note("record", self)
                return SimpleNamespace(device=self.device, synchronize=lambda: None)

            def synchronize(self):
                gpus.note("synchronize", self)

            def wait_event(self, event):
                assert event.device == self.device
                gpus.note("wait", self)

            def begin_capture(self):
                gpus.note("begin", self)

            def end_capture(self):
                gpus.note("end", self)
                return SimpleNamespace(launch=lambda stream: gpus.note("launch", stream))

        class Array(np.ndarray):
            def __array_finalize__(self, other):
                self.place = getattr(other, "place", None) or Device()

            @property
            def device(self):
                return self.place

            @property
            def data(self):
                address = self.__array_interface__["data"][0]
                return SimpleNamespace(device_id=self.place.id, ptr=address)

            def set(self, source, stream):
                assert stream.device == self.device.id
                gpus.note("copy", stream)
                self[...] = source

        class RawKernel:
            max_dynamic_shared_size_bytes = 0

            def __init__(self, code, name, options):
                self.name = name

            def __call__(self, grid, block, args, *, shared_mem):
                gpus.note("kernel", stream())
                assert {x.device.id for x in args if isinstance(x, Array)} == {gpus.current[-1]}
                gpus.launches.append((self.name, args))

        def stream(number=None):
            with Device(number):
                return Stream(name=gpus.stream)

        def empty(shape, dtype):
            found = np.zeros(shape, dtype).view(Array)
            if found.nbytes > gpus.free_bytes():
                raise MemoryError(f"{found.nbytes} bytes")
            return found

        self.launches, self.stream, self.free_bytes = [], "compute", lambda: 1 << 40
        self.module = ModuleType("cupy")
        self.module.ndarray, self.module.RawKernel = Array, RawKernel
        self.module.empty = empty
        self.module.cuda = SimpleNamespace(Device=Device, Stream=Stream, get_current_stream=stream)
        self.module.cuda.runtime = SimpleNamespace(
            memGetInfo=lambda: (1000 + self.current[-1], 9000), getDevice=lambda: self.current[-1]
        )

    def namespace(self, *_, **__):
        """Return NumPy with functions that make arrays on the current device, as CuPy's do."""

        def made(function):
            return lambda *args, device=None, **options: function(*args, **options).view(
                self.module.ndarray
            )

        own = {name: made(getattr(np, name)) for name in ("full", "ones", "zeros", "asarray")}
        own["empty"] = lambda shape, dtype, device=None: self.module.empty(shape, dtype)
        return SimpleNamespace(**vars(np) | own)

    def note(self, what, stream):
        assert stream.device == self.current[-1], f"{what} on a stream of another device"
        self.log.append((what, stream.name))

    def array(self, number, shape=(4, 4), dtype=np.uint8):
        with self.module.cuda.Device(number):
            return self.module.empty(shape, dtype)


@contextmanager
def pretended_gpus(monkeypatch):
    """Let CuPy be two pretended GPUs, with nothing kept from before."""
    found = Gpus()
    cupyx = ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", found.module)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    limits = cuda_modules.DeviceLimits(90, 132, 227 << 10)
    monkeypatch.setattr(cuda_modules, "device_limits", lambda x: limits)
    for module in (cupy_device, plans):
        monkeypatch.setattr(module, "library_name", lambda x: "cupy")
    for module in (cuda_modules, epochs):
        monkeypatch.setattr(module, "array_namespace", found.namespace)
    for name in ("_plans", "_workspaces"):
        monkeypatch.setattr(plans, name, {})
    cached = [cupy_device.cuda_launcher, cuda_modules.build, cuda_modules.kept_launch]
    cached += [linear._plan, single._plan, two_layer._plan]
    for function in cached:
        function.cache_clear()
    yield found
    for function in cached:
        function.cache_clear()
