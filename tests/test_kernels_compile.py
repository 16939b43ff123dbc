"""Every CUDA source compiles for every target, within the registers that it says it needs.

A source says so in lines such as ``// check: registers<=64 from=80 THREADS=256``: the limit, the
smallest target if it is not 75, and the constants to compile with.
"""

import math
import re

import pytest
from cuda_compilers import CudaCompileError, find_nvcc, find_nvrtc, usage
from cuda_on_cpu import missing

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.linear_pass import on_gpu as linear
from gpuclf.kernels.linear_pass import single_on_gpu as single
from gpuclf.kernels.nearest import on_gpu as neighbors
from gpuclf.kernels.two_layer_pass import on_gpu as two_layer

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


@pytest.mark.essential_cases(1, in_ci=21)
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


# The most shared memory that a block can have: what is declared, and what a launch asks for.
SHARED_KILOBYTES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
REGISTERS = 1 << 16  # of a multiprocessor, given to warps in eights a thread


def plans(shared_bytes):
    """Return the plans of passes over 50,000 images, and over rows that are not whole vectors."""
    found = [linear._plan(50_000, 3072, 10, 2, 0, 16, shared_bytes)]
    found.append(linear._plan(50_000, 100, 64, 1, 1, 4, shared_bytes))
    found += [single._plan(50_000, d, c, 0, shared_bytes, 132) for d, c in ((3072, 10), (1552, 12))]
    found += [two_layer._plan(50_000, 3072, h, 10, 2, 16, shared_bytes) for h in (50, 100, 512)]
    return [plan for plan in found if plan is not None]


@pytest.mark.nightly
@pytest.mark.parametrize("target", SHARED_KILOBYTES)
def test_the_launches_of_passes_fit_the_device(cuda_compiler, target):
    if target not in cuda_compiler.targets:
        missing(f"{type(cuda_compiler).__name__} does not know sm_{target}")
    most, checked = SHARED_KILOBYTES[target] << 10, set()
    for plan in plans(most):
        launches = [part for part in vars(plan).values() if isinstance(part, cuda_modules.Launch)]
        file, _, constants = launches[0]._source
        kernels = usage(cuda_compiler.compile(SOURCES[file], constants, target))
        for launch in launches:
            used = kernels[launch._source[1]]
            assert used.spilled_bytes == used.stack_bytes == 0, (file, constants)
            assert used.shared_bytes + launch.shared_bytes <= most, (file, constants)
            registers = -(-used.registers // 8) * 8
            assert math.prod(launch._block) * registers <= REGISTERS, (file, constants)
            checked.add(file)
    assert {"linear_pass.cu", "two_layer_pass.cu"} <= checked
    assert ("single_pass.cu" in checked) == (most > 100 << 10)
    product = neighbors.PRODUCT_SHARED_BYTES
    used = usage(cuda_compiler.compile(SOURCES["neighbors.cu"], (), target))["multiply_bytes"]
    assert used.shared_bytes + product <= most


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


@pytest.mark.slow
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
