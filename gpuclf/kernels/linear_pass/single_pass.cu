// The softmax or hinge pass of a linear classifier over bytes with each byte read from memory once:
//
//   scores = (X - 128) W' + b',  loss and G = d loss / d scores
//   dW' = (X - 128)^T G,  db' = the column sums of G
//
// in three launches: pack_digits, walk_tiles, sum_tiles. Folding, unfolding and penalty as in
// linear_pass.cu.
//
// Bytes. X once, N D, from memory into shared memory, where both products find it; 154 MB for
// 50,000 x 3,072, or 36 us at 4.3 TB/s, where two walks from memory take 72. (A second walk through
// L2 cannot do as well: L2 gives some 5.6 TB/s, 27 us more.) W' comes from L2 once a block, 3 bytes
// a number; each block leaves its dW', 147 KB for 10 classes, 20 MB from 132 blocks, in L2.
//
// Numbers. Tensor cores multiply bytes exactly: X - 128 by W' and by G as whole numbers of 24 bits,
// in three digits of 8 bits each, -128 to 127. The units are powers of two, one for each class and
// strip of W', one for each tile of G, there times the weight that all rows have; what is lost is
// 2^-24 of the largest number that shares the unit, and of hinges without weights of their own
// nothing. What is taken from b, and db, are sums of the same whole numbers, so that nothing is left
// where they cancel with the products. Sums of digits are exact in 32 bits; what is left to floats
// is to add 8 strips for a score, and the tiles of a block, then the blocks, for dW'. Their orders
// and the number of blocks do not depend on the device, nor does anything that tensor cores do:
// what can differ between devices is expf and logf.
//
// walk_tiles. 8 warps, a block on each multiprocessor; tiles of 32 rows in turns. A warp has a
// strip of columns for itself (384 of 3,072): it copies them, in chunks of 64 columns, into a ring
// of its own, multiplies them by its part of W', which stays in shared memory, and later by G; so
// what it copies needs no barrier. The strip's dW' stays in registers for all tiles (144 of 255 for
// 10 classes and 3,072 columns). When a chunk has been multiplied by G, its place in the ring takes
// the next tile's. Shared memory for 3,072 columns and 10 classes: W' 96 KB; ring 7 chunks a warp,
// 112 KB, for the tile and a sixth of the next; the strips' scores 10 KB; digits of G 1 KB. A tile
// takes three barriers: scores of all strips, the largest of G, the digits of G. The loss has 8
// lanes a row.
//
// Digits are the B operand of both products, rows and columns of X are A. Lane t of a quad is to
// find all digits of a class among its sums, classes t, t + 4, ...; if one or two classes are left,
// two lanes have each: the first two digits, and the third. So ten classes take 4 tiles of 8
// columns. The order of the k's is free: for scores, lane 4 g + t takes 16 bytes of row g at column
// 16 t; for dW', a transposed load takes pairs of columns, and a byte permutation separates them.
//
// Instructions for sm_90 and 10 classes, counted in what nvcc 13.0 makes of them for each 2 KB of
// X, of 427 issue slots (see linear_pass.cu): 90 for scores and what a tile takes besides, 220 for
// dW', 144 of them to add up. Tensor cores: 32 products of some 7 cycles, 214 of 427. Shared
// memory: 8 KB for each 2 KB, 60 % of its rate. Not yet measured; [est] a tile takes a warp 2,301
// instructions, 263 of them conversions at half the rate: 40 to 44 us for 12 tiles, beside 36 from
// memory; 6 where a block waits for its first tile and adds up its last, 12 for the other launches.
//
// Declined by single_on_gpu.py: what linear_pass.cu declines; rows that are not a multiple of
// 16 bytes; more than 12 classes or 3,072 columns, whose sums registers do not hold; devices with
// too little shared memory (3,072 columns need 205 KB: sm_90, sm_100). Does not help: few rows,
// where each block has less to do than to copy W'; devices with more multiprocessors than blocks,
// or whose tensor cores are slow on bytes.
//
// Constants: FEATURES (a multiple of 16), CLASSES, HINGE (0, 1), RING (chunks of a warp).
//
// check: registers<=255 from=80 FEATURES=3072 CLASSES=10 HINGE=0 RING=7
// check: registers<=255 from=80 FEATURES=1552 CLASSES=12 HINGE=1 RING=8
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <byte_tiles.cuh>
#include <tensor_core.cuh>

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int ROWS = 32;  // of a tile
constexpr int CHUNK = 64;  // columns
constexpr int CHUNKS = (FEATURES + WARPS * CHUNK - 1) / (WARPS * CHUNK);  // of a strip
constexpr int STRIP = CHUNK * CHUNKS;  // columns of a warp
// What registers hold of dW'; of columns also what sums of digits, times 256, fit into 32 bits.
constexpr int MAX_STRIP = 384;
constexpr int MAX_CLASSES = 12;
static_assert(STRIP <= MAX_STRIP && CLASSES <= MAX_CLASSES);
static_assert(RING >= CHUNKS, "a tile fits the ring");

// Where digits go: see digit_column.
constexpr int FULL = CLASSES / 4, REST = CLASSES % 4;
constexpr bool SHARED = REST == 1 || REST == 2;  // two lanes for each of the last classes
constexpr int LANE_CLASSES = FULL + (REST > 0);
constexpr int SLOTS = SHARED ? 3 * FULL + 2 : 3 * LANE_CLASSES;  // digits of a lane
constexpr int TILES = (SLOTS + 1) / 2;  // of 8 columns of digits
constexpr int DIGIT_COLUMNS = 8 * TILES;
constexpr int LARGEST_NUMBER = 0x7f7f7f;  // in three digits

constexpr int CHUNK_VECTORS = ROWS * CHUNK / 16;
constexpr int WEIGHT_VECTORS = DIGIT_COLUMNS * CHUNK / 16;  // of a chunk
constexpr int ROW_LANES = THREADS / ROWS;  // that share a row of scores
constexpr int ROW_CLASSES = (CLASSES + ROW_LANES - 1) / ROW_LANES;  // of such a lane
constexpr int STRIP_TILES = STRIP / 16;
constexpr int SUMS = WARPS * STRIP_TILES * 2 * LANE_CLASSES * 32;  // of a block

extern __shared__ uint4 shared_memory[];

// The column, of 8 in each tile, that has a digit (0 to 2) of a class. A lane's sums are columns
// 2 t and 2 t + 1 of all tiles. A digit 3, in the place that a shared class leaves free, is 0.
__device__ __forceinline__ int digit_column(int label, int digit) {
    const bool is_shared = SHARED && label >= 4 * FULL;
    const int member = is_shared ? 2 * (label - 4 * FULL) + digit / 2 : label % 4;
    const int slot = is_shared ? 3 * FULL + digit % 2 : label / 4 * 3 + digit;
    return slot / 2 * 8 + 2 * member + slot % 2;
}

__device__ __forceinline__ int digits_of(int label) {
    return SHARED && label >= 4 * FULL ? 4 : 3;
}

// Three digits of -128 to 127 in the lower bytes, the last one first, and 0.
__device__ __forceinline__ unsigned digits_from_number(int number) {
    return (static_cast<unsigned>(number) + 0x808080u) ^ 0x808080u;
}

// The bits of |x|, whose order is that of the numbers; above them infinity, then NaN.
__device__ __forceinline__ unsigned magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}

__device__ __forceinline__ unsigned warp_max(unsigned x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x = max(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

// The power of two that makes whole numbers of floats up to `largest`, and its inverse, which is
// NaN where one of them is not finite.
struct Unit {
    float enlargement, unit;
};

__device__ __forceinline__ Unit unit_of(unsigned largest) {
    const float x = __uint_as_float(largest);
    int exponent = scale_exponent(x) + 8;  // x 2^exponent is below 2^23
    if (x * scalbnf(1.0f, exponent) > LARGEST_NUMBER) --exponent;
    return {scalbnf(1.0f, exponent), largest < 0x7f800000u ? scalbnf(1.0f, -exponent) : nanf("")};
}

// The numbers that a lane's sums of digits stand for, without their unit: `number` of its classes.
// The last one may be the share of two lanes, 256 times too small or too large: see share_factor.
__device__ __forceinline__ void add_number(float& total, const int (&sums)[TILES][4], int half,
                                           int number, float unit) {
    const bool is_shared = SHARED && number == FULL;
    const int slot = 3 * number, next = slot + 1, last = is_shared ? next : slot + 2;
    const int first = sums[slot / 2][2 * half + slot % 2];
    const int second = sums[next / 2][2 * half + next % 2];
    const int third = sums[last / 2][2 * half + last % 2];
    if (is_shared) {
        total = fmaf(static_cast<float>(first * 256 + second), unit, total);
    } else {
        total = fmaf(static_cast<float>(first), 65536.0f * unit, total);
        total = fmaf(static_cast<float>(second * 256 + third), unit, total);
    }
}

__device__ __forceinline__ float share_factor(int number, int member) {
    return !SHARED || number < FULL ? 1.0f : member % 2 ? 1.0f / 256 : 256.0f;
}

// The class that a lane has the sums of, or one beyond the last.
__device__ __forceinline__ int label_of(int number, int member) {
    if (!SHARED || number < FULL) return 4 * number + member;
    return member % 2 == 0 ? 4 * FULL + member / 2 : CLASSES;
}

// Wait until at most `pending` groups of copies are under way, for what unrolling makes a constant.
template <int MOST> __device__ __forceinline__ void wait_for_all_but(int pending) {
    if constexpr (MOST > 0) {
        if (pending < MOST) return wait_for_all_but<MOST - 1>(pending);
    }
    wait_for_copies<MOST>();
}

// Grid: strips, classes. packed gets W' by chunk, column of digits and column; units (strips,
// classes). mean, scale, folding: as in linear_pass.cu; strip_sums (strips, classes, 2) gets what is
// to be taken from b, and the sum of squares of W.
extern "C" __global__ void __launch_bounds__(128)
pack_digits(const float* __restrict__ W, const double* __restrict__ mean,
            const double* __restrict__ scale, signed char* __restrict__ packed,
            float* __restrict__ units, float2* __restrict__ folding,
            double* __restrict__ strip_sums) {
    __shared__ unsigned maxima[4];
    __shared__ double sums[4][2];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int strip = blockIdx.x, label = blockIdx.y;
    constexpr int COLUMNS = (STRIP + 127) / 128;
    float values[COLUMNS];
    unsigned largest = 0;
    double squares = 0.0, moved = 0.0;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
        const int k = threadIdx.x + 128 * i, column = strip * STRIP + k;
        values[i] = 0.0f;
        if (k >= STRIP || column >= FEATURES) continue;
        const float weight = W[column * CLASSES + label];
        // Not fold_column: with it, NVRTC spills for sm_100.
        const double divisor = scale ? scale[column] : 1.0;
        const float factor = static_cast<float>(1.0 / divisor);
        values[i] = weight * factor;
        largest = max(largest, magnitude(values[i]));
        squares += static_cast<double>(weight) * weight;
        if (folding && label == 0) {
            const double shift = ((mean ? mean[column] : 0.0) - 128.0) / divisor;
            folding[column] = make_float2(factor, static_cast<float>(shift));
        }
    }
    largest = warp_max(largest);
    if (lane == 0) maxima[warp] = largest;
    __syncthreads();
    for (int i = 0; i < 4; ++i) largest = max(largest, maxima[i]);
    const Unit scaling = unit_of(largest);
    const int place = strip * CLASSES + label;
    if (threadIdx.x == 0) units[place] = scaling.unit;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
        const int k = threadIdx.x + 128 * i;
        if (k >= STRIP) continue;
        const int number = __float2int_rn(values[i] * scaling.enlargement);
        const unsigned digits = digits_from_number(number);
        if (mean && strip * STRIP + k < FEATURES)
            moved += (mean[strip * STRIP + k] - 128.0) * number * scaling.unit;
        else
            moved -= 128.0 * number * scaling.unit;
        signed char* chunk = packed + (strip * CHUNKS + k / CHUNK) * DIGIT_COLUMNS * CHUNK;
        for (int digit = 0; digit < digits_of(label); ++digit)
            chunk[digit_column(label, digit) * CHUNK + k % CHUNK] =
                digit < 3 ? digits >> 8 * (2 - digit) : 0;
    }
    moved = warp_sum(moved), squares = warp_sum(squares);
    if (lane == 0) sums[warp][0] = moved, sums[warp][1] = squares;
    __syncthreads();
    if (strip_sums && threadIdx.x < 2) {
        double sum = 0.0;
        for (int i = 0; i < 4; ++i) sum += sums[i][threadIdx.x];
        strip_sums[2 * place + threadIdx.x] = sum;
    }
}

// bias, sample_weight, strip_sums may be null, as in linear_pass.cu. partials (blocks, SUMS) gets
// each block's dW' by strip, 16 columns, odd or even column, number of a lane's class, and lane;
// partial_sums (blocks, CLASSES + 1) the loss and the column sums of G.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
walk_tiles(const unsigned char* __restrict__ X, const uint4* __restrict__ packed,
           const float* __restrict__ units, const float* __restrict__ bias,
           const double* __restrict__ strip_sums, const long long* __restrict__ labels,
           const float* __restrict__ sample_weight, float* __restrict__ partials,
           double* __restrict__ partial_sums, float uniform_weight, int n_samples) {
    __shared__ float folded_bias[CLASSES];
    __shared__ float strip_units[WARPS][CLASSES];
    __shared__ unsigned maxima[WARPS];
    __shared__ double sums[WARPS][CLASSES + 1];
    const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int group = lane / 4, member = lane % 4;
    const int n_tiles = (n_samples + ROWS - 1) / ROWS;
    const int n_own_chunks = (FEATURES - warp * STRIP + CHUNK - 1) / CHUNK;

    // In this order in shared memory: all of W', the warps' rings, scores by strip and row, G.
    constexpr int ALL_WEIGHTS = WARPS * CHUNKS * WEIGHT_VECTORS;
    const int own_weights = warp * CHUNKS * WEIGHT_VECTORS;
    const int own_ring = ALL_WEIGHTS + warp * RING * CHUNK_VECTORS;
    uint4* const after_rings = shared_memory + ALL_WEIGHTS + WARPS * RING * CHUNK_VECTORS;
    signed char* const digits_G = reinterpret_cast<signed char*>(after_rings);
    float* const strip_scores = reinterpret_cast<float*>(after_rings + DIGIT_COLUMNS * ROWS / 16);

    // Column 16 v of row r lies at vector v ^ r / 2 % 4 of the row, so that eight rows at the same
    // columns, and four columns of two rows, find their 16 bytes in different banks.
    const int copy_row = lane / 4, copy_column = warp * STRIP + member * 16;
    const unsigned copy_to = shared_address(shared_memory)
        + 16 * (own_ring + copy_row * 4 + (member ^ copy_row / 2 % 4));
    // The chunk that comes `number` chunks after the first of a tile of this block.
    auto start_chunk = [&](int tile, int number, int place) {
        tile += number / CHUNKS * gridDim.x;
        if (tile < n_tiles) {
            const int column = copy_column + number % CHUNKS * CHUNK;
            const int row = tile * ROWS + copy_row;
            const unsigned char* from = X + static_cast<long long>(row) * FEATURES + column;
#pragma unroll
            for (int i = 0; i < ROWS; i += 8)
                if (row + i < n_samples && (WARPS * STRIP == FEATURES || column < FEATURES))
                    copy_async<16>(copy_to + 16 * (place * CHUNK_VECTORS + i * 4),
                                   from + i * FEATURES);
        }
        close_copy_group();
    };
    for (int i = lane; i < CHUNKS * WEIGHT_VECTORS; i += 32)  // in the group of the first chunk
        copy_async<16>(shared_address(shared_memory) + 16 * (own_weights + i),
                       packed + own_weights + i);
    for (int i = 0; i < RING; ++i) start_chunk(blockIdx.x, i, i);

    if (threadIdx.x < CLASSES) {
        double moved = 0.0;
        for (int i = 0; strip_sums && i < WARPS; ++i)
            moved += strip_sums[(i * CLASSES + threadIdx.x) * 2];
        folded_bias[threadIdx.x] =
            static_cast<float>((bias ? bias[threadIdx.x] : 0.0) - moved);
    }
    for (int i = threadIdx.x; i < WARPS * CLASSES; i += THREADS) strip_units[i / CLASSES][i % CLASSES] = units[i];
    __syncthreads();

    float totals[STRIP_TILES][2][LANE_CLASSES] = {};
    double loss_sum = 0.0, column_sums[ROW_CLASSES] = {};
    int first_place = 0;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        const int tile_row = threadIdx.x / ROW_LANES, row_member = threadIdx.x % ROW_LANES;
        const int row = tile * ROWS + tile_row;

        int scores[2][TILES][4] = {};
        const uint4* weights = shared_memory + own_weights + group * 4 + member;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            wait_for_all_but<RING - 1>(RING - 1 - chunk);
            __syncwarp();
            if (chunk >= n_own_chunks) continue;
            const int place = first_place + chunk - (first_place + chunk < RING ? 0 : RING);
            const uint4* pixels = shared_memory + own_ring + place * CHUNK_VECTORS
                + group * 4 + (member ^ group / 2 % 4);
            unsigned x[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint4 vector = pixels[i * 32];
                x[i][0] = vector.x ^ 0x80808080u, x[i][1] = vector.y ^ 0x80808080u;
                x[i][2] = vector.z ^ 0x80808080u, x[i][3] = vector.w ^ 0x80808080u;
            }
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                const uint4 vector = weights[chunk * WEIGHT_VECTORS + i * 32];
                const unsigned b[2][2] = {{vector.x, vector.y}, {vector.z, vector.w}};
#pragma unroll
                for (int step = 0; step < 2; ++step)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const unsigned a[4] = {x[2 * j][2 * step], x[2 * j + 1][2 * step],
                                               x[2 * j][2 * step + 1], x[2 * j + 1][2 * step + 1]};
                        mma_m16n8k32(scores[j][i], a, b[step]);
                    }
            }
        }
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i) {
            const int column = label_of(i, SHARED && i == FULL ? member & ~1 : member);
            const bool has_class = column < CLASSES;
            const float unit = has_class ? strip_units[warp][column] * share_factor(i, member) : 0.0f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float score = 0.0f;
                add_number(score, scores[j / 2], j % 2, i, unit);
                if (SHARED && i == FULL) score += __shfl_xor_sync(~0u, score, 1);
                if (has_class)  // of two that share a class, both write the same
                    strip_scores[(warp * ROWS + 8 * j + group) * CLASSES + column] = score;
            }
        }
        const bool exists = row < n_samples;
        const long long known = exists ? labels[row] : 0;
        const int label = known >= 0 && known < CLASSES ? static_cast<int>(known) : -1;
        // A weight that all rows have goes into the unit: of hinges, whole numbers are left.
        const float weight = !exists ? 0.0f : sample_weight ? sample_weight[row] : 1.0f;
        const float common = sample_weight ? 1.0f : uniform_weight;
        __syncthreads();

        float values[ROW_CLASSES];
#pragma unroll
        for (int i = 0; i < ROW_CLASSES; ++i) {
            const int column = row_member + ROW_LANES * i;
            values[i] = 0.0f;
            if (column >= CLASSES) continue;
            values[i] = folded_bias[column];
            for (int strip = 0; strip < WARPS; ++strip)
                values[i] += strip_scores[(strip * ROWS + tile_row) * CLASSES + column];
        }
        const float loss = row_loss<ROW_LANES, CLASSES, HINGE>(
            values, label, [&](int i) { return row_member + ROW_LANES * i; });
        if (exists && row_member == 0) loss_sum += loss * (weight * common);
        unsigned largest = 0;
#pragma unroll
        for (int i = 0; i < ROW_CLASSES; ++i) {
            values[i] = exists ? values[i] * weight : 0.0f;
            largest = max(largest, magnitude(values[i]));
        }
        largest = warp_max(largest);
        if (lane == 0) maxima[warp] = largest;
        __syncthreads();

        for (int i = 0; i < WARPS; ++i) largest = max(largest, maxima[i]);
        const Unit scaling = unit_of(largest);
        const float unit = scaling.unit * common;
        // The transposed loads give a lane rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 in this order.
        const int digit_row = tile_row / 16 * 16 + tile_row % 8 / 2 * 4 + tile_row / 8 % 2 * 2
            + tile_row % 2;
#pragma unroll
        for (int i = 0; i < ROW_CLASSES; ++i) {
            const int column = row_member + ROW_LANES * i;
            if (column >= CLASSES) continue;
            const int number = __float2int_rn(values[i] * scaling.enlargement);
            const unsigned digits = digits_from_number(number);
            column_sums[i] += static_cast<double>(number) * unit;
            for (int digit = 0; digit < digits_of(column); ++digit)
                digits_G[digit_column(column, digit) * ROWS + digit_row] =
                    digit < 3 ? digits >> 8 * (2 - digit) : 0;
        }
        __syncthreads();

        unsigned b[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                b[i][j] = reinterpret_cast<const unsigned*>(
                    digits_G)[(8 * i + group) * (ROWS / 4) + 4 * j + member];
        float tile_units[LANE_CLASSES];
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i)
            tile_units[i] = unit * share_factor(i, member);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int place = first_place + chunk - (first_place + chunk < RING ? 0 : RING);
            const uint4* pixels = shared_memory + own_ring + place * CHUNK_VECTORS + lane * 4;
            // The branch also keeps ptxas from postponing the sums of all chunks, for which it spilled.
            if (chunk < n_own_chunks)
#pragma unroll
            for (int vector = 0; vector < 4; ++vector) {
                unsigned pairs[4], a[4];
                load_matrices_transposed(pairs, pixels + (vector ^ lane / 2 % 4));
                separate_bytes(pairs[0] ^ 0x80808080u, pairs[1] ^ 0x80808080u, a[0], a[1]);
                separate_bytes(pairs[2] ^ 0x80808080u, pairs[3] ^ 0x80808080u, a[2], a[3]);
                int products[TILES][4] = {};
#pragma unroll
                for (int i = 0; i < TILES; ++i) mma_m16n8k32(products[i], a, b[i]);
#pragma unroll
                for (int i = 0; i < 2 * LANE_CLASSES; ++i)
                    add_number(totals[4 * chunk + vector][i % 2][i / 2], products, i % 2, i / 2,
                               tile_units[i / 2]);
            }
            __syncwarp();
            start_chunk(tile, chunk + RING, place);
        }
        first_place += CHUNKS - (first_place + CHUNKS < RING ? 0 : RING);
    }
    wait_for_copies<0>();

    partials += static_cast<long long>(blockIdx.x) * SUMS
        + warp * (STRIP_TILES * 2 * LANE_CLASSES * 32) + lane;
#pragma unroll
    for (int i = 0; i < STRIP_TILES; ++i)
#pragma unroll
        for (int j = 0; j < 2 * LANE_CLASSES; ++j) {
            const int number = j % LANE_CLASSES;
            float total = totals[i][j / LANE_CLASSES][number];
            if (SHARED && number == FULL) total += __shfl_xor_sync(~0u, total, 1);
            if (label_of(number, member) < CLASSES)
                partials[(i * 2 * LANE_CLASSES + j) * 32] = total;
        }
    loss_sum = warp_sum(loss_sum);
    if (lane == 0) sums[warp][0] = loss_sum;
#pragma unroll
    for (int i = 0; i < ROW_CLASSES; ++i) {
        double sum = column_sums[i];
        for (int distance = ROW_LANES; distance < 32; distance *= 2)
            sum += __shfl_xor_sync(~0u, sum, distance);
        const int column = lane + ROW_LANES * i;
        if (lane < ROW_LANES && column < CLASSES) sums[warp][column + 1] = sum;
    }
    __syncthreads();
    if (threadIdx.x <= CLASSES) {
        double sum = 0.0;
        for (int i = 0; i < WARPS; ++i) sum += sums[i][threadIdx.x];
        partial_sums[blockIdx.x * (CLASSES + 1) + threadIdx.x] = sum;
    }
}

// The blocks in order, four threads for 64 sums, and what sum_partials does in linear_pass.cu. The
// last block has loss and db.
extern "C" __global__ void __launch_bounds__(256)
sum_tiles(const float* __restrict__ partials, const double* __restrict__ partial_sums,
          const float* __restrict__ W, const float2* __restrict__ folding,
          const double* __restrict__ strip_sums, float* __restrict__ dW, float* __restrict__ db,
          double* __restrict__ loss, double penalty, int n_blocks) {
    __shared__ double sums[CLASSES + 1];
    __shared__ float quarters[4][64];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool is_last = blockIdx.x == SUMS / 64;
    for (int i = warp; (folding || is_last) && i <= CLASSES; i += 8) {
        double sum = 0.0;
        for (int j = lane; j < n_blocks; j += 32) sum += partial_sums[j * (CLASSES + 1) + i];
        for (int j = lane; i == 0 && strip_sums && j < WARPS * CLASSES; j += 32)
            sum += penalty * strip_sums[2 * j + 1];
        sum = warp_sum(sum);
        if (lane == 0) sums[i] = sum;
    }
    const int place = blockIdx.x * 64 + threadIdx.x % 64, number = place / 32 % LANE_CLASSES;
    const int label = label_of(number, lane % 4);
    const int column = place / (64 * LANE_CLASSES) * 16 + lane / 4 * 2
        + place / (32 * LANE_CLASSES) % 2;
    const bool is_wanted = !is_last && label < CLASSES && column < FEATURES;
    float total = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x / 64; i < n_blocks; i += 4)
        if (is_wanted) total += partials[static_cast<long long>(i) * SUMS + place];
    quarters[threadIdx.x / 64][threadIdx.x % 64] = total;
    __syncthreads();
    if (is_last) {
        if (threadIdx.x == 0) *loss = sums[0];
        else if (threadIdx.x <= CLASSES) db[threadIdx.x - 1] = static_cast<float>(sums[threadIdx.x]);
        return;
    }
    if (!is_wanted || threadIdx.x >= 64) return;
    for (int i = 1; i < 4; ++i) total += quarters[i][threadIdx.x];
    if (folding) {
        const float2 factor_and_shift = folding[column];
        total = total * factor_and_shift.x
            - factor_and_shift.y * static_cast<float>(sums[label + 1])
            + static_cast<float>(2.0 * penalty) * W[column * CLASSES + label];
    }
    dW[column * CLASSES + label] = total;
}

#endif
