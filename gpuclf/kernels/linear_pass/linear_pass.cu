// The softmax or hinge pass of a linear classifier over bytes on tensor cores, in two walks over X:
//
//   scores = (X - 128) W' + b',  loss and G = d loss / d scores    pack_weights, score_rows
//   dW' = (X - 128)^T G,  db' = the column sums of G               multiply_gradients, sum_partials
//
// and, where wanted, the folding of a standardisation into W' and b', its undoing in dW, and the
// penalty, which would otherwise be some fifteen launches.
//
// Bytes. X is read twice, N D each time (2 x 154 MB for 50,000 x 3,072), where float32 products
// read four times that. The scores never leave the registers; G goes through memory as halves, 64
// bytes a row for up to 16 classes; W' is read once by each block of score_rows, from the L2 cache.
// score_rows leaves the last columns (of few rows) or the last rows (of many) in L2, so
// multiply_gradients begins with the last of both: its blocks take groups of rows in turns, so that
// all of them are at the end of X at the same time. single_pass.cu reads X once.
//
// Precision. A byte less 128 is exact as a half. W' and G are split into two halves each, head and
// tail (SPLIT), after a scaling by a power of two that is chosen for every 64 columns of W' and for
// the rows of a block of score_rows: at least 22 bits of the numbers within 2^-16 of the largest,
// and an error below 2^-39 of the largest for the others. Tensor cores cut sums off where float
// addition rounds, an error that grows with the number of steps and has a sign; so they only add up
// 32 columns or 32 rows, and the totals are kept by ordinary float additions. Without SPLIT the
// tails are left out: 11 bits, as TF32 has.
//
// score_rows. Block: 192 rows (64 where those would leave multiprocessors idle), a warp for 32 rows
// of up to 16 classes or 16 rows of more. Bytes are the A operand. The order of the columns within
// a product does not matter as long as W' is packed in the same order, so lane 4 g + t takes 16
// bytes in a row at column 16 t of row g, which are its A fragments of four products: each byte is
// loaded once, by the thread that uses it, 64 bytes of a row by four neighbours. A ring of copies
// in shared memory holds SCORE_STAGES - 1 stages of 64 columns under way, 48 KB for each of the two
// blocks of a multiprocessor, without registers for them. A warp has its rows' scores to itself, so
// that the loss takes no barrier, only shuffles among four lanes.
//
// multiply_gradients. Block: up to 8 strips of 128 columns, a warp each, times a share of the
// groups; the sums of a strip stay in registers for all of them. G^T is the A operand and bytes are
// B: the classes then fill the 16 rows of a fragment, and a fragment of G serves 16 products. B
// wants pairs of rows side by side in a register: lane 4 g + t takes 16 columns of rows t, t + 4, t
// + 8, t + 12, and two byte permutations interleave two rows, cheaper than a transposed load, which
// exists for halves only. Classes beyond 16 take further blocks, which find X in L2.
//
// Instructions of the inner loops for sm_90, 10 classes and SPLIT, counted in what nvcc 13.0 makes
// of them for 2 KB of X, beside the issue slots that a scheduler has while its quarter of a
// multiprocessor receives the 2 KB: 427, if 4.3 TB/s feed 132 multiprocessors at 1.7 GHz. Derived,
// not measured.
//   score_rows, 32 rows x 64 columns: 183. Of these 64 convert, 24 multiply, 32 add up and reset,
//     14 load, 6 copy. Shared memory: 45 KB in and out for each 12 KB of X, 56 % of its rate.
//   multiply_gradients, 16 rows x 128 columns: 185. Of these 80 convert, 32 multiply, 32 add up and
//     reset, 6 load, 5 copy. Shared memory: 164 KB for each 64 KB of X, 38 % of its rate.
//
// Declined by on_gpu.py: other types than bytes and float32, several models, more than
// 64 classes, rows that are not a multiple of 4 bytes, devices before sm_80 (where this file is
// empty). Does not help: few rows, where a block of score_rows walks all columns alone; few
// columns, where G weighs as much as X.
//
// Constants: FEATURES, CLASSES, SPLIT (0, 1), HINGE (0, 1), COPY_BYTES (16, 8, 4: what divides D
// and the address of X), BLOCK_ROWS (64, 192) and SCORE_STAGES (2 or more) of score_rows,
// BLOCK_STRIPS (1 to 8) of multiply_gradients. D is one of them because addresses are then offsets
// within instructions.
//
// check: registers<=232 from=80 FEATURES=3072 CLASSES=10 SPLIT=1 HINGE=0 COPY_BYTES=16 BLOCK_ROWS=192 SCORE_STAGES=5 BLOCK_STRIPS=8
// check: registers<=232 from=80 FEATURES=100 CLASSES=64 SPLIT=1 HINGE=1 COPY_BYTES=4 BLOCK_ROWS=192 SCORE_STAGES=3 BLOCK_STRIPS=1
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <byte_tiles.cuh>
#include <tensor_core.cuh>

constexpr int CHUNK = 64;  // columns of a stage of score_rows, and of a common scale of W'
constexpr int GROUP = 64;  // rows of a stage of multiply_gradients, and of a common scale of G
constexpr int STRIP = 128;  // columns of a warp of multiply_gradients
constexpr int GRADIENT_STAGES = 3;
constexpr int ROW_TILES = CLASSES <= 16 ? 2 : 1;  // of 16 rows for each warp of score_rows
constexpr int WARP_ROWS = 16 * ROW_TILES;
constexpr int SCORE_WARPS = BLOCK_ROWS / WARP_ROWS;
constexpr int SCORE_THREADS = 32 * SCORE_WARPS;
constexpr int TILES = (CLASSES + 7) / 8;  // of 8 columns of scores
// Heads and tails of up to four classes share a tile: columns 0 to 3 and 4 to 7.
constexpr bool SHARED_TILE = SPLIT && CLASSES % 8 >= 1 && CLASSES % 8 <= 4;
constexpr int SLOTS = SPLIT ? 2 * TILES - SHARED_TILE : TILES;  // tiles of heads, tiles of tails
constexpr int WEIGHT_VECTORS = SLOTS * 64 + 1;  // of 16 bytes for a chunk; the last has its scale
constexpr int CLASS_TILES = (CLASSES + 15) / 16;  // of 16 rows of dW^T
constexpr int PARTS = SPLIT ? 2 : 1;
constexpr int CHUNKS = (FEATURES + CHUNK - 1) / CHUNK;
constexpr int STRIPS = (FEATURES + STRIP - 1) / STRIP;
constexpr int GRADIENT_VECTORS = 4 * PARTS * 32;  // of 16 bytes for a group and class tile
constexpr int PITCH = 16 * CLASS_TILES + 8;  // floats of a row of G in shared memory: no conflicts

extern __shared__ uint4 shared_memory[];

// W (D, CLASSES) as B fragments. A block packs a chunk; its vectors go by step / 2, slot and lane,
// and hold the fragments of two steps.
//
// Where folding (D) is given, W acts on standardised pixels, or on pixels as they are if mean and
// scale are null, and W' = W / scale is packed. folding gets 1 / scale and (mean - 128) / scale,
// and chunk_sums (chunks, CLASSES + 1) each chunk's share of (mean - 128) / scale W, which is to be
// taken from b, and of the sum of squares of W. Otherwise mean and scale are null.
extern "C" __global__ void __launch_bounds__(256)
pack_weights(const float* __restrict__ W, const double* __restrict__ mean,
             const double* __restrict__ scale, uint4* __restrict__ packed,
             float2* __restrict__ folding, double* __restrict__ chunk_sums) {
    __shared__ float maxima[8], factors[CHUNK];
    __shared__ double squares[8], shifts[CHUNK];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = blockIdx.x * CHUNK;
    const int n_columns = min(CHUNK, FEATURES - first);
    const float* rows = W + static_cast<long long>(first) * CLASSES;
    if (threadIdx.x < n_columns)
        fold_column(mean, scale, first + threadIdx.x, factors[threadIdx.x], shifts[threadIdx.x],
                    folding);
    __syncthreads();
    float largest = 0.0f;
    double sum = 0.0;
    for (int i = threadIdx.x; i < n_columns * CLASSES; i += blockDim.x) {
        largest = fmaxf(largest, fabsf(rows[i] * factors[i / CLASSES]));
        sum += static_cast<double>(rows[i]) * rows[i];
    }
    largest = warp_max(largest);
    sum = warp_sum(sum);
    if (lane == 0) maxima[warp] = largest, squares[warp] = sum;
    __syncthreads();
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, maxima[i]);
    if (folding) {
        double* to = chunk_sums + blockIdx.x * (CLASSES + 1);
        for (int label = warp; label < CLASSES; label += 8) {
            double moved = 0.0;
            for (int k = lane; k < n_columns; k += 32)
                moved += shifts[k] * rows[k * CLASSES + label];
            moved = warp_sum(moved);
            if (lane == 0) to[label] = moved;
        }
        if (threadIdx.x == 0) {
            for (int i = 1; i < 8; ++i) sum += squares[i];
            to[CLASSES] = sum;
        }
    }
    const int exponent = scale_exponent(largest);
    const float enlargement = scalbnf(1.0f, exponent);

    packed += static_cast<long long>(blockIdx.x) * WEIGHT_VECTORS;
    if (threadIdx.x == 0)
        *reinterpret_cast<float*>(packed + WEIGHT_VECTORS - 1) = scalbnf(1.0f, -exponent);
    for (int i = threadIdx.x; i < SLOTS * 128; i += blockDim.x) {
        const int slot = i / 64 % SLOTS, step = i / 64 / SLOTS * 2 + i % 2;
        const int column = i / 8 % 8, tile = slot % TILES;
        const bool shares = SHARED_TILE && tile == TILES - 1;
        const int label = tile * 8 + (shares ? column % 4 : column);
        const bool is_tail = slot >= TILES || (shares && column >= 4);
        const int k = i / 2 % 4 * 16 + step * 4;
        float values[4];
        for (int j = 0; j < 4; ++j)
            values[j] = label < CLASSES && k + j < n_columns
                            ? rows[(k + j) * CLASSES + label] * factors[k + j] * enlargement : 0.0f;
        uint2 heads, tails;
        split_into_halves(values[0], values[1], heads.x, tails.x);
        split_into_halves(values[2], values[3], heads.y, tails.y);
        reinterpret_cast<uint2*>(packed)[i] = is_tail ? tails : heads;
    }
}

// bias may be null, as zeros, and so may sample_weight, for uniform_weight everywhere; chunk_sums
// are those of pack_weights, or null. partial_sums (blocks, CLASSES + 1) gets the loss and the
// column sums of G; gradients gets G^T as A fragments by group, class tile, step, part and lane;
// unscale what undoes a group's scale.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS, BLOCK_ROWS == 64 ? 1 : ROW_TILES)
score_rows(const unsigned char* __restrict__ X, const uint4* __restrict__ weights_packed,
           const float* __restrict__ bias, const double* __restrict__ chunk_sums,
           const long long* __restrict__ labels, const float* __restrict__ sample_weight,
           uint4* __restrict__ gradients, float* __restrict__ unscale,
           double* __restrict__ partial_sums, float uniform_weight, int n_samples) {
    __shared__ float maxima[SCORE_WARPS];
    __shared__ double losses[SCORE_WARPS];
    __shared__ float column_sums[SCORE_WARPS][CLASSES], folded_bias[CLASSES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const int first_row = blockIdx.x * BLOCK_ROWS + warp * WARP_ROWS;
    constexpr int PIXEL_VECTORS = BLOCK_ROWS * CHUNK / 16;
    constexpr int STAGE_VECTORS = PIXEL_VECTORS + WEIGHT_VECTORS;

    const unsigned char* row_pixels[2 * ROW_TILES];
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) {
        const int row = min(first_row + 8 * i + group, n_samples - 1);
        row_pixels[i] = X + static_cast<long long>(row) * FEATURES + 16 * member;
    }
    const unsigned ring = shared_address(shared_memory) + 16 * threadIdx.x;
    const uint4* chunk_weights = weights_packed + threadIdx.x;
    int chunk_to_copy = 0, place_to_fill = 0;
    auto start_stage = [&] {
        if (chunk_to_copy < CHUNKS) {
            const unsigned to = ring + 16 * STAGE_VECTORS * place_to_fill;
#pragma unroll
            for (int i = 0; i < 2 * ROW_TILES; ++i) {
                copy_pixels<COPY_BYTES, FEATURES % CHUNK != 0>(
                    to + 16 * SCORE_THREADS * i, row_pixels[i],
                    FEATURES - chunk_to_copy * CHUNK - 16 * member);
                row_pixels[i] += CHUNK;
            }
#pragma unroll
            for (int i = 0; i < WEIGHT_VECTORS; i += SCORE_THREADS)
                if (threadIdx.x + i < WEIGHT_VECTORS)
                    copy_async<16>(to + 16 * (PIXEL_VECTORS + i), chunk_weights + i);
            chunk_weights += WEIGHT_VECTORS;
            ++chunk_to_copy;
        }
        close_copy_group();
        place_to_fill = place_to_fill + 1 < SCORE_STAGES ? place_to_fill + 1 : 0;
    };
    for (int i = 0; i < SCORE_STAGES - 1; ++i) start_stage();
    for (int label = warp; label < CLASSES; label += SCORE_WARPS) {
        double moved = 0.0;
        for (int i = lane; chunk_sums && i < CHUNKS; i += 32)
            moved += chunk_sums[i * (CLASSES + 1) + label];
        moved = warp_sum(moved);
        if (lane == 0) folded_bias[label] = static_cast<float>((bias ? bias[label] : 0.0) - moved);
    }

    float scores[ROW_TILES][TILES][4] = {};
    int place = 0;
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        wait_for_copies<SCORE_STAGES - 2>();
        __syncthreads();
        start_stage();
        const uint4* stage = shared_memory + STAGE_VECTORS * place;
        place = place + 1 < SCORE_STAGES ? place + 1 : 0;
        const uint4* weights = stage + PIXEL_VECTORS;
        const float weights_unscale = *reinterpret_cast<const float*>(weights + WEIGHT_VECTORS - 1);
        unsigned pixels[2 * ROW_TILES][4];
#pragma unroll
        for (int i = 0; i < 2 * ROW_TILES; ++i) {
            const uint4 vector = stage[i * SCORE_THREADS + threadIdx.x];
            pixels[i][0] = vector.x, pixels[i][1] = vector.y;
            pixels[i][2] = vector.z, pixels[i][3] = vector.w;
        }
#pragma unroll
        for (int step = 0; step < 4; step += 2) {
            float sums[ROW_TILES][TILES][4] = {};
            unsigned a[2][ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < 2 * ROW_TILES; ++i) {
                halves_from_bytes(pixels[i][step], a[0][i / 2][i % 2], a[0][i / 2][i % 2 + 2]);
                halves_from_bytes(pixels[i][step + 1], a[1][i / 2][i % 2], a[1][i / 2][i % 2 + 2]);
            }
            // Tails first, for they are small; and four slots at a time, so that a product does not
            // wait for the one before.
#pragma unroll
            for (int slot = SLOTS - 1; slot >= 0; slot -= 4) {
                const int last_slot = slot < 4 ? 0 : slot - 3;
                unsigned b[4][2][2];
#pragma unroll
                for (int i = slot; i >= last_slot; --i) {
                    const uint4 vector = weights[(step / 2 * SLOTS + i) * 32 + lane];
                    b[slot - i][0][0] = vector.x, b[slot - i][0][1] = vector.y;
                    b[slot - i][1][0] = vector.z, b[slot - i][1][1] = vector.w;
                }
#pragma unroll
                for (int pair = 0; pair < 2; ++pair)
#pragma unroll
                    for (int i = slot; i >= last_slot; --i)
#pragma unroll
                        for (int tile = 0; tile < ROW_TILES; ++tile)
                            mma_m16n8k16(sums[tile][i % TILES], a[pair][tile], b[slot - i][pair]);
            }
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        scores[i][tile][j] =
                            fmaf(sums[i][tile][j], weights_unscale, scores[i][tile][j]);
        }
    }
    wait_for_copies<0>();
    __syncthreads();  // the ring is free: it takes G

    float* tile_G = reinterpret_cast<float*>(shared_memory) + warp * WARP_ROWS * PITCH;
    float largest = 0.0f;
    double loss_sum = 0.0;
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) {
        const int row = first_row + 8 * i + group;
        const bool exists = row < n_samples;
        const long long label = exists ? labels[row] : 0;
        const float weight = !exists ? 0.0f : sample_weight ? sample_weight[row] : uniform_weight;
        float values[2 * TILES];
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) {
            const int column = j / 2 * 8 + member * 2 + j % 2;
            float score = scores[i / 2][j / 2][i % 2 * 2 + j % 2];
            if (SHARED_TILE && j / 2 == TILES - 1) score += __shfl_xor_sync(~0u, score, 2);
            values[j] = column < CLASSES ? score + folded_bias[column] : 0.0f;
        }
        const float loss = row_loss<4, CLASSES, HINGE>(
            values, label, [&](int j) { return j / 2 * 8 + member * 2 + j % 2; });
        if (exists && member == 0) loss_sum += loss * weight;
        float* row_G = tile_G + (8 * i + group) * PITCH + 2 * member;
#pragma unroll
        for (int j = 0; j < 4 * CLASS_TILES; ++j) {
            const int column = j / 2 * 8 + member * 2 + j % 2;
            const bool has_value = exists && column < CLASSES;
            const float value = has_value ? values[j < 2 * TILES ? j : 0] * weight : 0.0f;
            largest = fmaxf(largest, fabsf(value));
            row_G[j / 2 * 8 + j % 2] = value;
        }
    }
    largest = warp_max(largest);
    loss_sum = warp_sum(loss_sum);
    if (lane == 0) maxima[warp] = largest, losses[warp] = loss_sum;
    __syncwarp();
    for (int column = lane; column < CLASSES; column += 32) {
        float sum = 0.0f;
        for (int row = 0; row < WARP_ROWS; ++row) sum += tile_G[row * PITCH + column];
        column_sums[warp][column] = sum;
    }
    __syncthreads();

    for (int i = 0; i < SCORE_WARPS; ++i) largest = fmaxf(largest, maxima[i]);
    const int exponent = scale_exponent(largest);
    const float scale = scalbnf(1.0f, exponent);
    constexpr int BLOCK_GROUPS = BLOCK_ROWS / GROUP;
    if (threadIdx.x < BLOCK_GROUPS)
        unscale[blockIdx.x * BLOCK_GROUPS + threadIdx.x] = scalbnf(1.0f, -exponent);
    for (int i = threadIdx.x; i <= CLASSES; i += SCORE_THREADS) {
        double sum = 0.0;
        for (int j = 0; j < SCORE_WARPS; ++j) sum += i == 0 ? losses[j] : column_sums[j][i - 1];
        partial_sums[blockIdx.x * (CLASSES + 1) + i] = sum;
    }
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i) {
        const long long step = first_row / 16 + i;
#pragma unroll
        for (int tile = 0; tile < CLASS_TILES; ++tile) {
            const float* from = tile_G + (16 * i + member) * PITCH + 16 * tile + group;
            unsigned heads[4], tails[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* pair = from + j / 2 * 8 * PITCH + j % 2 * 8;
                split_into_halves(pair[0] * scale, pair[4 * PITCH] * scale, heads[j], tails[j]);
            }
            uint4* to = gradients
                + (step / 4 * CLASS_TILES + tile) * GRADIENT_VECTORS + step % 4 * PARTS * 32 + lane;
            to[0] = make_uint4(heads[0], heads[1], heads[2], heads[3]);
            if constexpr (SPLIT) to[32] = make_uint4(tails[0], tails[1], tails[2], tails[3]);
        }
    }
}

// partials gets the sums over a share of the groups of rows, as D fragments by share, class tile,
// strip, product, class below or above 8, and lane. Grid: class tiles, blocks of strips, shares.
extern "C" __global__ void __launch_bounds__(32 * BLOCK_STRIPS, 1)
multiply_gradients(const unsigned char* __restrict__ X, const uint4* __restrict__ gradients,
                   const float* __restrict__ unscale, float2* __restrict__ partials,
                   int n_samples) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const int strip = (gridDim.y - 1 - blockIdx.y) * BLOCK_STRIPS + warp;
    const int share = blockIdx.z, n_shares = gridDim.z;
    const int n_groups = (n_samples + GROUP - 1) / GROUP;
    const int n_own_groups = (n_groups - share + n_shares - 1) / n_shares;
    constexpr int STRIP_VECTORS = GROUP * STRIP / 16;
    constexpr int PIXEL_VECTORS = BLOCK_STRIPS * STRIP_VECTORS;
    constexpr int STAGE_VECTORS = PIXEL_VECTORS + GRADIENT_VECTORS + 1;

    // Column 16 g of row r lies at vector g ^ 2 (r mod 4) of the row, so that the eight lanes that
    // a load serves at once, two g and four r, find their 16 bytes in different banks.
    const int copy_row = lane / 8;
    const int copy_column = strip * STRIP + lane % 8 * 16;
    const int copy_vector = warp * STRIP_VECTORS + copy_row * 8 + (lane % 8 ^ 2 * copy_row);
    const int read_vector = warp * STRIP_VECTORS + member * 8 + (group ^ 2 * member);
    const unsigned ring = shared_address(shared_memory);
    const uint4* tile_gradients = gradients + blockIdx.x * GRADIENT_VECTORS + threadIdx.x;
    int group_to_copy = share + (n_own_groups - 1) * n_shares;
    const unsigned char* pixels_to_copy =
        X + (static_cast<long long>(group_to_copy) * GROUP + copy_row) * FEATURES + copy_column;
    int n_rows_left = n_samples - group_to_copy * GROUP - copy_row;
    int n_groups_to_copy = n_own_groups, place_to_fill = 0;
    auto start_stage = [&] {
        if (n_groups_to_copy > 0) {
            const unsigned stage = ring + 16 * STAGE_VECTORS * place_to_fill;
            const unsigned to = stage + 16 * copy_vector;
#pragma unroll
            for (int i = 0; i < GROUP; i += 4)
                if (i < n_rows_left)
                    copy_pixels<COPY_BYTES, FEATURES % (BLOCK_STRIPS * STRIP) != 0>(
                        to + 128 * i, pixels_to_copy + i * FEATURES, FEATURES - copy_column);
            const uint4* group_gradients = tile_gradients
                + static_cast<long long>(group_to_copy) * CLASS_TILES * GRADIENT_VECTORS;
#pragma unroll
            for (int i = 0; i < GRADIENT_VECTORS; i += 32 * BLOCK_STRIPS)
                if (threadIdx.x + i < GRADIENT_VECTORS)
                    copy_async<16>(stage + 16 * (PIXEL_VECTORS + i + threadIdx.x),
                                   group_gradients + i);
            if (threadIdx.x == 0)
                copy_async<4>(stage + 16 * (PIXEL_VECTORS + GRADIENT_VECTORS),
                              unscale + group_to_copy);
            pixels_to_copy -= static_cast<long long>(n_shares) * (GROUP * FEATURES);
            n_rows_left += n_shares * GROUP, group_to_copy -= n_shares;
            --n_groups_to_copy;
        }
        close_copy_group();
        place_to_fill = place_to_fill + 1 < GRADIENT_STAGES ? place_to_fill + 1 : 0;
    };
    for (int i = 0; i < GRADIENT_STAGES - 1; ++i) start_stage();

    float totals[16][4] = {};
    int place = 0;
    for (int number = 0; number < n_own_groups; ++number) {
        wait_for_copies<GRADIENT_STAGES - 2>();
        __syncthreads();
        start_stage();
        const uint4* stage = shared_memory + STAGE_VECTORS * place;
        place = place + 1 < GRADIENT_STAGES ? place + 1 : 0;
        const uint4* fragments = stage + PIXEL_VECTORS;
        const float group_unscale = *reinterpret_cast<const float*>(fragments + GRADIENT_VECTORS);
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            float sums[16][4] = {};
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                unsigned a[PARTS][4], pixels[4][4];
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const uint4 vector = fragments[(step * PARTS + part) * 32 + lane];
                    a[part][0] = vector.x, a[part][1] = vector.y;
                    a[part][2] = vector.z, a[part][3] = vector.w;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint4 vector = stage[read_vector + (step * 16 + i * 4) * 8];
                    pixels[i][0] = vector.x, pixels[i][1] = vector.y;
                    pixels[i][2] = vector.z, pixels[i][3] = vector.w;
                }
#pragma unroll
                for (int word = 0; word < 4; ++word) {
                    unsigned b[4][2], pairs[2][2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        interleave_bytes(pixels[2 * i][word], pixels[2 * i + 1][word], pairs[i][0],
                                         pairs[i][1]);
                        halves_from_bytes(pairs[i][0], b[0][i], b[1][i]);
                        halves_from_bytes(pairs[i][1], b[2][i], b[3][i]);
                    }
#pragma unroll
                    for (int part = PARTS - 1; part >= 0; --part)  // tails first: they are small
#pragma unroll
                        for (int i = 0; i < 4; ++i) mma_m16n8k16(sums[word * 4 + i], a[part], b[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < 16; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    totals[i][j] = fmaf(sums[i][j], group_unscale, totals[i][j]);
            stage += 32 * STRIP / 16, fragments += 2 * PARTS * 32;
        }
    }

    if (strip >= STRIPS) return;
    const long long tile = static_cast<long long>(share) * CLASS_TILES + blockIdx.x;
    partials += (tile * STRIPS + strip) * 1024 + lane;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        if (blockIdx.x * 16 + i % 2 * 8 + group >= CLASSES) continue;
        const float* own = totals[i / 2] + i % 2 * 2;
        partials[i * 32] = make_float2(own[0], own[1]);
    }
}

// The shares in order, and with them the transposition to dW (D, CLASSES). The last CLASSES + 1
// blocks add up what the blocks of score_rows left: the loss and db.
//
// With folding, dW and the loss are those of W as pack_weights was given it, with its penalty:
// dW = dW' / scale - (mean - 128) / scale db + 2 penalty W. Each block then adds up db itself.
extern "C" __global__ void __launch_bounds__(256)
sum_partials(const float2* __restrict__ partials, const double* __restrict__ partial_sums,
             const float* __restrict__ W, const float2* __restrict__ folding,
             const double* __restrict__ chunk_sums, float* __restrict__ dW,
             float* __restrict__ db, double* __restrict__ loss, double penalty, int n_shares,
             int n_score_blocks) {
    constexpr int PAIRS = CLASS_TILES * STRIPS * 1024, PAIR_BLOCKS = PAIRS / 256;
    __shared__ double sums[8];
    __shared__ float column_sums[16];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (blockIdx.x >= PAIR_BLOCKS) {
        const int quantity = blockIdx.x - PAIR_BLOCKS;
        double sum = 0.0;
        for (int i = threadIdx.x; i < n_score_blocks; i += 256)
            sum += partial_sums[i * (CLASSES + 1) + quantity];
        for (int i = threadIdx.x; quantity == 0 && folding && i < CHUNKS; i += 256)
            sum += penalty * chunk_sums[i * (CLASSES + 1) + CLASSES];
        sum = warp_sum(sum);
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        if (threadIdx.x != 0) return;
        for (int i = 1; i < 8; ++i) sum += sums[i];
        if (quantity == 0) *loss = sum;
        else db[quantity - 1] = static_cast<float>(sum);
        return;
    }
    const int pair = blockIdx.x * 256 + threadIdx.x;
    const int strip = pair / 1024 % STRIPS, tile = pair / 1024 / STRIPS;
    const int label_in_tile = pair / 32 % 2 * 8 + lane / 4, label = tile * 16 + label_in_tile;
    if (folding) {
        for (int i = warp; i < 16 && tile * 16 + i < CLASSES; i += 8) {
            double sum = 0.0;
            for (int j = lane; j < n_score_blocks; j += 32)
                sum += partial_sums[j * (CLASSES + 1) + tile * 16 + i + 1];
            sum = warp_sum(sum);
            if (lane == 0) column_sums[i] = static_cast<float>(sum);
        }
        __syncthreads();
    }
    if (label >= CLASSES) return;
    float totals[2] = {};
#pragma unroll 8
    for (int share = 0; share < n_shares; ++share) {
        const float2 partial = partials[static_cast<long long>(share) * PAIRS + pair];
        totals[0] += partial.x, totals[1] += partial.y;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int column = strip * STRIP + lane % 4 * 32 + i * 16 + pair / 64 % 16;
        if (column >= FEATURES) break;
        float total = totals[i];
        if (folding) {
            const float2 factor_and_shift = folding[column];
            total = total * factor_and_shift.x - factor_and_shift.y * column_sums[label_in_tile]
                + static_cast<float>(2.0 * penalty) * W[column * CLASSES + label];
        }
        dW[column * CLASSES + label] = total;
    }
}

#endif
