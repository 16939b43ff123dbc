"""From a CUDA source to a shared library for the CPU, kept on disk by everything it depends on."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from gpuclf.kernels.building import cuda as cuda_modules

INCLUDE = Path(__file__).parent / "include"
STAND_INS = {path.name for path in INCLUDE.glob("*.cuh")}
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
DEFINITION = re.compile(r'^extern "C" __global__.*?^}$', re.MULTILINE | re.DOTALL)
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
    body = DYNAMIC_SHARED.sub(r"\1* const& \2 = cuda_on_cpu::dynamic_shared<\1>();", source)
    entries = [
        f'extern "C" __attribute__((visibility("default"))) const char* launch_{name}'
        f"(const cuda_on_cpu::Request* request) {{\n"
        f"    return cuda_on_cpu::launch({name}, "
        f"cuda_on_cpu::most_threads({bounds}), *request);\n}}"
        for bounds, name in KERNEL.findall(COMMENT.sub("", source))
    ]
    lines = ['#include "cuda_on_cpu.h"', f'#line 1 "{file}"', body, '#line 1 "entries"', *entries]
    return "\n".join(lines) + "\n"


def whole_source(file: str) -> str:
    """Return the text of a file as it is compiled, with all headers in it that have no stand-in."""
    text = cuda_modules.source_path(file).read_text()
    while names := set(re.findall(r"^#include <(\w+\.cuh)>$", text, re.MULTILINE)) - STAND_INS:
        for name in names:
            first, *others = text.split(f"#include <{name}>\n")
            header = cuda_modules.source_path(name).read_text()
            text = first + header.replace("#pragma once\n", "") + "".join(others)
    return text


@cache
def _headers() -> bytes:
    files = [*sorted(INCLUDE.iterdir()), *sorted(cuda_modules.FOLDER.rglob("*.cuh"))]
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    return version + b"".join(file.read_bytes() for file in files)


def _definitions(source: str) -> dict[str, str]:
    """Return the text of each kernel, and with the name "" what is left without them."""
    texts = {KERNEL.search(text)[2]: text for text in DEFINITION.findall(source)}
    return texts | {"": DEFINITION.sub("", source)}


def _without_others(source: str, definitions: dict[str, str]) -> str:
    """Return a source with these definitions of its kernels, and no others."""
    return DEFINITION.sub(lambda x: definitions.get(KERNEL.search(x[0])[2], ""), source)


class Library:
    """The kernels of a source. Those that are intact come from the library of the intact source."""

    def __init__(self, file: str, source: str, constants: cuda_modules.Constants) -> None:
        is_ours = any(cuda_modules.FOLDER.rglob(file))
        self._intact = whole_source(file) if is_ours else source
        self._file, self._source, self._constants = file, source, constants

    @cached_property
    def changed(self) -> dict[str, str]:
        """The definitions of the kernels that are not intact; of all if what they share is not."""
        own, intact = _definitions(self._source), _definitions(self._intact)
        is_shared = own.pop("") == intact[""]
        return {name: x for name, x in own.items() if not is_shared or intact.get(name) != x}

    def entry(self, name: str) -> Any:
        """Return the function that launches a kernel."""
        text, changed = self._intact, self.changed
        if name in changed:
            text = _without_others(self._source, changed)
            together = _compiled_together.get((self._file, self._constants, changed[name]))
            if together is not None and len(changed) == 1:
                return getattr(together, f"launch_{name}")
        return getattr(_compiled(self._file, text, self._constants), f"launch_{name}")


_compiled_together: dict[tuple[str, cuda_modules.Constants, str], ctypes.CDLL] = {}


def compile_together(
    file: str, changes: Iterable[tuple[str, str]], constants: cuda_modules.Constants
) -> None:
    """Compile broken variants ahead: as many in one library as break different kernels."""
    intact = whole_source(file)
    rounds: list[dict[str, str]] = []
    for change in changes:
        changed = Library(file, intact.replace(*change), constants).changed
        if len(changed) != 1:
            continue  # it is compiled when it is needed
        free = next((x for x in rounds if not x.keys() & changed.keys()), None)
        if free is None:
            rounds.append(free := {})
        free |= changed

    def compile_round(definitions: dict[str, str]) -> None:
        compiled = _compiled(file, _without_others(intact, definitions), constants)
        for definition in definitions.values():
            _compiled_together[file, constants, definition] = compiled

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_round, rounds))


@cache
def library(file: str, source: str, constants: cuda_modules.Constants) -> Library:
    """Return the library of a source, intact or broken."""
    return Library(file, source, constants)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"gpuclf-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def _precompiled() -> Path:
    """Return a folder with our header, precompiled: a third of the time that a kernel takes."""
    key = sha256(repr(FLAGS).encode() + _headers()).hexdigest()[:24]
    folder = _folder() / f"header-{key}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as name:
            work = Path(name)
            header = INCLUDE / "cuda_on_cpu.h"
            output = ["-x", "c++-header", str(header), "-o", f"{header.name}.gch"]
            _run([compiler(), *FLAGS, f"-I{INCLUDE}", *output], work)
            with suppress(OSError):  # another process was faster
                work.rename(folder)
                work.mkdir()  # for the context to remove
    return folder


@cache
def _compiled(file: str, source: str, constants: cuda_modules.Constants) -> ctypes.CDLL:
    text = host_source(file, source)
    # Only options that do not depend on where this copy of the sources lies.
    key = sha256(repr((text, constants, FLAGS)).encode() + _headers()).hexdigest()[:24]
    folder = _folder()
    path = folder / f"{Path(file).stem}-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            work = Path(name)
            (work / "kernel.cpp").write_text(text)
            command = [compiler(), *FLAGS, f"-I{_precompiled()}", f"-I{INCLUDE}"]
            command += [f"-I{folder}" for folder in cuda_modules.HEADER_FOLDERS]
            command += [f"-D{name}={value}" for name, value in constants]
            _run([*command, "-c", "kernel.cpp", "-o", "kernel.o"], work)
            # Linked without the checks' flag, which would ask for the compiler's own handlers.
            _run([compiler(), "-shared", "-o", "kernel.so", "kernel.o"], work)
            (work / "kernel.so").replace(path)  # whole or not at all, for tests in parallel
    return ctypes.CDLL(str(path))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr[:4000])
