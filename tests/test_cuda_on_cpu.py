"""The machinery that runs CUDA kernels on a CPU: what it computes, and what it must notice."""

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, hidden, with_hidden_arrays
from cuda_on_cpu.compilation import Library, whole_source

from gpuclf.kernels.building import cuda as cuda_modules

REDUCTION = """
extern "C" __global__ void __launch_bounds__(256) sum(const float* x, float* out, int n) {
    __shared__ float partial[256];
    float total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += x[i];
    partial[threadIdx.x] = total;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (threadIdx.x < step) partial[threadIdx.x] += partial[threadIdx.x + step];
        __syncthreads();  // before the next step
    }
    if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}
"""


def body(code, parameters="float* out", before=""):
    return f'{before}\nextern "C" __global__ void test({parameters}) {{\n{code}\n}}'


@pytest.fixture
def launch(cuda_on_cpu):
    def call(source, grid, block, *args, **options):
        cuda_on_cpu.add_source("test.cu", source)
        cuda_on_cpu.order = options.pop("order", "forward")
        name = "sum" if " sum(" in source else "test"
        cuda_modules.launch("test.cu", {}, name, grid, block, *args, **options)

    return call


@pytest.mark.parametrize("order", ORDERS)
def test_vector_addition_over_a_grid(launch, order):
    code = "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) c[i] = a[i] + b[i];"
    a, b = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    c = np.empty(1000, np.float32)
    source = body(code, "const float* a, const float* b, float* c, int n")
    launch(source, 8, 128, a, b, c, np.int32(1000), order=order)
    np.testing.assert_array_equal(c, a + b)


def test_three_axes_of_blocks_and_threads(launch):
    code = """
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * 24 + thread] = 100 * block + thread;
    """
    out = np.empty(24 * 24, np.int32)
    launch(body(code, "int* out"), (2, 3, 4), (4, 3, 2), out)
    np.testing.assert_array_equal(out, (100 * np.arange(24)[:, None] + np.arange(24)).reshape(-1))


@pytest.mark.parametrize("order", ORDERS)
def test_reduction_with_barriers(launch, order):
    x = np.arange(1000, dtype=np.float32)
    out = np.empty(3, np.float32)
    launch(REDUCTION, 3, 256, x, out, np.int32(1000), order=order)
    np.testing.assert_array_equal(out, x.sum())


def test_fibers_of_the_c_library_do_the_same(cuda_on_cpu):
    cuda_on_cpu.add_source("test.cu", REDUCTION)
    x, out = np.arange(1000, dtype=np.float32), np.empty(1, np.float32)
    cuda_modules.launch("test.cu", {"PORTABLE_FIBERS": 1}, "sum", 1, 256, x, out, 1000)
    assert out[0] == x.sum()


@pytest.mark.parametrize("barrier", ["__syncthreads();\n    for", "__syncthreads();  // before"])
def test_a_dropped_barrier_shows_in_some_order(launch, barrier):
    assert REDUCTION.count(barrier) == 1
    source = REDUCTION.replace(barrier, barrier.replace("__syncthreads();", ""))
    x = np.arange(1000, dtype=np.float32)
    sums = []
    for order in ORDERS:
        out = np.empty(1, np.float32)
        launch(source, 1, 256, x, out, np.int32(1000), order=order)
        sums.append(out[0])
    assert not np.all(np.array(sums) == x.sum())


@pytest.mark.parametrize("order", ORDERS)
def test_exchange_through_shared_memory_needs_syncwarp(launch, order):
    code = """
    __shared__ int box[32];
    box[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = box[(threadIdx.x + 1) % 32];
    """
    out = np.empty(32, np.int32)
    launch(body(code, "int* out"), 1, 32, out, order=order)
    np.testing.assert_array_equal(out, (np.arange(32) + 1) % 32)
    launch(body(code.replace("__syncwarp();", ""), "int* out"), 1, 32, out, order=order)
    assert not np.array_equal(out, (np.arange(32) + 1) % 32)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("if (threadIdx.x < 32) __syncthreads();", "32 of 64 threads wait at line 3"),
        (
            "if (threadIdx.x < 32) __syncthreads();\nelse __syncthreads();",
            "threads wait at lines 3 and 4",
        ),
        ("if (threadIdx.x % 2) __syncwarp();\nelse __syncthreads();", "lanes ffffffff"),
        ("__shfl_sync(0x1, 1, 0);", "not in its own mask"),
        ("__shared__ float box[8]; box[threadIdx.x] = 1;", "index 8 is out of bounds"),
        ("*(float4*)(out + 1) = make_float4(0, 0, 0, 0);", "not aligned"),
        ("out[1ll << 44] = 1;", "wild pointer"),
        ("if (threadIdx.x == 63) __trap();", r"trap \(block 0 0 0, thread 63 0 0\)"),
    ],
)
def test_errors_name_the_line_and_the_thread(launch, code, message):
    with pytest.raises(CudaOnCpuError, match=message):
        launch(body(code), 1, 64, np.empty(64, np.float32))


def test_a_device_works_on_after_an_error(launch):
    with pytest.raises(CudaOnCpuError):
        launch(body("if (threadIdx.x) __syncthreads();"), 1, 64, np.empty(64, np.float32))
    test_reduction_with_barriers(launch, "forward")


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", [-1, -100_000, 64, 64 + 4096, 250_000])
def test_writes_beyond_an_array_are_seen(launch, index, order):
    side = "before" if index < 0 else "after"
    with pytest.raises(CudaOnCpuError, match=f"memory {side} argument 0 was (written|used)"):
        launch(body(f"out[{index}] = 1;"), 1, 1, np.empty(64, np.float32), order=order)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("index", "order"), [(-1, "reversed"), (64, "forward"), (9000, "reversed")]
)
def test_reads_beyond_an_array_are_seen(launch, index, order):
    side = "before" if index < 0 else "after"
    source = body(f"out[0] = x[{index}];", "const float* x, float* out")
    with pytest.raises(CudaOnCpuError, match=f"memory {side} argument 0 was (read|used)"):
        launch(source, 1, 1, np.ones(64, np.float32), np.empty(1, np.float32), order=order)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "is_inside"), [(-1, False), (0, True), (8, True), (9, False)])
def test_asynchronous_copies_from_beyond_an_array_are_seen(launch, index, is_inside):
    code = f"""
    extern __shared__ float box[];
    copy_async<4>(shared_address(box), x + {index});
    close_copy_group();
    wait_for_copies<0>();
    out[0] = box[0];
    """
    source = body(code, "const float* x, float* out", "#include <async_copy.cuh>")
    x, out = np.arange(9, dtype=np.float32), np.empty(1, np.float32)
    if is_inside:
        launch(source, 1, 1, x, out, shared_bytes=4)
        assert out[0] == index
    else:
        with pytest.raises(CudaOnCpuError, match="4 bytes from memory beyond"):
            launch(source, 1, 1, x, out, shared_bytes=4)


@pytest.mark.slow
def test_memory_that_nobody_wrote_is_garbage(launch, cuda_on_cpu):
    code = """
    __shared__ float box[2];
    extern __shared__ float more[];
    out[0] = box[1]; out[1] = more[1]; out[2] = in_template<float>();
    """
    template = """
    template <class T> __device__ T in_template() {
        __shared__ T box[5000];
        T found = box[4999];
        box[4999] = 1;
        return found;
    }
    """
    for order, garbage in (("forward", np.nan), ("reversed", 3.3961514e38)):
        out = np.zeros(3, np.float32)
        launch(body(code, before=template), 3, 1, out, shared_bytes=8, order=order)
        np.testing.assert_array_equal(out, np.float32(garbage))
        np.testing.assert_array_equal(cuda_on_cpu.empty(3, np.float32), np.float32(garbage))


@pytest.mark.slow
def test_static_shared_memory_has_a_limit(launch):
    code = "__shared__ float box[12289]; box[threadIdx.x] = 1;"
    with pytest.raises(CudaOnCpuError, match="bytes of shared memory"):
        launch(body(code), 1, 1, np.empty(1, np.float32))


@pytest.mark.slow
def test_dynamic_shared_memory_ends_where_the_launch_said(launch):
    code = "extern __shared__ float box[]; box[threadIdx.x] = 1;"
    launch(body(code), 1, 64, np.empty(1, np.float32), shared_bytes=256)
    with pytest.raises(CudaOnCpuError, match="byte 252 of 252 bytes"):
        launch(body(code), 1, 64, np.empty(1, np.float32), shared_bytes=252)


@pytest.mark.parametrize(("order", "side"), [("forward", "after"), ("reversed", "before")])
def test_reads_beyond_dynamic_shared_memory_are_seen(launch, order, side):
    code = "extern __shared__ float box[]; if (!threadIdx.x) box[0] = 1; out[0] = box[i];"
    source = body(code, "float* out, int i")
    index = {"after": 64, "before": -1}[side]
    for i in (index, 100 * index):
        with pytest.raises(CudaOnCpuError, match=f"{side} the 256 bytes of dynamic .* was read"):
            launch(source, 1, 1, np.empty(1, np.float32), i, shared_bytes=256, order=order)
    launch(source, 1, 1, np.empty(1, np.float32), 63, shared_bytes=256, order=order)


def test_floats_that_are_not_normal_are_zeros_as_with_ftz(launch):
    x, out = np.array([1e-39, 1e-30], np.float32), np.empty(3, np.float32)
    source = body(
        "out[0] = x[0] * 2; out[1] = x[1] * 1e-9f; out[2] = x[1];", "const float* x, float* out"
    )
    launch(source, 1, 1, x, out)
    np.testing.assert_array_equal(out, [0, 0, np.float32(1e-30)])
    assert np.float32(1e-30) * np.float32(1e-9) > 0  # of the host nothing has changed


COPIED = """
#include <async_copy.cuh>
extern __shared__ float box[];
extern "C" __global__ void test(const float* x, float* out) {
    box[0] = -1;
    copy_async<4>(shared_address(box), x);
    close_copy_group();
    out[0] = box[0];
    wait_for_copies<0>();
    out[1] = box[0];
}
"""


@pytest.mark.parametrize(("copies", "early"), [("when waited for", -1), ("at once", 7)])
def test_asynchronous_copies_are_made_as_late_or_as_early_as_can_be(
    launch, cuda_on_cpu, copies, early
):
    cuda_on_cpu.copies = copies
    out = np.empty(2, np.float32)
    launch(COPIED, 1, 1, np.full(1, 7, np.float32), out, shared_bytes=4)
    np.testing.assert_array_equal(out, [early, 7])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes"),
    [(0, 1, 0), ((1, 65536), 1, 0), (1, 1025, 0), (1, (1, 1, 65), 0), (1, 1, 228 << 10)],
)
def test_launches_beyond_the_limits_are_refused(launch, grid, block, shared_bytes):
    with pytest.raises((CudaOnCpuError, ValueError)):  # a grid is looked at before
        launch(body(""), grid, block, np.empty(1, np.float32), shared_bytes=shared_bytes)


def test_launch_bounds_are_kept(launch):
    arguments = np.ones(4, np.float32), np.empty(1, np.float32), np.int32(4)
    with pytest.raises(CudaOnCpuError, match="at most 256"):
        launch(REDUCTION, 1, 257, *arguments)


@pytest.mark.parametrize(
    "argument",
    [
        np.zeros(3, np.float64),
        np.zeros(3, np.int32),
        np.float32(1),
        np.broadcast_to(np.float32(1), 3),
        np.zeros((3, 2), np.float32)[:, 0],
        np.zeros(3, np.float32)[::2],
    ],
)
def test_arguments_must_fit_the_parameters(launch, argument):
    with pytest.raises(CudaOnCpuError):
        launch(body(""), 1, 1, argument)


@pytest.mark.slow
def test_a_read_only_array_fits_only_a_pointer_to_const(launch):
    x = np.zeros(3, np.float32)
    x.flags.writeable = False
    launch(body("", "const float* x"), 1, 1, x)
    with pytest.raises(CudaOnCpuError, match="read-only"):
        launch(body(""), 1, 1, x)


def test_numbers_need_a_type_and_none_is_a_null_pointer(launch):
    source = body("out[0] = x ? 1 : n;", "float* out, const float* x, long long n")
    out = np.empty(1, np.float32)
    launch(source, 1, 1, out, None, np.int64(7))
    assert out[0] == 7
    with pytest.raises(TypeError, match=r"7\.0 has no type"):
        launch(source, 1, 1, out, None, 7.0)
    with pytest.raises(CudaOnCpuError, match="argument 2"):
        launch(source, 1, 1, out, None, 7)  # an int


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_and_votes(launch, order):
    code = """
    int lane = threadIdx.x;
    out[0 * 32 + lane] = __shfl_sync(0xffffffff, lane, 3, 8);
    out[1 * 32 + lane] = __shfl_up_sync(0xffffffff, lane, 1);
    out[2 * 32 + lane] = __shfl_down_sync(0xffffffff, lane, 2, 16);
    out[3 * 32 + lane] = __shfl_xor_sync(0xffffffff, lane, 5);
    out[4 * 32 + lane] = (int)__ballot_sync(0xffffffff, lane % 3 == 0);
    out[5 * 32 + lane] = __any_sync(0xffffffff, lane == 9) + 2 * __all_sync(0xffffffff, lane < 31);
    out[6 * 32 + lane] = __reduce_max_sync(0xffffffff, lane % 7);
    if (lane < 16) out[7 * 32 + lane] = __shfl_xor_sync(0x0000ffff, lane, 1);
    else out[7 * 32 + lane] = (int)__shfl_sync(0xffff0000, (double)lane, 20);
    """
    out = np.empty((8, 32), np.int32)
    launch(body(code, "int* out"), 1, 32, out, order=order)
    lane = np.arange(32)
    np.testing.assert_array_equal(out[0], lane // 8 * 8 + 3)
    np.testing.assert_array_equal(out[1], np.maximum(lane - 1, 0))
    np.testing.assert_array_equal(out[2], np.where(lane % 16 < 14, lane + 2, lane))
    np.testing.assert_array_equal(out[3], lane ^ 5)
    np.testing.assert_array_equal(out[4], np.int32(sum(1 << i for i in range(0, 30, 3)) | 1 << 30))
    np.testing.assert_array_equal(out[5], 1)
    np.testing.assert_array_equal(out[6], 6)
    np.testing.assert_array_equal(out[7], np.where(lane < 16, lane ^ 1, 20))


@pytest.mark.slow
def test_atomics_on_integers_count_and_floats_have_none(launch):
    counts = np.zeros(2, np.uint64)
    code = "atomicAdd(out, 1ull); atomicMax(out + 1, (unsigned long long)threadIdx.x);"
    launch(body(code, "unsigned long long* out"), 3, 64, counts)
    np.testing.assert_array_equal(counts, [192, 63])
    with pytest.raises(RuntimeError, match="no atomics on floats"):
        launch(body("atomicAdd(out, 1.0f);"), 1, 1, np.zeros(1, np.float32))


@pytest.mark.slow
def test_integer_intrinsics(launch):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, 100, dtype=np.uint32) for _ in range(2))
    code = """
    int i = threadIdx.x;
    out[4 * i] = __dp4a((int)a[i], (int)b[i], 5); out[4 * i + 1] = (int)__dp4a(a[i], b[i], 5u);
    out[4 * i + 2] = (int)__vsadu4(a[i], b[i]);
    out[4 * i + 3] = (int)__byte_perm(a[i], b[i], 0x4140);
    """
    out = np.empty((100, 4), np.int32)
    launch(body(code, "const unsigned* a, const unsigned* b, int* out"), 1, 100, a, b, out)
    bytes_a, bytes_b = a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4)
    wide = [x.view(np.int8).astype(int) for x in (bytes_a, bytes_b)]
    np.testing.assert_array_equal(out[:, 0], 5 + (wide[0] * wide[1]).sum(1))
    wide = [x.astype(int) for x in (bytes_a, bytes_b)]
    np.testing.assert_array_equal(out[:, 1], 5 + (wide[0] * wide[1]).sum(1))
    np.testing.assert_array_equal(out[:, 2], np.abs(wide[0] - wide[1]).sum(1))
    permuted = np.stack([bytes_a[:, 0], bytes_b[:, 0], bytes_a[:, 1], bytes_b[:, 0]], 1)
    np.testing.assert_array_equal(out[:, 3], np.ascontiguousarray(permuted).view(np.int32)[:, 0])


# ---------------------------------------------------------------------------- tensor cores

HEADER = "#include <tensor_core.cuh>"
ASYMMETRIC = np.random.default_rng(1)


def mma_source(mma, packed, accumulator, before=HEADER):
    """Return a kernel that loads fragments of A (16, K) and B (K, 8) as the header describes."""
    code = f"""
    int group = threadIdx.x / 4, member = threadIdx.x % 4;
    const int K = 8 * {packed}, P = {packed};
    unsigned a[4] = {{}}, b[2] = {{}};
    int bits = 32 / P;
    for (int i = 0; i < P; i++) {{
        int k = P * member + i;
        a[0] |= (unsigned)A[group * K + k] << bits * i;
        a[1] |= (unsigned)A[(group + 8) * K + k] << bits * i;
        a[2] |= (unsigned)A[group * K + k + K / 2] << bits * i;
        a[3] |= (unsigned)A[(group + 8) * K + k + K / 2] << bits * i;
        b[0] |= (unsigned)B[k * 8 + group] << bits * i;
        b[1] |= (unsigned)B[(k + K / 2) * 8 + group] << bits * i;
    }}
    {accumulator} d[4];
    for (int i = 0; i < 4; i++) d[i] = D[(group + i / 2 * 8) * 8 + member * 2 + i % 2];
    {mma}(d, a, b);
    for (int i = 0; i < 4; i++) D[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = d[i];
    """
    kind = "unsigned short" if packed == 2 else "unsigned char"
    return body(code, f"const {kind}* A, const {kind}* B, {accumulator}* D", before)


@pytest.mark.parametrize("order", ORDERS)
def test_mma_of_halves_is_the_matrix_product(launch, order):
    # Small whole numbers: products and sums are exact whatever their order.
    A, B = (ASYMMETRIC.integers(-20, 21, s).astype(np.float16) for s in ((16, 16), (16, 8)))
    D = ASYMMETRIC.integers(-20, 21, (16, 8)).astype(np.float32)
    expected = A.astype(np.float32) @ B.astype(np.float32) + D
    source = mma_source("mma_m16n8k16", 2, "float")
    launch(source, 1, 32, A.view(np.uint16), B.view(np.uint16), D, order=order)
    np.testing.assert_array_equal(D, expected)


@pytest.mark.slow
def test_mma_of_bytes_is_the_matrix_product(launch):
    A, B = (ASYMMETRIC.integers(-128, 128, s).astype(np.int8) for s in ((16, 32), (32, 8)))
    D = np.full((16, 8), 7, np.int32)
    launch(mma_source("mma_m16n8k32", 4, "int"), 1, 32, A.view(np.uint8), B.view(np.uint8), D)
    np.testing.assert_array_equal(D, A.astype(np.int32) @ B.astype(np.int32) + 7)


def test_mma_by_part_of_a_warp_is_an_error(launch):
    code = "float d[4]; unsigned a[4], b[2]; if (threadIdx.x < 31) mma_m16n8k16(d, a, b);"
    with pytest.raises(CudaOnCpuError, match="lanes"):
        launch(body(code, before=HEADER), 1, 32, np.empty(1, np.float32))


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_fragments(launch, transposed):
    name = "load_matrices_transposed" if transposed else "load_matrices"
    code = f"""
    __shared__ __align__(16) unsigned short rows[32][8];
    for (int i = 0; i < 8; i++) rows[threadIdx.x][i] = x[threadIdx.x * 8 + i];
    __syncwarp();
    unsigned r[4];
    {name}(r, rows[threadIdx.x]);
    for (int m = 0; m < 4; m++) out[m * 32 + threadIdx.x] = r[m];
    """
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.empty((4, 32), np.uint32)
    parameters = "const unsigned short* x, unsigned* out"
    launch(body(code, parameters, HEADER), 1, 32, x, out)
    matrices = x.transpose(0, 2, 1) if transposed else x
    np.testing.assert_array_equal(out.view(np.uint16).reshape(4, 8, 8), matrices)


@pytest.mark.slow
def test_conversions_round_like_numpy(launch):
    corners = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 2**-24, 2**-25]
    corners += [2**-25 * 1.0001, 2**-14, 6.1e-5, 1 + 2**-11, 1 + 3 * 2**-11, 1e-8, -1e30]
    scales = 10 ** np.linspace(-9, 6, 2000 - len(corners))
    x = np.concatenate([corners, ASYMMETRIC.normal(size=scales.size) * scales]).astype(np.float32)
    code = """
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        halves[i] = halves_from_floats(x[i], -x[i]);
        floats_from_halves(halves[i], back[2 * i], back[2 * i + 1]);
    }
    """
    parameters = "const float* x, unsigned* halves, float* back, int n"
    halves, back = np.empty(x.size, np.uint32), np.empty((x.size, 2), np.float32)
    launch(body(code, parameters, HEADER), 1, 32, x, halves, back, np.int32(x.size))
    with np.errstate(over="ignore"):
        expected = np.stack([x, -x], 1).astype(np.float16)
    found = halves.view(np.float16).reshape(-1, 2)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found)[x == x], np.signbit(expected)[x == x])
    np.testing.assert_array_equal(back, expected.astype(np.float32))


def test_a_split_float_keeps_22_bits(launch):
    x = ASYMMETRIC.normal(size=(64, 2)).astype(np.float32)
    code = """
    int i = threadIdx.x;
    split_into_halves(x[2 * i], x[2 * i + 1], heads[i], tails[i]);
    """
    heads, tails = (np.empty(64, np.uint32) for _ in range(2))
    parameters = "const float* x, unsigned* heads, unsigned* tails"
    launch(body(code, parameters, HEADER), 1, 64, x, heads, tails)
    total = sum(h.view(np.float16).astype(np.float64).reshape(-1, 2) for h in (heads, tails))
    np.testing.assert_allclose(total, x, rtol=2**-22, atol=2**-25)


@pytest.mark.slow
def test_every_byte_becomes_the_half_128_below(launch):
    x = np.arange(256, dtype=np.uint8)
    code = "halves_from_bytes(x[threadIdx.x], out[2 * threadIdx.x], out[2 * threadIdx.x + 1]);"
    out = np.empty(128, np.uint32)
    launch(body(code, "const unsigned* x, unsigned* out", HEADER), 1, 64, x.view(np.uint32), out)
    np.testing.assert_array_equal(out.view(np.float16), np.arange(256) - 128.0)


def test_broken_variants_must_differ_from_the_source(cuda_on_cpu):
    cuda_on_cpu.add_source("test.cu", "one two two")
    for old in ("three", "two"):
        with pytest.raises(ValueError, match="times in"), cuda_on_cpu.broken("test.cu", (old, "")):
            pass
    with cuda_on_cpu.broken("test.cu", ("one", "1")):
        assert cuda_on_cpu.source("test.cu") == "1 two two"
    assert cuda_on_cpu.source("test.cu") == "one two two"


LOOKS = {
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.max() < -5),
    "comparison": lambda x: 1 if (x > 0).any() else 0,
    "int": lambda x: int(x[0, 0]),
    "index": lambda x: range(10)[x.astype(int)[0, 0]],
    "item": lambda x: x[0].item(0),
    "tolist": lambda x: x.tolist(),
    "iteration": lambda x: list(x),
    "text": lambda x: f"{x.mean()}",
    "argmax": lambda x: x.argmax(),
    "count": lambda x: int(np.count_nonzero(x)),
    "norm": lambda x: float(np.linalg.norm(x)),
    "equality": lambda x: np.array_equal(x, x),
    "copy": lambda x: float(x.copy().T.reshape(-1).astype(float)[3]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looks_at_hidden_arrays_are_errors(name):
    LOOKS[name](np.ones((3, 2), np.float32))
    with pytest.raises(CudaOnCpuError, match="looks at values"):
        with_hidden_arrays(LOOKS[name])(np.ones((3, 2), np.float32))


def test_what_is_made_beside_hidden_arrays_is_hidden(cuda_on_cpu):
    x = hidden(np.zeros(3, np.float32))
    xp = cuda_on_cpu.array_namespace(x, None)
    for made in (xp.empty((), dtype=xp.float32), xp.empty_like(x)[0], xp.asarray(x)[0], xp.sum(x)):
        with pytest.raises(CudaOnCpuError, match="looks at values"):
            float(made)


def test_of_a_broken_file_only_what_is_broken_is_compiled():
    file = "two_layer_pass.cu"
    source = whole_source(file)
    assert Library(file, source, ()).changed == {}
    in_one = source.replace("share = 0; share < n_shares", "share = 1; share < n_shares")
    assert Library(file, in_one, ()).changed.keys() == {"sum_partials"}
    in_all = source.replace("constexpr int CHUNK = 64;", "constexpr int CHUNK = 128;")
    assert len(Library(file, in_all, ()).changed) == source.count('extern "C" __global__') == 6


@pytest.mark.slow
def test_what_nobody_waited_for_does_not_land_in_the_next_launch(launch, cuda_on_cpu):
    x = np.full(1, 7, np.float32)
    launch(
        COPIED.replace("wait_for_copies<0>();", ""),
        1,
        1,
        x,
        np.empty(2, np.float32),
        shared_bytes=4,
    )
    out = np.empty(2, np.float32)
    launch(
        COPIED.replace("copy_async<4>(shared_address(box), x);", ""), 1, 1, x, out, shared_bytes=4
    )
    np.testing.assert_array_equal(out, [-1, -1])
