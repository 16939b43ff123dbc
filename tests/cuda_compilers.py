"""CUDA's compilers, where there is one: nvcc of a toolkit, or NVRTC from the Python package index.

Neither needs a GPU.
"""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from gpuclf.kernels.building import cuda as cuda_modules

# What CuPy adds to the options of a RawKernel.
CUPY_OPTIONS = ["-ftz=true"]
CUPY_OPTIONS_OF_NVRTC = ["--device-as-default-execution-space"]
NVRTC_PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
PTXAS_REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)


class CudaCompileError(RuntimeError):
    """The compiler refused a kernel."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says about one kernel, per thread; and the shared memory that it declares."""

    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int


def usage(report: str) -> dict[str, Usage]:
    """Return what a report of ptxas (``-v``) says of each kernel."""
    return {
        name: Usage(int(registers), int(stack), int(stores) + int(loads), int(shared or 0))
        for name, stack, stores, loads, registers, shared in PTXAS_REPORT.findall(report)
    }


class Nvcc:
    """The compiler driver of a CUDA toolkit."""

    def __init__(self, path: str) -> None:
        self.path = path
        listed = subprocess.run([path, "--list-gpu-code"], capture_output=True, text=True)
        self.targets = set(map(int, re.findall(r"sm_(\d+)\b", listed.stdout)))

    def compile(self, source: str, constants: cuda_modules.Constants, target: int) -> str:
        """Compile for a target and return the report of ptxas."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cu"
            path.write_text(source)
            command = [self.path, "-cubin", f"-arch=sm_{target}", "-Xptxas", "-v"]
            command += [*cuda_modules.compiler_options(constants), *CUPY_OPTIONS]
            command += ["-Werror", "all-warnings"]
            command += ["-o", f"{path}bin", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CudaCompileError(done.stderr[:4000])
        return done.stderr


class Nvrtc:
    """The compiler library that CuPy uses."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        targets = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", targets)
        self.targets = set(targets)

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self.library, f"nvrtc{name}")(*arguments):
            raise CudaCompileError(f"nvrtc{name} returned {code}")

    def compile(self, source: str, constants: cuda_modules.Constants, target: int) -> str:
        """Compile for a target and return the report of ptxas."""
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
        )
        try:
            options = [f"-arch=sm_{target}", "--ptxas-options=-v"]
            options += [*cuda_modules.compiler_options(constants), *CUPY_OPTIONS]
            options += CUPY_OPTIONS_OF_NVRTC
            encoded = (ctypes.c_char_p * len(options))(*map(str.encode, options))
            code = self.library.nvrtcCompileProgram(program, len(options), encoded)
            self._call("GetProgramLogSize", program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            self._call("GetProgramLog", program, log)
        finally:
            self._call("DestroyProgram", ctypes.byref(program))
        if code:
            raise CudaCompileError(log.value.decode()[:4000])
        return log.value.decode()


@cache
def find_nvcc() -> Nvcc | None:
    """Return the toolkit's compiler from the path, CUDA_HOME or its usual place."""
    for folder in (None, os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        path = shutil.which("nvcc", path=None if folder is None else f"{folder}/bin")
        if path:
            return Nvcc(path)
    return None


@cache
def find_nvrtc() -> Nvrtc | None:
    """Return NVRTC if one of its packages is installed."""
    for package in NVRTC_PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                return Nvrtc(Path(str(file.locate())))
    return None
