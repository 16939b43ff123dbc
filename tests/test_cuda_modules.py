"""How kernels reach CuPy, with a stand-in for CuPy that notes what it is asked for."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpuclf.devices.cupy import cuda_launcher, probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import contiguous, device_limits, launch


class FakeDevice:
    compute_capability = "90"

    def __init__(self, number=0, multiprocessors=132):
        self.id, self.depth, self.asked = number, 0, 0
        self._multiprocessors = multiprocessors

    @property
    def attributes(self):
        self.asked += 1
        return {
            "MultiProcessorCount": self._multiprocessors,
            "MaxSharedMemoryPerBlockOptin": 232448,
        }

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *error):
        self.depth -= 1


class FakeArray:
    def __init__(self, device):
        self.device = device


@pytest.fixture
def fake_cupy(monkeypatch):
    probe_cupy()  # before CuPy is replaced
    kernels = []

    class RawKernel:
        def __init__(self, code, name, options):
            self.code, self.name, self.options = code, name, options
            self.max_dynamic_shared_size_bytes = 48 << 10
            self.calls = []
            kernels.append(self)

        def __call__(self, grid, block, args, *, shared_mem):
            on_device = next(x for x in args if isinstance(x, FakeArray)).device.depth
            self.calls.append((grid, block, args, shared_mem, on_device))

    fake = SimpleNamespace(ndarray=FakeArray, RawKernel=RawKernel)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for cached in (cuda_launcher, cuda_modules.build, cuda_modules.kept_launch):
        cached.cache_clear()
    yield kernels
    for cached in (cuda_launcher, cuda_modules.build, cuda_modules.kept_launch):
        cached.cache_clear()


def test_a_kernel_is_made_once_and_launched_on_its_arrays_device(fake_cupy):
    x = FakeArray(FakeDevice())
    for _ in range(2):
        constants = {"REAL": "float32", "LANES": 32}
        launch("losses.cu", constants, "add_partials", 7, (8, 4), np.int8(1), x)
    (made,) = fake_cupy
    assert made.name == "add_partials"
    assert made.code == (cuda_modules.FOLDER / "losses" / "losses.cu").read_text()
    headers = [f"-I{folder}" for folder in cuda_modules.HEADER_FOLDERS]
    assert {"-DREAL=float32", "-DLANES=32", *headers} < set(made.options)
    assert made.calls == [((7,), (8, 4), (np.int8(1), x), 0, 1)] * 2
    launch("losses.cu", constants | {"REAL": "float64"}, "add_partials", 1, 1, x)
    assert len(fake_cupy) == 2


def test_shared_memory_is_asked_for_where_the_default_is_too_small(fake_cupy):
    x = FakeArray(FakeDevice())
    for shared_bytes, most in ((1000, 48 << 10), (100_000, 100_000), (60_000, 100_000)):
        launch("losses.cu", {}, "add_partials", 1, 1, x, shared_bytes=shared_bytes)
        assert fake_cupy[0].max_dynamic_shared_size_bytes == most
        assert fake_cupy[0].calls[-1][3] == shared_bytes


def test_none_becomes_a_pointer_and_plain_floats_are_refused(fake_cupy):
    x = FakeArray(FakeDevice())
    launch("losses.cu", {}, "add_partials", 1, 1, x, None, 7)
    null, number = fake_cupy[0].calls[0][2][1:]
    assert null == 0
    assert null.itemsize == 8  # CuPy itself would pass no address of an argument at all
    assert number == 7
    assert number.dtype == np.int32  # where CuPy itself would pass 8 bytes
    for number in (1.0, True):
        with pytest.raises(TypeError, match="has no type"):
            launch("losses.cu", {}, "add_partials", 1, 1, x, number)
    with pytest.raises(OverflowError):
        launch("losses.cu", {}, "add_partials", 1, 1, x, 2**31)


def test_a_changed_header_is_another_set_of_options(fake_cupy, monkeypatch, tmp_path):
    # CuPy keeps binaries by source and options, and does not look into what a source includes.
    monkeypatch.setattr(cuda_modules, "FOLDER", tmp_path)
    (tmp_path / "a.cu").write_text("source")
    x, found = FakeArray(FakeDevice()), set()
    for text in ("one", "two"):
        (tmp_path / "shared.cuh").write_text(text)
        cuda_modules.build.cache_clear()
        cuda_modules.kept_launch.cache_clear()
        cuda_modules._source.cache_clear()
        launch("a.cu", {}, "name", 1, 1, x)
        found.add(fake_cupy[-1].options)
    cuda_modules._source.cache_clear()
    assert len(found) == 2


def test_limits_are_those_of_the_arrays_device_and_asked_for_once(monkeypatch):
    monkeypatch.setattr(cuda_modules, "_limits", {})
    devices = [FakeDevice(0, 132), FakeDevice(1, 40)]
    for _ in range(2):
        for device, multiprocessors in zip(devices, (132, 40), strict=True):
            expected = cuda_modules.DeviceLimits(90, multiprocessors, 232448)
            assert device_limits(FakeArray(device)) == expected
    assert [device.asked for device in devices] == [1, 1]


def test_only_what_is_strided_is_copied():
    x = np.arange(6).reshape(2, 3)
    assert contiguous(x) is x
    assert contiguous(x.T).flags.c_contiguous
    np.testing.assert_array_equal(contiguous(x.T), x.T)
