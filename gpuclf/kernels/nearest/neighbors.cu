// Distances between bytes as exact 32-bit integers.
//
//   squared_norms         |a|^2 for each row of A or B
//   multiply_bytes        |a|^2 + |b|^2 - 2 a b by tensor cores, from sm_80
//   squared_distances     the same by __dp4a, for older devices
//   absolute_distances    sum |a - b|, four bytes an instruction from sm_75 to sm_100; sm_120 lacks
//                         it and takes about four
//
// Exact: bytes are multiplied as they are, without a sign. While D 255^2 < 2^31 a product fits into
// 32 bits; the sum of the norms may not, but unsigned numbers wrap, and the distance fits again.
//
// Bytes. For N x M distances of D features the shared body writes float32 copies of both factors,
// and for each 1,024 features a product, its integer copy and their sum, 20 N M bytes and more; here
// distances are written once, 4 N M bytes, and factors are read as they are, from the L2 cache: a
// block of 128 x 256 pairs takes 384 bytes for 32,768 multiplications. For the k nearest, distances
// are made a tile at a time (merge_nearest.cu).
//
// multiply_bytes. Block: 128 rows of A x 256 rows of B, 8 warps of 64 x 64, whose sums stay in
// registers. A ring of STAGES asynchronous copies of 64 columns, 24 KB each; 16 bytes of a row lie
// at vector v ^ (row / 2 mod 4), so that neither the copies nor ldmatrix meet in a bank. 32 columns
// take a warp 8 ldmatrix (4 KB) for 32 products: if a product takes a quarter of a multiprocessor 8
// clocks, shared memory is busy for two thirds of the time, with the copies. Query tiles follow
// each other fastest, so that blocks that run at the same time share their training samples.
//
// squared_distances, absolute_distances. Block: 128 x 128, 256 threads of 8 x 8 pairs; four
// 16-byte loads from shared memory, where words of a column lie side by side, for 64 instructions.
//
// The wrapper (on_gpu.py) pads rows to 16 bytes where they are not, which takes a copy,
// and declines other types than bytes and sums beyond 32 bits. Does not help: fewer rows than a
// block has, whose others are computed for nothing.
//
// check: registers<=255

#include <async_copy.cuh>
#include <tensor_core.cuh>

constexpr unsigned ALL = 0xffffffffu;
constexpr int THREADS = 256;

using Byte = unsigned char;

// Where rows of bytes are read as vectors of 16, their number is a multiple of that.
__device__ __forceinline__ const uint4* row_vectors(const Byte* rows, int row, int n_rows,
                                                    int n_features) {
    const long long existing = min(row, n_rows - 1);  // rows past the end are never written
    return reinterpret_cast<const uint4*>(rows + existing * n_features);
}

// ---------------------------------------------------------------------------------- norms

extern "C" __global__ void __launch_bounds__(THREADS)
squared_norms(const Byte* __restrict__ X, unsigned* __restrict__ norms, int n_rows,
              int n_features) {
    const int lane = threadIdx.x % 32;
    const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= n_rows) return;
    const uint4* vectors = row_vectors(X, row, n_rows, n_features);
    unsigned sum = 0;
#pragma unroll 4
    for (int i = lane; i < n_features / 16; i += 32) {
        const uint4 v = vectors[i];
        sum = __dp4a(v.x, v.x, sum);
        sum = __dp4a(v.y, v.y, sum);
        sum = __dp4a(v.z, v.z, sum);
        sum = __dp4a(v.w, v.w, sum);
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
    if (lane == 0) norms[row] = sum;
}

// --------------------------------------------------------------------------- tensor cores

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

constexpr int BLOCK_ROWS = 128;  // of A
constexpr int BLOCK_COLUMNS = 256;  // rows of B
constexpr int WARP_SIDE = 64;
constexpr int CHUNK = 64;  // features of a stage
constexpr int STAGES = 4;
constexpr int STAGE_BYTES = (BLOCK_ROWS + BLOCK_COLUMNS) * CHUNK;
constexpr int COPIES = STAGE_BYTES / 16 / THREADS;  // of each thread
constexpr int COPY_ROWS = THREADS / 4;  // four threads copy a row of a stage

extern __shared__ uint4 stages[];

extern "C" __global__ void __launch_bounds__(THREADS, 1)
multiply_bytes(const Byte* __restrict__ A, const Byte* __restrict__ B,
               const unsigned* __restrict__ norms_A, const unsigned* __restrict__ norms_B,
               int* __restrict__ distances, int n_rows, int n_columns, int n_features) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = blockIdx.x * BLOCK_ROWS, first_column = blockIdx.y * BLOCK_COLUMNS;

    const int copy_row = threadIdx.x / 4, copy_vector = threadIdx.x % 4;
    const unsigned copy_to = shared_address(stages) + copy_row * CHUNK
        + 16 * (copy_vector ^ copy_row / 2 % 4);
    const uint4* from[COPIES];
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
        const int row = copy_row + i * COPY_ROWS;
        from[i] = copy_vector
            + (row < BLOCK_ROWS ? row_vectors(A, first_row + row, n_rows, n_features)
                                : row_vectors(B, first_column + row - BLOCK_ROWS, n_columns,
                                              n_features));
    }
    const int n_chunks = (n_features + CHUNK - 1) / CHUNK;
    int chunk_to_copy = 0, place_to_fill = 0;
    auto start_stage = [&] {
        if (chunk_to_copy < n_chunks) {
            const bool exists = chunk_to_copy * CHUNK + 16 * copy_vector < n_features;
            uint4* zeros = stages + place_to_fill * (STAGE_BYTES / 16) + copy_row * (CHUNK / 16)
                + (copy_vector ^ copy_row / 2 % 4);
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                if (exists)
                    copy_async<16>(copy_to + place_to_fill * STAGE_BYTES + i * COPY_ROWS * CHUNK,
                                   from[i]);
                else
                    zeros[i * COPY_ROWS * CHUNK / 16] = make_uint4(0, 0, 0, 0);
                from[i] += CHUNK / 16;
            }
            ++chunk_to_copy;
        }
        close_copy_group();
        place_to_fill = place_to_fill + 1 < STAGES ? place_to_fill + 1 : 0;
    };
    for (int i = 0; i < STAGES - 1; ++i) start_stage();

    // What ldmatrix asks of a lane: the row of a fragment, and which 16 of its 32 bytes.
    const int warp_row = warp % 2 * WARP_SIDE, warp_column = warp / 2 * WARP_SIDE;
    const int swizzle = lane / 2 % 4;
    const int row_of_a = warp_row + lane % 16, vector_of_a = lane / 16;
    const int row_of_b = BLOCK_ROWS + warp_column + lane % 8 + lane / 16 * 8;
    const int vector_of_b = lane / 8 % 2;

    int sums[4][8][4] = {};
    int place = 0;
    for (int chunk = 0; chunk < n_chunks; ++chunk) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        start_stage();
        const uint4* stage = stages + place * (STAGE_BYTES / 16);
        place = place + 1 < STAGES ? place + 1 : 0;
#pragma unroll
        for (int step = 0; step < CHUNK / 32; ++step) {
            unsigned a[4][4], b[8][2];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_matrices(a[i], stage + (row_of_a + 16 * i) * (CHUNK / 16)
                                        + (2 * step + vector_of_a ^ swizzle));
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                unsigned pair[4];
                load_matrices(pair, stage + (row_of_b + 8 * j) * (CHUNK / 16)
                                        + (2 * step + vector_of_b ^ swizzle));
                b[j][0] = pair[0], b[j][1] = pair[1];
                b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) mma_m16n8k32_unsigned(sums[i][j], a[i], b[j]);
        }
    }

    const int group = lane / 4, member = lane % 4;
    const bool in_pairs = n_columns % 2 == 0;  // then all pairs are aligned, and whole
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row = first_row + warp_row + 8 * i + group;
        if (row >= n_rows) continue;
        const unsigned norm_a = norms_A[row];
        int* to = distances + static_cast<long long>(row) * n_columns;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = first_column + warp_column + 8 * j + 2 * member;
            if (column >= n_columns) continue;
            const int* products = sums[i / 2][j] + i % 2 * 2;
            const bool has_second = column + 1 < n_columns;
            const int first = norm_a + norms_B[column] - 2u * products[0];
            const int second = has_second ? norm_a + norms_B[column + 1] - 2u * products[1] : 0;
            if (in_pairs) {
                *reinterpret_cast<int2*>(to + column) = make_int2(first, second);
            } else {
                to[column] = first;
                if (has_second) to[column + 1] = second;
            }
        }
    }
}

#endif

// ------------------------------------------------------------------------- ordinary cores

constexpr int SIDE = 128;
constexpr int WORDS = 8;  // of 4 features, at a time

template <bool SQUARED>
__device__ __forceinline__ void distances_of_pairs(const Byte* A, const Byte* B,
                                                   const unsigned* norms_A,
                                                   const unsigned* norms_B, int* distances,
                                                   int n_rows, int n_columns, int n_features) {
    __shared__ uint4 tiles[2][2][WORDS][SIDE / 4];  // buffer, A or B, word, four rows
    const int first_row = blockIdx.x * SIDE, first_column = blockIdx.y * SIDE;
    const int copy_row = threadIdx.x % SIDE, copy_vector = threadIdx.x / SIDE;
    const uint4* from[2] = {
        row_vectors(A, first_row + copy_row, n_rows, n_features) + copy_vector,
        row_vectors(B, first_column + copy_row, n_columns, n_features) + copy_vector,
    };
    uint4 fetched[2];
    auto fetch = [&](int chunk) {
        const bool exists = chunk * WORDS * 4 + 16 * copy_vector < n_features;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            fetched[i] = exists ? from[i][chunk * WORDS / 4] : make_uint4(0, 0, 0, 0);
    };
    auto keep = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            unsigned* words = reinterpret_cast<unsigned*>(tiles[chunk % 2][i][4 * copy_vector]);
            words[copy_row] = fetched[i].x;
            words[copy_row + SIDE] = fetched[i].y;
            words[copy_row + 2 * SIDE] = fetched[i].z;
            words[copy_row + 3 * SIDE] = fetched[i].w;
        }
    };
    const int quad_row = threadIdx.x / 16, quad_column = threadIdx.x % 16;
    const int n_chunks = (n_features + 4 * WORDS - 1) / (4 * WORDS);
    unsigned sums[8][8] = {};
    fetch(0);
    keep(0);
#pragma unroll 1
    for (int chunk = 0; chunk < n_chunks; ++chunk) {
        __syncthreads();
        if (chunk + 1 < n_chunks) fetch(chunk + 1);
#pragma unroll 2  // more would spill
        for (int word = 0; word < WORDS; ++word) {
            unsigned a[8], b[8];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint4 rows = tiles[chunk % 2][0][word][quad_row + 16 * i];
                const uint4 columns = tiles[chunk % 2][1][word][quad_column + 16 * i];
                a[4 * i] = rows.x, a[4 * i + 1] = rows.y;
                a[4 * i + 2] = rows.z, a[4 * i + 3] = rows.w;
                b[4 * i] = columns.x, b[4 * i + 1] = columns.y;
                b[4 * i + 2] = columns.z, b[4 * i + 3] = columns.w;
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    sums[i][j] = SQUARED ? __dp4a(a[i], b[j], sums[i][j])
                                         : add_absolute_differences(a[i], b[j], sums[i][j]);
        }
        if (chunk + 1 < n_chunks) keep(chunk + 1);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row = first_row + i / 4 * 64 + 4 * quad_row + i % 4;
        if (row >= n_rows) continue;
        const unsigned norm_a = SQUARED ? norms_A[row] : 0;
        int* to = distances + static_cast<long long>(row) * n_columns;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = first_column + j / 4 * 64 + 4 * quad_column + j % 4;
            if (column >= n_columns) continue;
            to[column] = SQUARED ? norm_a + norms_B[column] - 2u * sums[i][j] : sums[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
squared_distances(const Byte* __restrict__ A, const Byte* __restrict__ B,
                  const unsigned* __restrict__ norms_A, const unsigned* __restrict__ norms_B,
                  int* __restrict__ distances, int n_rows, int n_columns, int n_features) {
    distances_of_pairs<true>(A, B, norms_A, norms_B, distances, n_rows, n_columns, n_features);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
absolute_distances(const Byte* __restrict__ A, const Byte* __restrict__ B,
                   int* __restrict__ distances, int n_rows, int n_columns, int n_features) {
    distances_of_pairs<false>(A, B, nullptr, nullptr, distances, n_rows, n_columns, n_features);
}
