"""Two pretended GPUs: what is done with arrays is done where they are, whichever is current."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gpuclf.devices import backends
from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.uploads import upload_in_pieces, uploaded_blocks
from gpuclf.kernels.building import cuda as cuda_modules


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


def test_waits_and_free_bytes_are_of_the_arrays_device(gpus, monkeypatch):
    monkeypatch.setattr(cupy_device, "in_use", lambda: True)
    monkeypatch.setattr(backends, "library_name", lambda x: "cupy")
    x = gpus.array(1)
    backends.synchronize(x)
    backends.synchronize()
    assert gpus.log == [("synchronize", "compute 1"), ("synchronize", "compute 0")]
    assert [cupy_device.free_device_bytes(like) for like in (x, None)] == [1001, 1000]


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
