"""From a CUDA source to a shared library for the CPU, kept on disk by everything it depends on."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from gpuclf.kernels import cuda_modules

INCLUDE = Path(__file__).parent / "include"
# Bounds and alignment are checked by code that the compiler adds; what it calls is in our header.
CHECKS = "-fsanitize=bounds,alignment"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-ffp-contract=off", "-fvisibility=hidden", CHECKS]

DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?(\w[\w\s]*?)\s+(\w+)\s*\[\s*\]\s*;"
)
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(([^)]*)\)\s*)?(\w+)\s*\('
)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class CompileError(RuntimeError):
    """The host compiler refused a kernel."""


@cache
def compiler() -> str | None:
    """Return the path of a C++ compiler that can be used, or None: GCC 11 or later on Linux."""
    path = shutil.which(os.environ.get("CXX", "g++")) if sys.platform == "linux" else None
    if path is None:
        return None
    version = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, check=False)
    major = version.stdout.partition(".")[0].strip()
    return path if major.isdigit() and int(major) >= 11 else None


def host_source(file: str, source: str) -> str:
    """Return the C++ translation unit for a CUDA source."""
    body = DYNAMIC_SHARED.sub(r"\1* const \2 = cuda_on_cpu::dynamic_shared<\1>();", source)
    entries = [
        f'extern "C" __attribute__((visibility("default"))) const char* launch_{name}'
        f"(const cuda_on_cpu::Request* request) {{\n"
        f"    return cuda_on_cpu::launch({name}, "
        f"cuda_on_cpu::most_threads({bounds}), *request);\n}}"
        for bounds, name in KERNEL.findall(COMMENT.sub("", source))
    ]
    lines = ['#include "cuda_on_cpu.h"', f'#line 1 "{file}"', body, '#line 1 "entries"', *entries]
    return "\n".join(lines) + "\n"


@cache
def _headers() -> bytes:
    files = [*sorted(INCLUDE.iterdir()), *sorted(cuda_modules.FOLDER.glob("*.cuh"))]
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    return version + b"".join(file.read_bytes() for file in files)


@cache
def library(file: str, source: str, constants: cuda_modules.Constants) -> ctypes.CDLL:
    """Return the compiled library of a source."""
    text = host_source(file, source)
    command = [compiler(), *FLAGS, f"-I{INCLUDE}", f"-I{cuda_modules.FOLDER}"]
    command += [f"-D{name}={value}" for name, value in constants]
    # Only options that do not depend on where this copy of the sources lies.
    key = sha256(repr((text, constants, FLAGS)).encode() + _headers()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"gpuclf-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{Path(file).stem}-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            work = Path(name)
            (work / "kernel.cpp").write_text(text)
            _run([*command, "-c", "kernel.cpp", "-o", "kernel.o"], work)
            # Linked without the checks' flag, which would ask for the compiler's own handlers.
            _run([compiler(), "-shared", "-o", "kernel.so", "kernel.o"], work)
            (work / "kernel.so").replace(path)  # whole or not at all, for tests in parallel
    return ctypes.CDLL(str(path))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr[:4000])
