"""Two pretended GPUs: what is done with arrays is done where they are, whichever is current."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.uploads import upload_in_pieces, uploaded_blocks
from gpuclf.kernels.building import cuda as cuda_modules


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

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def record(self):
                gpus.note("record", self)
                return SimpleNamespace(device=self.device, synchronize=lambda: None)

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

            def set(self, source, stream):
                assert stream.device == self.device.id
                gpus.note("copy", stream)
                self[...] = source

        class RawKernel:
            max_dynamic_shared_size_bytes = 0

            def __init__(self, code, name, options):
                pass

            def __call__(self, grid, block, args, *, shared_mem):
                gpus.note("kernel", stream())

        def stream():
            return Stream(name="compute")

        self.module = ModuleType("cupy")
        self.module.ndarray, self.module.RawKernel = Array, RawKernel
        self.module.empty = lambda shape, dtype: np.empty(shape, dtype).view(Array)
        self.module.cuda = SimpleNamespace(Device=Device, Stream=Stream, get_current_stream=stream)

    def note(self, what, stream):
        assert stream.device == self.current[-1], f"{what} on a stream of another device"
        self.log.append((what, stream.name))

    def array(self, number, shape=(4, 4)):
        with self.module.cuda.Device(number):
            return self.module.empty(shape, np.uint8)


@pytest.fixture
def gpus(monkeypatch):
    found = Gpus()
    cupyx = ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", found.module)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setattr(cupy_device, "library_name", lambda x: "cupy")
    for cached in (cupy_device.cuda_launcher, cuda_modules.build):
        cached.cache_clear()
    yield found
    for cached in (cupy_device.cuda_launcher, cuda_modules.build):
        cached.cache_clear()


def streams(gpus):
    return {name for _, name in gpus.log}


def test_samples_are_uploaded_to_the_device_of_the_array_beside_them(gpus):
    X, like = np.arange(60, dtype=np.uint8).reshape(20, 3), gpus.array(1)
    blocks = [b.copy() for _, b in uploaded_blocks(X, 8, cupy_device.transfers(like))]
    np.testing.assert_array_equal(np.concatenate(blocks), X)
    assert streams(gpus) == {"upload 1", "compute 1"}
    assert {block.device.id for block in blocks} == {1}


def test_without_an_array_the_device_that_is_current_at_first_counts(gpus):
    X = np.arange(60, dtype=np.uint8).reshape(20, 3)
    with gpus.module.cuda.Device(1):
        transfers = cupy_device.CupyTransfers()
    assert upload_in_pieces(X, transfers, 12).device.id == 1
    assert streams(gpus) == {"upload 1", "compute 1"}


def test_kernels_and_recorded_launches_are_queued_where_the_arrays_are(gpus):
    x = gpus.array(1)

    def queue():
        cuda_modules.launch("losses.cu", {}, "add_partials", 1, 32, x)

    queue()
    assert gpus.log == [("kernel", "compute 1")]
    cupy_device.cuda_graph(x, queue)()
    assert gpus.log[1:] == [
        ("begin", "upload 1"), ("kernel", "compute 1"), ("end", "upload 1"), ("launch", "compute 1")
    ]  # fmt: skip


BROKEN_STREAMS = {
    "the copy's": ("target.set(source, stream=self._uploads)", "target.set(source, stream=now())"),
    "the event's": ("return self._uploads.record()", "return now().record()"),
    "the device's": ("CupyTransfers(like.device) if", "CupyTransfers() if"),
}


def check_streams(gpus, module):
    X, like = np.arange(60, dtype=np.uint8).reshape(20, 3), gpus.array(1)
    gpus.log.clear()
    for _, block in uploaded_blocks(X, 8, module.transfers(like)):
        assert block.device.id == 1
    names = {what: {name for w, name in gpus.log if w == what} for what in ("copy", "wait")}
    assert names == {"copy": {"upload 1"}, "wait": {"upload 1", "compute 1"}}
    # The event of a copy is that of its stream: what follows it in the log.
    after = [gpus.log[i + 1] for i, (what, _) in enumerate(gpus.log) if what == "copy"]
    assert set(after) == {("record", "upload 1")}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_another_stream_is_noticed(gpus, monkeypatch, name):
    source = Path(cupy_device.__file__).read_text()
    old, new = BROKEN_STREAMS[name]
    assert source.count(old) == 1
    for text, is_broken in ((source, False), (source.replace(old, new), True)):
        module = ModuleType("variant")
        module.now = gpus.module.cuda.get_current_stream
        monkeypatch.setitem(sys.modules, "variant", module)  # where dataclasses look
        exec(compile(text, "variant", "exec"), vars(module))
        module.library_name = lambda x: "cupy"
        with pytest.raises(AssertionError) if is_broken else nullcontext():
            check_streams(gpus, module)
