import contextlib
import importlib.metadata
import json
import logging
import sys
import types

import numpy as np
import pytest

from gpuclf import arrays
from gpuclf.arrays import (
    MixedDevicesError,
    array_namespace,
    describe_location,
    library_name,
    to_host,
)
from gpuclf.devices import backends
from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.backends import (
    Backend,
    BackendUnavailableError,
    get_backend,
    synchronize,
    to_device,
)
from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.devices.cupy import probe_cupy
from gpuclf.devices.machine import environment
from gpuclf.samples.standardized import Standardized

CPU_NAMES = ("numpy", "numpy-readonly")


@pytest.fixture
def fresh_probe():
    """Probe anew in the test, and again after it."""
    for cached in (probe_cupy, backends._log_fallback):
        cached.cache_clear()
    yield
    for cached in (probe_cupy, backends._log_fallback):
        cached.cache_clear()


@pytest.fixture
def fake_cupy(monkeypatch, fresh_probe):
    """Put a module named cupy in the way of the import; tests break one step of it."""
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.9"
    cupy.float32, cupy.asnumpy, cupy.asarray = np.float32, np.asarray, np.asarray
    cupy.ndarray = type("ndarray", (), {})
    cupy.empty = lambda shape, dtype: np.full(shape, np.nan, dtype)

    class RawKernel:
        def __init__(self, code, name):
            assert f"void {name}(" in code

        def __call__(self, grid, block, arguments):
            arguments[0][:] = 2 * np.arange(4)

    cupy.RawKernel = RawKernel
    cupy.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        Device=lambda: types.SimpleNamespace(id=0),
        runtime=types.SimpleNamespace(
            getDeviceProperties=lambda device: {"name": b"Pretend 100"},
            memGetInfo=lambda: (5_000, 10_000),
            getDeviceCount=lambda: 1,
        ),
        memory=types.SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def no_cupy(monkeypatch, fresh_probe):
    monkeypatch.setitem(sys.modules, "cupy", None)


def fail(error):
    def function(*args, **kwargs):
        raise error

    return function


# ------------------------------------------------------------------------------- the probe


def test_probe_says_that_cupy_is_not_installed(no_cupy):
    probe = probe_cupy()
    assert not probe.usable
    assert probe.reason == "CuPy is not installed"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcudart.so.13:\\n not found')", "ImportError: libcudart.so.13: not"),
        ("raise OSError('bad ELF')", "OSError: bad ELF"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
    ],
)
def test_probe_tells_a_broken_install_from_a_missing_one(
    tmp_path, monkeypatch, fresh_probe, source, reason
):
    (tmp_path / "cupy.py").write_text(source, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    probe = probe_cupy()
    assert not probe.usable
    assert "installed but fails to import" in probe.reason
    assert reason in probe.reason
    assert "\n" not in probe.reason


@pytest.mark.parametrize(
    ("driver_version", "device_count", "why"),
    [
        (lambda: 0, fail(AssertionError), " (no CUDA driver)"),
        (lambda: 13000, fail(RuntimeError("cudaErrorNoDevice")), " (RuntimeError: cudaErrorNoDe"),
        (lambda: 13000, lambda: 0, ""),
    ],
)
def test_probe_says_that_there_is_no_device(fake_cupy, driver_version, device_count, why):
    runtime = fake_cupy.cuda.runtime
    fake_cupy.cuda.is_available = lambda: False
    runtime.driverGetVersion, runtime.getDeviceCount = driver_version, device_count
    probe = probe_cupy()
    assert not probe.usable
    assert f"CuPy 14.9 is installed but sees no CUDA device{why}" in probe.reason


def test_an_installed_cupy_without_a_device_is_not_to_be_installed_again(fake_cupy):
    fake_cupy.cuda.is_available = lambda: False
    with pytest.raises(BackendUnavailableError, match="nvidia-smi") as caught:
        get_backend("cupy")
    assert "pip install" not in str(caught.value)
    assert "nvidia-smi" in environment()["gpu"]["remedy"]


@pytest.mark.parametrize("step", ["is_available", "getDeviceProperties"])
def test_probe_says_that_the_driver_does_not_answer(fake_cupy, step):
    place = fake_cupy.cuda if step == "is_available" else fake_cupy.cuda.runtime
    setattr(place, step, fail(RuntimeError("cudaErrorInsufficientDriver")))
    probe = probe_cupy()
    assert not probe.usable
    assert probe.reason == (
        "CuPy 14.9 cannot ask the CUDA driver (RuntimeError: cudaErrorInsufficientDriver)"
    )


@pytest.mark.parametrize(
    ("installed", "error", "remedy"),
    [
        ("cupy-cuda13x", "libnvrtc.so.13: cannot open", "pip install 'cupy-cuda13x[ctk]'"),
        ("cupy-cuda12x", "DynamicLibNotFoundError: nvrtc", "pip install 'cupy-cuda12x[ctk]'"),
        (None, "failed to load libnvrtc", "install NVIDIA's CUDA toolkit"),
        ("cupy-cuda13x", "cudaErrorLaunchFailure", "cupy-cuda13x[ctk]"),
    ],
)
def test_a_cupy_without_its_compiler_is_given_one(fake_cupy, monkeypatch, installed, error, remedy):
    monkeypatch.setattr(cupy_device, "_cupy_package", lambda: installed)
    fake_cupy.RawKernel = fail(RuntimeError(error))
    assert remedy in probe_cupy().remedy


def test_remedies_name_the_package_that_is_installed(monkeypatch):
    def version(name):
        if name != "cupy-cuda12x":
            raise importlib.metadata.PackageNotFoundError(name)
        return "14"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cupy_device._cupy_package() == "cupy-cuda12x"


def test_an_old_driver_is_updated_or_met_by_an_older_cupy(fake_cupy, monkeypatch):
    monkeypatch.setattr(cupy_device, "_cupy_package", lambda: "cupy-cuda13x")
    fake_cupy.cuda.is_available = fail(RuntimeError("cudaErrorInsufficientDriver"))
    assert "update NVIDIA's driver" in probe_cupy().remedy
    assert "pip install 'cupy-cuda12x[ctk]'" in probe_cupy().remedy


def test_a_hidden_device_is_told_with_what_hides_it(fake_cupy, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    fake_cupy.cuda.is_available = lambda: False
    assert "unset CUDA_VISIBLE_DEVICES, which is '7'" in probe_cupy().remedy


def test_probe_says_that_a_first_kernel_fails(fake_cupy):
    fake_cupy.RawKernel = fail(RuntimeError("nvrtc is missing"))
    probe = probe_cupy()
    assert not probe.usable
    assert "sees Pretend 100 but a first kernel fails (RuntimeError: nvrtc is missing)" in (
        probe.reason
    )


def test_probe_notices_wrong_results(fake_cupy):
    class Idle:
        def __init__(self, code, name):
            pass

        def __call__(self, grid, block, arguments):
            arguments[0][:] = 1

    fake_cupy.RawKernel = Idle
    probe = probe_cupy()
    assert not probe.usable
    assert "CuPy 14.9 on Pretend 100 computes wrong results: [[2.0, 2.0]" in probe.reason


def test_probe_finds_all_well(fake_cupy):
    assert probe_cupy() == cupy_device.CupyProbe(True, "CuPy 14.9 on Pretend 100")


class CapturingStream:
    """A stream whose capture can fail, and the graph that comes of it."""

    def __init__(self, cupy, fails):
        self.cupy, self.fails, self.events = cupy, fails, []

    def __call__(self, non_blocking):
        assert non_blocking  # the default stream cannot be captured
        return self

    def __enter__(self):
        self.cupy.cuda.get_current_stream = lambda: self

    def __exit__(self, *error):
        self.cupy.cuda.get_current_stream = lambda: "the caller's"

    def begin_capture(self):
        self.events.append("begin")

    def end_capture(self):
        self.events.append("end")
        if self.fails:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        return types.SimpleNamespace(launch=lambda stream: self.events.append(stream))


@pytest.mark.parametrize("fails", [False, True])
def test_launches_are_captured_on_a_stream_of_their_own(fake_cupy, caplog, fails):
    stream = fake_cupy.cuda.Stream = CapturingStream(fake_cupy, fails)
    like = types.SimpleNamespace(device=contextlib.nullcontext())

    def queue():
        assert fake_cupy.cuda.get_current_stream() is stream
        stream.events.append("queue")

    with caplog.at_level("DEBUG", logger="gpuclf"):
        launch = cupy_device.cuda_graph(like, queue)
    assert stream.events == ["begin", "queue", "end"]
    if fails:
        assert launch is None
        assert "cudaErrorStreamCaptureUnsupported" in caplog.text
    else:
        launch()
        assert stream.events[3:] == ["the caller's"]


def test_probe_runs_once(fake_cupy):
    calls = []
    fake_cupy.cuda.is_available = lambda: bool(calls.append(1))
    assert probe_cupy() is probe_cupy()
    assert len(calls) == 1


# ----------------------------------------------------------------------------- get_backend


def test_numpy_is_always_there():
    found = get_backend("numpy")
    assert (found.name, found.xp) == ("numpy", np)


def test_a_backend_passes_through():
    found = get_backend("numpy")
    assert get_backend(found) is found


@pytest.mark.parametrize("name", ["cuda", "NumPy", "", None, 3])
def test_other_names_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=r"must be 'auto', 'numpy' or 'cupy', got"):
        get_backend(name)


def test_asking_for_cupy_in_vain_says_why_and_how_to_install_it(no_cupy):
    with pytest.raises(BackendUnavailableError) as caught:
        get_backend("cupy")
    message = str(caught.value)
    assert "CuPy is not installed" in message
    assert "pip install 'cupy-cuda13x[ctk]'" in message
    assert "backend='numpy'" in message


def test_auto_falls_back_to_numpy_and_logs_why_once(no_cupy, caplog):
    with caplog.at_level(logging.INFO, logger="gpuclf"):
        for _ in range(3):
            found = get_backend("auto")
    assert (found.name, found.xp, found.reason) == ("numpy", np, "CuPy is not installed")
    (record,) = caplog.records
    assert record.name == "gpuclf"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "no GPU: CuPy is not installed; using NumPy"


def test_asking_for_numpy_logs_nothing(no_cupy, caplog):
    get_backend("numpy")
    assert not caplog.records


@pytest.mark.parametrize("name", ["auto", "cupy"])
def test_a_usable_cupy_is_taken(fake_cupy, caplog, name):
    found = get_backend(name)
    assert (found.name, found.xp, found.reason) == ("cupy", fake_cupy, "CuPy 14.9 on Pretend 100")
    assert not caplog.records


def test_auto_leaves_small_calls_to_numpy_where_that_was_measured(fake_cupy):
    def chosen(name="auto", **sizes):
        return get_backend(name, **sizes).name

    assert [chosen(nbytes=n, break_even=1000) for n in (999, 1000)] == ["numpy", "cupy"]
    assert "break-even at 1,000" in get_backend("auto", nbytes=999, break_even=1000).reason
    assert chosen(nbytes=10) == chosen(break_even=1000) == chosen() == "cupy"
    assert chosen("cupy", nbytes=10, break_even=1000) == "cupy"


@pytest.mark.gpu
def test_cupy_is_usable_here():
    assert get_backend("cupy").xp.__name__ == "cupy"


# --------------------------------------------------------------------- whose array is it?


def test_namespace_is_that_of_the_arrays(lib):
    x = lib.asarray(np.zeros(3))
    assert array_namespace(x) is lib.xp
    assert array_namespace(x, None, y=x, z=None) is lib.xp
    assert library_name(x) == lib.name.removesuffix("-readonly").replace("-", "_")
    assert describe_location(x).startswith(library_name(x))


def test_numpy_scalars_count_as_numpy():
    assert array_namespace(np.float64(3)) is np
    assert array_namespace(np.zeros(3), np.float32(1)) is np
    assert describe_location(np.float64(3)) == "numpy on cpu"


def test_two_of_one_type_may_stand_for_two_libraries(strict):
    class Stand:
        def __init__(self, x):
            self.device, self.__array_namespace__ = x.device, x.__array_namespace__

    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    X = Stand(strict.asarray(np.zeros(3)))
    assert array_namespace(X) is strict.xp
    Y = Stand(X)
    Y.__array_namespace__ = lambda api_version=None: torch
    assert array_namespace(Y) is torch
    assert (library_name(X), library_name(Y)) == ("array_api_strict", "torch")


@pytest.mark.parametrize("value", [[1.0], (1.0,), 1.0, "abc", {"W": 1}], ids=repr)
def test_what_is_no_array_is_refused_with_the_remedy(value):
    with pytest.raises(TypeError, match=rf"got {type(value).__name__}; convert it with numpy\.as"):
        array_namespace(value)


def test_nothing_at_all_is_refused():
    for arguments in ((), (None,), (None, None)):
        with pytest.raises(TypeError, match="needs at least one array"):
            array_namespace(*arguments)


def test_two_libraries_are_refused_naming_both_and_the_remedy(strict):
    there, here = strict.asarray(np.zeros(3)), np.zeros(3)
    message = (
        r"X is array_api_strict on .*device1.* but W is numpy on cpu; move one of them: "
        r"gpuclf\.to_host\(X\) .* gpuclf\.to_device\(W, like=X\)"
    )
    with pytest.raises(MixedDevicesError, match=message):
        array_namespace(X=there, W=here)
    with pytest.raises(MixedDevicesError, match=r"argument 0 is numpy.*argument 1 is array_api"):
        array_namespace(here, there)
    with pytest.raises(MixedDevicesError) as error:
        array_namespace(W=here, X=there)
    assert "gpuclf.to_host(X) brings" in str(error.value)  # W is there already
    assert "gpuclf.to_device(W, like=X) takes" in str(error.value)


def test_two_devices_are_refused_naming_both(strict, strict_on_cpu):
    X, W = strict.asarray(np.zeros(3)), strict_on_cpu.asarray(np.zeros(3))
    with pytest.raises(MixedDevicesError, match=r"X is .*device1.* but W is .*CPU_DEVICE") as error:
        array_namespace(X=X, W=W)
    assert "to_host" not in str(error.value)  # one of them would still be elsewhere
    array_namespace(X=X, W=to_device(W, like=X))
    assert issubclass(MixedDevicesError, TypeError)


def test_torch_and_numpy_do_not_mix():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(MixedDevicesError, match="W is torch on cpu but X is numpy on cpu"):
        array_namespace(W=torch.zeros(3), X=np.zeros(3))


def test_scikit_learns_copy_serves_where_array_api_compat_is_missing(monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    monkeypatch.setattr(arrays, "_libraries", {})
    arrays._array_api_compat.cache_clear()
    try:
        xp = array_namespace(torch.zeros(3))
        assert xp.__name__ == "sklearn.externals.array_api_compat.torch"
        assert library_name(torch.zeros(3)) == "torch"
    finally:
        arrays._array_api_compat.cache_clear()


# -------------------------------------------------------------------------- moving arrays


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool"])
def test_arrays_go_to_a_device_and_come_back_unchanged(lib, dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    like = lib.asarray(np.zeros(1))
    there = to_device(values, like=like)
    assert array_namespace(there, like) is lib.xp  # which raises if the devices differ
    back = to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


def test_dicts_and_standardized_features_are_moved_whole(lib):
    like = lib.asarray(np.zeros(1))
    X = np.arange(6, dtype=np.uint8).reshape(3, 2)
    nested = {"W": np.ones(2), "more": {"b": np.zeros(1)}, "X": Standardized(X, 1.0, 2.0)}
    there = to_device(nested, like=like)
    for array in (there["W"], there["more"]["b"], there["X"].X, there["X"].mean):
        assert array_namespace(array, like) is lib.xp
    back = to_host(there)
    np.testing.assert_array_equal(back["W"], nested["W"])
    np.testing.assert_array_equal(back["more"]["b"], [0.0])
    np.testing.assert_array_equal(back["X"].X, X)
    np.testing.assert_array_equal(back["X"].scale, [2.0, 2.0])
    assert isinstance(nested["W"], np.ndarray)  # what was passed in is left as it was


def test_arrays_already_there_are_not_copied(lib):
    x = lib.asarray(np.zeros(3))
    assert to_device(x, like=x) is x
    if lib.name in CPU_NAMES:
        assert to_host(x) is x
        assert to_device(x, "numpy") is x


def test_one_library_to_another(lib, strict):
    there = to_device(lib.asarray(np.arange(3.0)), like=strict.asarray(np.zeros(1)))
    np.testing.assert_array_equal(strict.to_numpy(there), [0, 1, 2])
    here = to_device(there, like=lib.asarray(np.zeros(1)))
    np.testing.assert_array_equal(lib.to_numpy(here), [0, 1, 2])
    assert array_namespace(here) is lib.xp


def test_to_device_numpy_brings_arrays_home(lib):
    assert type(to_device(lib.asarray(np.zeros(3)), "numpy")) is np.ndarray


def test_numbers_stay_numbers():
    assert to_host({"loss": 1.5, "n": 3, "done": True}) == {"loss": 1.5, "n": 3, "done": True}


def test_a_torch_tensor_that_wants_a_gradient_comes_home():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    np.testing.assert_array_equal(to_host(torch.ones(2, requires_grad=True)), [1, 1])


def test_uploading_uses_the_backend(fake_cupy):
    uploaded = []
    fake_cupy.asarray = lambda a: uploaded.append(a) or a
    x = np.zeros(3)
    assert to_device({"W": x}, "cupy") == {"W": x}
    assert uploaded[0] is x


def test_a_full_device_is_reported_with_its_bytes(fake_cupy):
    fake_cupy.asarray = fail(fake_cupy.cuda.memory.OutOfMemoryError())
    message = r"shape \(1000, 2\) needs 16,000 bytes.*5,000 of 10,000 free; pass fewer rows"
    with pytest.raises(MemoryError, match=message):
        to_device(np.zeros((1000, 2)), "cupy")


def test_moving_to_an_unusable_backend_says_so(no_cupy):
    with pytest.raises(BackendUnavailableError, match="CuPy is not installed"):
        to_device(np.zeros(3), "cupy")


def test_synchronize_takes_arrays_backends_and_nothing(lib, no_cupy):
    synchronize()
    synchronize(lib.asarray(np.zeros(1)))
    synchronize(Backend("numpy", np, ""))


def test_synchronize_waits_for_the_stream_of_cupy(fake_cupy):
    waited = []
    stream = types.SimpleNamespace(synchronize=lambda: waited.append(1))
    fake_cupy.cuda.get_current_stream = lambda: stream
    synchronize(Backend("cupy", fake_cupy, ""))
    synchronize()
    assert len(waited) == 2
    synchronize(np.zeros(1))
    assert len(waited) == 2


def test_free_memory_is_known_where_cupy_is_in_use(fake_cupy):
    assert cupy_device.free_device_bytes() == 5_000
    fake_cupy.cuda.is_available = lambda: False
    probe_cupy.cache_clear()
    assert cupy_device.free_device_bytes() is None


def test_arrays_beside_one_of_cupy_go_there_in_pieces_too(fake_cupy, monkeypatch):
    sent = []
    monkeypatch.setattr(cupy_device, "upload", lambda a, cupy: sent.append(a))
    x = np.zeros(3)
    backends._put_like(x, types.ModuleType("array_api_compat.cupy"), contextlib.nullcontext())
    assert sent == [x]


# ------------------------------------------------------------------------------- the machine


def test_cache_size_is_plausible(lib):
    assert 1 << 15 <= cache_bytes(lib.asarray(np.zeros(1))) <= 1 << 30
    assert 1 << 15 <= cache_bytes() <= 1 << 30


def test_workers_follow_the_limit_of_blas():
    from threadpoolctl import threadpool_limits

    for limit in (1, 2):
        with threadpool_limits(limits=limit, user_api="blas"):
            assert cpu_workers() == limit


def test_environment_can_be_written_as_json(no_cupy):
    found = json.loads(json.dumps(environment()))
    gpu = {"usable": False, "reason": "CuPy is not installed", "remedy": probe_cupy().remedy}
    assert found["gpu"] == gpu
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu_count"] >= 1
    assert found["threads"] == cpu_workers()
    assert found["cpu_l2_bytes"] == cache_bytes()


def test_environment_describes_the_gpu_in_plain_values(fake_cupy):
    runtime = fake_cupy.cuda.runtime
    runtime.getDeviceProperties = lambda device: {
        "name": b"Pretend 100",
        "major": 9,
        "minor": 0,
        "l2CacheSize": 1 << 20,
        "multiProcessorCount": 16,  # a seventh of a GPU that is shared out
    }
    runtime.getDeviceCount = lambda: 2
    runtime.driverGetVersion = runtime.runtimeGetVersion = lambda: 13000
    gpu = json.loads(json.dumps(environment()))["gpu"]
    assert gpu["usable"] is True
    assert gpu["name"] == "Pretend 100"
    assert gpu["compute_capability"] == "9.0"
    assert (gpu["memory_free_bytes"], gpu["memory_bytes"]) == (5_000, 10_000)
    assert (gpu["number"], gpu["devices"], gpu["multiprocessors"]) == (0, 2, 16)
