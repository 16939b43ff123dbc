import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from pretend_device import PretendDevice

from gpuclf.devices import backends
from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import CupyTransfers
from gpuclf.devices.uploads import upload_in_pieces, uploaded_blocks


def rows_of(n, d=3, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (n, d)).astype(dtype)


def broken(name):
    """Return a device that forgets one kind of wait."""
    device = PretendDevice()
    setattr(device, name, lambda event: None)
    return device


def goes_wrong(device, X, run):
    try:
        found = run()
    except AssertionError:
        return True
    return bool(device.queue) or not np.array_equal(found, X)


def compute_with_blocks(device, X, n_rows):
    """Copy what is on the device when it is computed with."""
    seen, on_their_way = [], []
    for rows, block in uploaded_blocks(X, n_rows, device):
        assert block.shape[0] == rows.stop - rows.start
        on_their_way.append(len(device.queue))
        device.use(block)
        seen.append(block.copy())
    return np.concatenate(seen), on_their_way


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 23, 24, 25])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_blocks_are_the_rows_in_order(n, dtype):
    X, device = rows_of(n, dtype=dtype), PretendDevice()
    found, _ = compute_with_blocks(device, X, 8)
    np.testing.assert_array_equal(found, X)
    assert device.queue == []


def test_the_next_block_is_on_its_way_while_one_is_computed_with():
    _, on_their_way = compute_with_blocks(PretendDevice(), rows_of(40), 8)
    assert on_their_way == [1, 1, 1, 1, 0]


def test_two_blocks_of_memory_are_enough():
    device = PretendDevice(free_bytes=2 * 8 * 3)
    compute_with_blocks(device, rows_of(80), 8)
    assert device.allocations == [24, 24]
    assert device.free == 48
    small = PretendDevice()
    compute_with_blocks(small, rows_of(5), 8)
    assert small.allocations == [15]


@pytest.mark.parametrize("forgotten", ["computation_waits", "uploads_wait", "host_waits"])
def test_the_pretend_device_notices_a_wait_that_is_missing(forgotten):
    device, X = broken(forgotten), rows_of(80)
    assert goes_wrong(device, X, lambda: compute_with_blocks(device, X, 8)[0])


def test_uploads_have_ended_when_computation_fails():
    device = PretendDevice()
    blocks = uploaded_blocks(rows_of(80), 8, device)
    next(blocks)
    assert device.queue
    with pytest.raises(ZeroDivisionError):
        blocks.throw(ZeroDivisionError)
    assert device.queue == []


# ------------------------------------------------------------------------- arrays as a whole


ARRAYS = {
    "matrix": rows_of(100),
    "vector": np.arange(1000.0),
    "cube": np.arange(4 * 5 * 6, dtype=np.int64).reshape(4, 5, 6),
    "one long row": rows_of(1, 1000),
    "columns first": np.asfortranarray(rows_of(50, 7)),
    "every other row": rows_of(100)[::2],
    "some columns": rows_of(50, 9)[:, 1:8:3],
    "reversed": rows_of(50)[::-1],
    "masks": rows_of(50) > 100,
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("piece_bytes", [1, 40, 64, 1 << 20])
def test_arrays_arrive_as_they_are(name, piece_bytes):
    X, device = ARRAYS[name], PretendDevice()
    before = X.copy()
    found = upload_in_pieces(X, device, piece_bytes)
    np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(X, before)
    assert (found.dtype, found.shape) == (X.dtype, X.shape)
    assert device.queue == []


@pytest.mark.parametrize("forgotten", ["uploads_wait", "host_waits"])
def test_a_missing_wait_is_noticed_for_whole_arrays_too(forgotten):
    device, X = broken(forgotten), rows_of(100)
    assert goes_wrong(device, X, lambda: upload_in_pieces(X, device, 40))


# ----------------------------------------------------------------------------- CuPy's calls


class Log(list):
    """What was asked of CUDA, in order."""

    def stream(self, name):
        def record():
            self.append(f"{name} records")
            return SimpleNamespace(synchronize=lambda: self.append(f"host waits for {name}"))

        def wait_event(event):
            self.append(f"{name} waits")

        return SimpleNamespace(record=record, wait_event=wait_event, name=name)


@pytest.fixture
def cuda(monkeypatch):
    log, cupy, cupyx = Log(), ModuleType("cupy"), ModuleType("cupyx")
    streams = {"compute": log.stream("compute"), "upload": log.stream("upload")}

    class DeviceArray(np.ndarray):
        def set(self, source, stream=None):
            log.append(f"copy in {stream.name}")
            self[...] = source

    def new_stream(*, non_blocking):
        assert non_blocking  # or it would wait for the default stream
        return streams["upload"]

    cupy.log = log
    cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(DeviceArray)
    cupy.cuda = SimpleNamespace(
        Device=nullcontext,
        Stream=new_stream,
        get_current_stream=lambda: streams["compute"],
        runtime=SimpleNamespace(memGetInfo=lambda: (5_000, 10_000)),
        memory=SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {})),
    )
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    return cupy


def test_cuda_is_asked_in_the_right_order(cuda):
    X = rows_of(20)
    found = [block.copy() for _, block in uploaded_blocks(X, 8, CupyTransfers())]
    np.testing.assert_array_equal(np.concatenate(found), X)
    start = ["upload waits", "copy in upload", "upload records"]
    use = ["compute waits", "compute records"]
    ends = ["host waits for upload"] * 2
    again = ["upload waits", "host waits for upload", "copy in upload", "upload records"]
    assert list(cuda.log) == [
        "compute records", *start, *start, *use, *again, *use, *use, *ends
    ]  # fmt: skip


def test_ordinary_memory_serves_where_none_can_be_locked(cuda):
    def fail(shape, dtype):
        raise RuntimeError("cudaErrorMemoryAllocation")

    sys.modules["cupyx"].empty_pinned = fail
    X = rows_of(20)
    np.testing.assert_array_equal(upload_in_pieces(X, CupyTransfers(), 40), X)


@pytest.fixture
def cupy_on_pretend_device(cuda, monkeypatch):
    def install(**options):
        device = PretendDevice(**options)
        empty = device.empty

        def checked_empty(shape, dtype):
            try:
                return empty(shape, dtype)
            except MemoryError as error:
                raise cuda.cuda.memory.OutOfMemoryError from error

        device.empty = checked_empty
        cuda.asarray = np.asarray
        monkeypatch.setattr(cupy_device, "CupyTransfers", lambda: device)
        monkeypatch.setattr(
            backends, "get_backend", lambda name: backends.Backend("cupy", cuda, "pretended")
        )
        monkeypatch.setattr(cupy_device, "PIECE_BYTES", 100)
        return device

    return install


def test_long_arrays_go_to_cupy_in_pieces_and_short_ones_at_once(cupy_on_pretend_device):
    device, X = cupy_on_pretend_device(), rows_of(1000)
    found = to_device({"X": X, "y": np.arange(3)}, "cupy")
    np.testing.assert_array_equal(found["X"], X)
    assert device.allocations == [X.nbytes]


def test_an_array_without_room_is_refused_with_the_bytes_and_what_helps(cupy_on_pretend_device):
    cupy_on_pretend_device(free_bytes=2_999)
    message = r"needs 3,000 bytes on the device, which has 5,000 of 10,000 free; .*Streamed\(X\)"
    with pytest.raises(MemoryError, match=message):
        to_device(rows_of(1000), "cupy")


# ----------------------------------------------------------------------------- a real device


@pytest.mark.gpu
def test_a_gpu_gets_what_was_sent():
    if not cupy_device.probe_cupy().usable:
        pytest.skip(cupy_device.probe_cupy().reason)
    X = np.random.default_rng(0).integers(0, 256, (100_000, 1024)).astype(np.uint8)
    there = to_device(X, "cupy")
    np.testing.assert_array_equal(there.get(), X)
    like = there[:1]
    np.testing.assert_array_equal(to_device(X[:, ::2], like=like).get(), X[:, ::2])
    for n_rows in (1_000, 7_777):
        sums = [
            block.astype("int64").sum(axis=0)  # queued, and read only at the end
            for _, block in uploaded_blocks(X, n_rows, cupy_device.transfers(like))
        ]
        expected = [X[i : i + n_rows].sum(axis=0) for i in range(0, len(X), n_rows)]
        np.testing.assert_array_equal([found.get() for found in sums], expected)
