"""What the steps of the acceptance share: sizes, device, data, and how a step may end."""

import copy
import gc
import hashlib
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from gpuclf.bench import Inputs, device_cases, device_implementations, device_peers
from gpuclf.bench.measure.agreement import arrays_of
from gpuclf.bench.measure.devices import CudaDevice, HostDevice
from gpuclf.datasets import make_synthetic
from gpuclf.devices.backends import to_device

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 3600.0  # of a step that nobody limits
ANSWER_S = 6.0  # before a step's limit, for its answer: after the limit, all is lost
# An H200's, for floors where none could be measured: bytes moved by a copy, the data sheet's int8.
ASSUMED_CEILINGS = {
    "bytes_per_s": {"assumed": 4.3e12},
    "operations_per_s": {"assumed": 1.98e15},
}


class Skipped(Exception):  # noqa: N818 - no error
    """A step that cannot be done here; the message says why."""


class Unfit(Exception):  # noqa: N818 - an outcome
    """What a step found is not good enough; `result` is recorded all the same."""

    def __init__(self, message, result=None):
        super().__init__(message)
        self.result = result


class Incomplete(Unfit):
    """There was no time for all of it; what was done is well."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a run."""

    dry_run: bool = False
    samples: int = 50_000
    runs: int = 100
    seed: int = 0
    copied_bytes: int = 1 << 30
    matrix_side: int = 8192
    timing_s: float = 8.0
    prepare_limit_s: float = 40.0
    compile_limit_s: float = 100.0
    determinism_s: float = 30.0
    tests_limit_s: float = 100.0
    out: str = "."
    commit: str = ""

    @classmethod
    def rehearsal(cls, **options):
        """Return sizes that a small CPU finishes at once."""
        tiny = {"samples": 240, "runs": 25, "copied_bytes": 1 << 20, "matrix_side": 128}
        return cls(**(tiny | {"dry_run": True, "determinism_s": 5.0, "timing_s": 0.3} | options))


class Rehearsed(HostDevice):
    """The CPU, timed in all the ways that a GPU is."""

    queues = True


class Context:
    """What the steps share: sizes, the device, and data made when first needed."""

    def __init__(self, settings, advance=lambda _: None):
        self.settings, self.advance = settings, advance
        self.known = {}  # the results of earlier steps, by name
        self.ends = time.monotonic() + LONGEST_S  # of the step

    def left_s(self):
        """Return how long the step may go on and still answer in time."""
        return self.ends - ANSWER_S - time.monotonic()

    def ceilings(self):
        """Return the ceilings that were measured, and which kinds of them are assumed instead."""
        measured = self.known.get("ceilings") or {}
        assumed = [kind for kind in ASSUMED_CEILINGS if not measured.get(kind)]
        return measured | {kind: ASSUMED_CEILINGS[kind] for kind in assumed}, assumed

    def device_is_lost(self):
        """Tell whether an error has taken the device's context, and all that follows would fail."""
        try:
            self.device.synchronize()
        except Exception:
            return True
        return False

    @cached_property
    def device(self):
        """Return the GPU, or the CPU in its place."""
        return Rehearsed() if self.settings.dry_run else CudaDevice()

    @cached_property
    def put(self):
        """Return what takes an array to the device."""
        if self.settings.dry_run:
            return np.array
        return partial(to_device, backend="cupy")

    @cached_property
    def images(self):
        """Make pixels and labels of the size of CIFAR-10's training set."""
        self.advance("making images")
        return make_synthetic(self.settings.samples, self.settings.seed)

    @cached_property
    def inputs(self):
        """Return the arrays of the cases, in float32."""
        cache = 1 << 20 if self.settings.dry_run else self.device.cache_bytes
        kind = "cpu" if self.settings.dry_run else "cuda"
        return Inputs(*self.images, seed=self.settings.seed, device=kind, cache_bytes=cache)

    @cached_property
    def inputs_float64(self):
        """Return the same images for the reference."""
        return Inputs(*self.images, dtype="float64", seed=self.settings.seed)

    @cached_property
    def cases(self):
        """Return what is timed."""
        cases = device_cases(self.settings.samples, min(200, self.settings.samples))
        if self.settings.dry_run:
            return [replace(case, rounds=2, calls_a_turn=2) for case in cases]
        return cases

    def implementations(self):
        """Return what is timed of this library and of its peers."""
        return device_implementations(self.inputs.device) + device_peers(self.inputs.device)


def rehearse_kernels():
    """Let CUDA kernels run on the CPU; return False where there is no compiler."""
    from gpuclf.kernels.building import cuda as cuda_modules

    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    from cuda_on_cpu import CpuDevice
    from cuda_on_cpu.compilation import compiler

    if compiler() is None:
        return False
    device = CpuDevice()
    cuda_modules.build = device.build
    cuda_modules.device_limits = lambda x: device.limits
    return True


def without_copies(inputs):
    """Return the same inputs without copies that take turns."""
    once = copy.copy(inputs)
    once.cache_bytes = 0
    return once


def poison(device):
    """Leave NaN in memory that the next call may get, so that reading what is unwritten shows."""
    for size in (1 << 10, 1 << 18, 1 << 22):
        device.xp.full(size, np.nan, dtype=np.float32)


def digest(result):
    """Hash the bits of a nested result."""
    found = hashlib.sha256()
    for array in arrays_of(result):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def release(device):
    """Give memory back, so that the next case finds room."""
    gc.collect()
    device.forget()
    if (torch := sys.modules.get("torch")) is not None:
        torch.compiler.reset()  # or after a few cases it would silently compile no more
        if device.name == "cuda":
            torch.cuda.empty_cache()
