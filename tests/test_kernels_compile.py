"""Every CUDA source compiles for every target, within the registers that it says it needs.

A source says so in lines such as ``// check: registers<=64 from=80 THREADS=256``: the limit, the
smallest target if it is not 75, and the constants to compile with.
"""

import re

import pytest
from cuda_compilers import CudaCompileError, find_nvcc, find_nvrtc, usage
from cuda_on_cpu import missing

from gpuclf.kernels.building import cuda as cuda_modules

TARGETS = [75, 80, 86, 89, 90, 100, 120]
NVCC_TARGETS = [75, 80, 120]  # where CuPy's own compiler does all
COMPILERS = {"nvcc": find_nvcc, "nvrtc": find_nvrtc}
INSTALLED = [name for name, find in COMPILERS.items() if find()] or ["nvrtc"]
CHECK = re.compile(r"^// check: registers<=(\d+)(?: from=(\d+))?((?: \w+=\w+)*)$", re.MULTILINE)
SOURCES = {path.name: path.read_text() for path in sorted(cuda_modules.FOLDER.rglob("*.cu"))}


def compilers_for(target):
    """Return the names of the compilers to ask; nvcc for some targets only where NVRTC is too."""
    both = find_nvrtc() and target not in NVCC_TARGETS
    return ["nvrtc"] if both else INSTALLED


def checks():
    for file, source in SOURCES.items():
        for registers, smallest, constants in CHECK.findall(source):
            pairs = tuple(tuple(pair.split("=")) for pair in constants.split())
            name = f"{file}-{'-'.join(value for _, value in pairs)}"
            for target in TARGETS:
                for compiler in compilers_for(target) if target >= int(smallest or 0) else ():
                    case = f"{compiler}-{name}-{target}"
                    yield pytest.param(compiler, file, pairs, target, int(registers), id=case)


@pytest.fixture(params=INSTALLED)
def cuda_compiler(request):
    compiler = COMPILERS[request.param]()
    if compiler is None:
        missing("no CUDA compiler: install a CUDA toolkit or nvidia-cuda-nvrtc")
    return compiler


@pytest.mark.parametrize("file", SOURCES)
def test_every_source_says_what_to_check(file):
    lines = [line for line in SOURCES[file].splitlines() if "// check" in line]
    assert lines
    assert len(CHECK.findall(SOURCES[file])) == len(lines)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("cuda_compiler", "file", "constants", "target", "most_registers"),
    list(checks()),
    indirect=["cuda_compiler"],
)
def test_kernels_fit_into_their_registers(cuda_compiler, file, constants, target, most_registers):
    if target not in cuda_compiler.targets:
        missing(f"{type(cuda_compiler).__name__} does not know sm_{target}")
    kernels = usage(cuda_compiler.compile(SOURCES[file], constants, target))
    assert kernels
    for name, used in kernels.items():
        assert used.registers <= most_registers, name
        assert used.spilled_bytes == used.stack_bytes == 0, name


def checks_from_later_targets():
    for file, source in SOURCES.items():
        for _, smallest, constants in CHECK.findall(source):
            if smallest:
                pairs = tuple(tuple(pair.split("=")) for pair in constants.split())
                yield pytest.param(file, int(smallest), pairs, id=f"{file}-{constants.strip()}")


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(("file", "smallest", "constants"), list(checks_from_later_targets()))
def test_older_devices_get_nothing_and_are_declined(cuda_compiler, file, smallest, constants):
    assert smallest == cuda_modules.MIN_CAPABILITY
    older = [target for target in TARGETS if target < smallest]
    assert older
    for target in older:
        if target not in cuda_compiler.targets:
            missing(f"{type(cuda_compiler).__name__} does not know sm_{target}")
        assert usage(cuda_compiler.compile(SOURCES[file], constants, target)) == {}


@pytest.mark.essential_cases(1)
def test_spills_and_errors_are_seen(cuda_compiler):
    # 64 values that all live at once, in as few registers as a block of 1,024 threads leaves.
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) much(float* x) {
        float v[64];
        for (int i = 0; i < 64; i++) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < 64; i++) x[i * 1024 + 63 - threadIdx.x] = v[i] * v[63 - i];
    }
    """
    used = usage(cuda_compiler.compile(source, (), 90))["much"]
    assert used.registers <= 32
    assert used.spilled_bytes > 0
    with pytest.raises(CudaCompileError, match="undefined"):
        cuda_compiler.compile("__global__ void f() { g(); }", (), 90)
    with pytest.raises(CudaCompileError):  # a kernel for sm_80 on sm_75
        cuda_compiler.compile(
            "#include <tensor_core.cuh>\n"
            "__global__ void f(unsigned* x) { *x = halves_from_floats(1, 2 * *x); }",
            (),
            75,
        )
