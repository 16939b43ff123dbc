// The full pass of the two-layer net over bytes on tensor cores: two walks over X, the second layer
// between them.
//
//   Z = (X - 128) W1' + b1',  H = relu(Z)               pack_weights, project_rows
//   loss, dS = d loss / d scores, dH = dS W2^T [H > 0]    second_layer
//   dW1' = (X - 128)^T dH                                 multiply_gradients
//   dW2 = H^T dS, db1, db2, the loss                      second_layer, sum_groups
//   dW1 from dW1', the penalty                            sum_partials
//
// W1' = W1 / scale and b1' = b1 - ((mean - 128) / scale) W1 fold the standardisation.
//
// Bytes. X is read twice as it is stored (2 x 154 MB for 50,000 x 3,072), where products of floats
// read, and first write, four times that. The hidden units go through memory once as floats and
// their gradients as two halves each: 4 bytes a unit and row, twice, 2 x 11 MB for 50 units, which
// largely stay in L2. Scores never leave registers. W1' as fragments is read from L2 by each block
// of project_rows. Up to 64 hidden units are done at a time; more units read X again, from L2 where
// the blocks beside each other run together.
//
// Precision. As in linear_pass.cu, with a scale for every 64 columns of W1' and 64 rows of dH by up
// to 64 units. The second layer, 1 part in 200 of the arithmetic, is ordinary float32.
//
// project_rows. Block: 192 rows (64 where those would leave multiprocessors idle) of up to 64
// units, 32 rows a warp. Fragments and copies are those of score_rows in linear_pass.cu.
//
// second_layer. Block: 64 rows, four lanes a row, which share the hidden units; the scores are then
// in all four. dH and dW2 go by up to 64 units through shared memory, where dH is packed.
//
// multiply_gradients. Block: up to 8 strips of 64 columns, a warp each, by up to 64 units, over a
// share of the rows; the sums stay in registers. Two rows of bytes, interleaved by permutations,
// are the A operand; dH is B, in tiles of 8 units, so that 50 units cost 56 and not 64.
//
// Instructions of the inner loops for sm_90, 64 units and SPLIT, counted in the source. Both walks
// make 128 products (m16n8k16) of 2 KB of X (32 rows x 64 columns); these take 512 cycles of a
// scheduler at the data sheet's rate for wgmma, of which mma.sync is said to reach some 60 %.
// Derived, not measured.
//   project_rows: 64 convert, 128 add up, 32 loads of 16 bytes a lane and 8 of 8. Shared memory
//     takes 640 cycles for the four schedulers.
//   multiply_gradients: 80 convert, 128 add up, 16 loads of 16 bytes and 8 of 8: 320 cycles.
// At 50 units, 2 x 34 GFLOP of products of halves for 50,000 x 3,072: compute, not bytes, is the
// limit from some 20 units on.
//
// Declined by on_gpu.py: samples other than bytes on the device (floats, streamed), parameters
// other than float32, several models, factors of hidden units (dropout), more than 512 units or 32
// classes, rows that are not a multiple of 4 bytes, few rows (fewer than 16 a unit), devices before
// sm_80 (where this file is empty), and second layers beyond a block's shared memory (99 KB on
// sm_86 and sm_89: with 32 classes, from 417 units on). Does not help: few rows, where a block
// walks all columns alone; mini-batches, for which two_layer_step.cu is made; and at many hidden
// units no more than the products are faster than float32's, since X is then read from L2 often.
//
// Constants: FEATURES, HIDDEN, CLASSES, SPLIT (0, 1), COPY_BYTES (16, 8, 4: what divides D and the
// address of X), BLOCK_ROWS (64, 192) and PROJECT_STAGES (2 or more) of project_rows, BLOCK_STRIPS
// (1 to 8) of multiply_gradients.
//
// check: registers<=255 from=80 FEATURES=3072 HIDDEN=50 CLASSES=10 SPLIT=1 COPY_BYTES=16 BLOCK_ROWS=192 PROJECT_STAGES=4 BLOCK_STRIPS=8
// check: registers<=255 from=80 FEATURES=3072 HIDDEN=128 CLASSES=10 SPLIT=1 COPY_BYTES=16 BLOCK_ROWS=192 PROJECT_STAGES=3 BLOCK_STRIPS=8
// check: registers<=255 from=80 FEATURES=100 HIDDEN=9 CLASSES=32 SPLIT=0 COPY_BYTES=4 BLOCK_ROWS=64 PROJECT_STAGES=2 BLOCK_STRIPS=2
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <byte_tiles.cuh>
#include <tensor_core.cuh>

constexpr int CHUNK = 64;  // columns of a stage of project_rows, and of a common scale of W1'
constexpr int GROUP = 64;  // rows of second_layer and of a stage of multiply_gradients
constexpr int STRIP = 64;  // columns of a warp of multiply_gradients
constexpr int GRADIENT_STAGES = 3;
constexpr int ROW_TILES = 2;  // of 16 rows for each warp of project_rows
constexpr int PARTS = SPLIT ? 2 : 1;
constexpr int MAX_TILES = 8;  // of 8 hidden units, of a block
constexpr int ALL_TILES = (HIDDEN + 7) / 8;
constexpr int PITCH = 8 * ALL_TILES;         // of a row of H and of a row of dW1'
constexpr int UNIT_BLOCKS = (ALL_TILES + MAX_TILES - 1) / MAX_TILES;
constexpr int TILES = (ALL_TILES + UNIT_BLOCKS - 1) / UNIT_BLOCKS;
constexpr int UNITS = 8 * TILES;  // of a block
constexpr int CHUNKS = (FEATURES + CHUNK - 1) / CHUNK;
// Of 16 bytes, for a chunk or group; the last has what undoes the scale.
constexpr int VECTORS = PARTS * TILES * 64 + 1;
constexpr int CLASS_PITCH = CLASSES | 1;                // odd: fewer conflicts
constexpr int UNIT_PITCH = (UNITS + 23) / 32 * 32 + 8;  // 8 more than the banks: none
constexpr int SMALL_SUMS = HIDDEN * CLASSES + HIDDEN + CLASSES;  // dW2, db1, db2
constexpr int MAX_CLASSES = 32;
static_assert(CLASSES <= MAX_CLASSES);
// Blocks of project_rows that a multiprocessor holds: of 100 KB of shared memory, one needs most.
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int ROW_BLOCKS = 1;
#else
constexpr int ROW_BLOCKS = BLOCK_ROWS == 64 ? 1 : 2;
#endif

extern __shared__ uint4 shared_memory[];

// W1 (D, HIDDEN) as B fragments. Grid: chunks, blocks of units. The vectors go by step / 2, part,
// tile and lane, and hold the fragments of two steps. mean and scale may be null, for bytes as they
// are. folding (D) gets 1 / scale and (mean - 128) / scale, moved (chunks, HIDDEN) each chunk's
// share of what is to be taken from b1, and squares (chunks, blocks) that of the penalty.
extern "C" __global__ void __launch_bounds__(256)
pack_weights(const float* __restrict__ W1, const double* __restrict__ mean,
             const double* __restrict__ scale, uint4* __restrict__ packed,
             float2* __restrict__ folding, double* __restrict__ moved,
             double* __restrict__ squares) {
    __shared__ float maxima[8], factors[CHUNK];
    __shared__ double sums[8], shifts[CHUNK], moved_by[4][UNITS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = blockIdx.x * CHUNK, first_unit = blockIdx.y * UNITS;
    const int n_columns = min(CHUNK, FEATURES - first), n_units = min(UNITS, HIDDEN - first_unit);
    const float* rows = W1 + static_cast<long long>(first) * HIDDEN + first_unit;
    if (threadIdx.x < n_columns)
        fold_column(mean, scale, first + threadIdx.x, factors[threadIdx.x], shifts[threadIdx.x],
                    blockIdx.y == 0 ? folding : nullptr);
    __syncthreads();  // factors and shifts are there
    // A thread for a unit and a quarter of the columns.
    const int unit = threadIdx.x % 64, quarter = threadIdx.x / 64;
    float largest = 0.0f;
    double sum = 0.0, shifted = 0.0;
    if (unit < n_units)
#pragma unroll 4
        for (int k = quarter; k < n_columns; k += 4) {
            const float w = rows[k * HIDDEN + unit];
            largest = fmaxf(largest, fabsf(w * factors[k]));
            sum += static_cast<double>(w) * w;
            shifted += shifts[k] * w;
        }
    if (unit < UNITS) moved_by[quarter][unit] = shifted;
    largest = warp_max(largest);
    sum = warp_sum(sum);
    if (lane == 0) maxima[warp] = largest, sums[warp] = sum;
    __syncthreads();  // the warps' maxima and sums are there
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, maxima[i]);
    if (threadIdx.x < n_units) {
        for (int i = 1; i < 4; ++i) shifted += moved_by[i][unit];
        moved[blockIdx.x * HIDDEN + first_unit + unit] = shifted;
    }
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; ++i) sum += sums[i];
        squares[blockIdx.x * UNIT_BLOCKS + blockIdx.y] = sum;
    }
    const int exponent = scale_exponent(largest);
    const float enlargement = scalbnf(1.0f, exponent);

    packed += (static_cast<long long>(blockIdx.y) * CHUNKS + blockIdx.x) * VECTORS;
    if (threadIdx.x == 0)
        *reinterpret_cast<float*>(packed + VECTORS - 1) = scalbnf(1.0f, -exponent);
    for (int i = threadIdx.x; i < TILES * 128; i += 256) {
        const int step = i / 64 / TILES * 2 + i % 2, tile = i / 64 % TILES;
        const int column = tile * 8 + i / 8 % 8, k = i / 2 % 4 * 16 + step * 4;
        float values[4];
        for (int j = 0; j < 4; ++j)
            values[j] = column < n_units && k + j < n_columns
                            ? rows[(k + j) * HIDDEN + column] * factors[k + j] * enlargement : 0.0f;
        uint2 heads, tails;
        split_into_halves(values[0], values[1], heads.x, tails.x);
        split_into_halves(values[2], values[3], heads.y, tails.y);
        const int place = step / 2 * PARTS * TILES * 64 + i % (64 * TILES);
        reinterpret_cast<uint2*>(packed)[place] = heads;
        if constexpr (SPLIT) reinterpret_cast<uint2*>(packed)[place + TILES * 64] = tails;
    }
}

// hidden (N, PITCH) gets the hidden units, and zeros beyond them. Grid: blocks of units, then of
// rows, along x, which alone has room for the blocks of very many rows.
extern "C" __global__ void __launch_bounds__(BLOCK_ROWS, ROW_BLOCKS)
project_rows(const unsigned char* __restrict__ X, const uint4* __restrict__ packed,
             const float* __restrict__ b1, const double* __restrict__ moved,
             float* __restrict__ hidden, int n_samples) {
    __shared__ float folded_bias[UNITS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const int unit_block = blockIdx.x % UNIT_BLOCKS, row_block = blockIdx.x / UNIT_BLOCKS;
    const int first_row = row_block * BLOCK_ROWS + warp * 32, first_unit = unit_block * UNITS;
    constexpr int PIXEL_VECTORS = BLOCK_ROWS * CHUNK / 16;
    constexpr int STAGE_VECTORS = PIXEL_VECTORS + VECTORS;

    const unsigned char* first_pixels =
        X + static_cast<long long>(first_row + group) * FEATURES + 16 * member;
    const unsigned ring = shared_address(shared_memory) + 16 * threadIdx.x;
    const uint4* first_weights =
        packed + static_cast<long long>(unit_block) * CHUNKS * VECTORS + threadIdx.x;
    auto start_stage = [&](int chunk, int place) {
        if (chunk < CHUNKS) {
            const unsigned to = ring + 16 * STAGE_VECTORS * place;
#pragma unroll
            for (int i = 0; i < 2 * ROW_TILES; ++i)
                if (first_row + 8 * i + group < n_samples)
                    copy_pixels<COPY_BYTES, FEATURES % CHUNK != 0>(
                        to + 16 * BLOCK_ROWS * i, first_pixels + 8 * i * FEATURES + chunk * CHUNK,
                        FEATURES - chunk * CHUNK - 16 * member);
#pragma unroll 1  // saves registers
            for (int i = 0; i < VECTORS; i += BLOCK_ROWS)
                if (threadIdx.x + i < VECTORS)
                    copy_async<16>(to + 16 * (PIXEL_VECTORS + i),
                                   first_weights + chunk * VECTORS + i);
        }
        close_copy_group();
    };
    for (int i = 0; i < PROJECT_STAGES - 1; ++i) start_stage(i, i);
    for (int unit = threadIdx.x; unit < UNITS; unit += BLOCK_ROWS) {
        double shifted = 0.0;
        if (first_unit + unit < HIDDEN) {
#pragma unroll 8
            for (int i = 0; i < CHUNKS; ++i) shifted += moved[i * HIDDEN + first_unit + unit];
            shifted = b1[first_unit + unit] - shifted;
        }
        folded_bias[unit] = static_cast<float>(shifted);
    }

    float totals[ROW_TILES][TILES][4] = {};
    int place = 0;
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        wait_for_copies<PROJECT_STAGES - 2>();
        __syncthreads();
        start_stage(chunk + PROJECT_STAGES - 1, place == 0 ? PROJECT_STAGES - 1 : place - 1);
        const uint4* stage = shared_memory + STAGE_VECTORS * place;
        place = place + 1 < PROJECT_STAGES ? place + 1 : 0;
        const uint4* weights = stage + PIXEL_VECTORS + lane;
        const float weights_unscale =
            *reinterpret_cast<const float*>(stage + PIXEL_VECTORS + VECTORS - 1);
#pragma unroll 1
        for (int pair = 0; pair < 2; ++pair) {
            unsigned a[2][ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < 2 * ROW_TILES; ++i) {
                const uint2 pixels = reinterpret_cast<const uint2*>(
                    stage + i * BLOCK_ROWS + threadIdx.x)[pair];
                halves_from_bytes(pixels.x, a[0][i / 2][i % 2], a[0][i / 2][i % 2 + 2]);
                halves_from_bytes(pixels.y, a[1][i / 2][i % 2], a[1][i / 2][i % 2 + 2]);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                float sums[ROW_TILES][4] = {};
#pragma unroll
                for (int part = PARTS - 1; part >= 0; --part) {  // tails first: they are small
                    const uint4 vector = weights[((pair * PARTS + part) * TILES + tile) * 32];
                    const unsigned b[2][2] = {{vector.x, vector.y}, {vector.z, vector.w}};
#pragma unroll
                    for (int step = 0; step < 2; ++step)
#pragma unroll
                        for (int i = 0; i < ROW_TILES; ++i)
                            mma_m16n8k16(sums[i], a[step][i], b[step]);
                }
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        totals[i][tile][j] =
                            fmaf(sums[i][j], weights_unscale, totals[i][tile][j]);
            }
        }
    }
    if constexpr (CHUNKS < 2) __syncthreads();  // the bias is there

#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) {
        const int row = first_row + 8 * i + group;
        if (row >= n_samples) break;
        float* row_hidden = hidden + static_cast<long long>(row) * PITCH + first_unit + 2 * member;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            if (first_unit + 8 * tile >= PITCH) break;
            float values[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float z = totals[i / 2][tile][i % 2 * 2 + j]
                    + folded_bias[8 * tile + 2 * member + j];
                values[j] = z < 0.0f ? 0.0f : z;  // keeps NaN
            }
            *reinterpret_cast<float2*>(row_hidden + 8 * tile) = make_float2(values[0], values[1]);
        }
    }
}

// sample_weight may be null, for uniform_weight everywhere. gradients gets dH as B fragments by
// group, block of units, tile, two steps, part and lane; small_sums (groups, SMALL_SUMS) and losses
// (groups) the sums over a group.
extern "C" __global__ void __launch_bounds__(256, CLASSES > 16 ? 1 : 2)
second_layer(const float* __restrict__ hidden, const long long* __restrict__ labels,
             const float* __restrict__ sample_weight, const float* __restrict__ W2,
             const float* __restrict__ b2, uint4* __restrict__ gradients,
             float* __restrict__ small_sums, double* __restrict__ losses, float uniform_weight,
             int n_samples) {
    __shared__ float maxima[8];
    __shared__ double losses_of_warps[8];
    float* weights = reinterpret_cast<float*>(shared_memory);  // W2, rows of CLASS_PITCH
    float* tile_hidden = weights + PITCH * CLASS_PITCH;        // rows of UNIT_PITCH
    float* tile_dhidden = tile_hidden + GROUP * UNIT_PITCH;
    float* tile_dscores = tile_dhidden + GROUP * UNIT_PITCH;  // rows of CLASS_PITCH
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = threadIdx.x / 4, member = threadIdx.x % 4;
    const int sample = blockIdx.x * GROUP + row;
    const bool exists = sample < n_samples;
    const float4* row_hidden = reinterpret_cast<const float4*>(hidden)
        + static_cast<long long>(exists ? sample : n_samples - 1) * (PITCH / 4);

    for (int i = threadIdx.x; i < PITCH * CLASSES; i += 256)
        weights[i / CLASSES * CLASS_PITCH + i % CLASSES] = i < HIDDEN * CLASSES ? W2[i] : 0.0f;
    __syncthreads();  // W2 is there

    float scores[CLASSES] = {};
    for (int i = member; i < PITCH / 4; i += 4) {
        const float4 vector = row_hidden[i];
        const float units[4] = {vector.x, vector.y, vector.z, vector.w};
        const float* w = weights + 4 * i * CLASS_PITCH;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int c = 0; c < CLASSES; ++c)
                scores[c] = fmaf(units[j], w[j * CLASS_PITCH + c], scores[c]);
    }
    const long long label = exists ? labels[sample] : 0;
    const float weight = !exists ? 0.0f : sample_weight ? sample_weight[sample] : uniform_weight;
    float largest = -__int_as_float(0x7f800000), at_label = 0.0f, total = 0.0f;
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        scores[c] = row_sum<4>(scores[c]) + b2[c];
        largest = fmaxf(largest, scores[c]);
        if (c == label) at_label = scores[c];
    }
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        const float exponential = expf(scores[c] - largest);
        scores[c] = exponential;
        total += exponential;
    }
    float loss = logf(total) - (at_label - largest);
    // Nobody has looked at the labels: a wrong one must not give a plausible loss.
    if (label < 0 || label >= CLASSES) loss = nanf("");
    const float reciprocal = 1.0f / total;
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        scores[c] = (scores[c] * reciprocal - (c == label ? 1.0f : 0.0f)) * weight;
        if (c % 4 == member) tile_dscores[row * CLASS_PITCH + c] = scores[c];
    }
    const double loss_sum = warp_sum(exists && member == 0 ? double{loss} * weight : 0.0);
    if (lane == 0) losses_of_warps[warp] = loss_sum;

    float* group_sums = small_sums + static_cast<long long>(blockIdx.x) * SMALL_SUMS;
    for (int block = 0; block < UNIT_BLOCKS; ++block) {
        const int first_unit = block * UNITS;
        largest = 0.0f;
#pragma unroll
        for (int start = 0; start < UNITS; start += 16) {
            const int place = start + 4 * member, unit = first_unit + place;
            if (place >= UNITS) break;
            float units[4] = {}, gradient[4] = {};
            if (unit < PITCH) {
                const float4 vector = row_hidden[unit / 4];
                units[0] = vector.x, units[1] = vector.y, units[2] = vector.z, units[3] = vector.w;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float* w = weights + (unit + j) * CLASS_PITCH;
#pragma unroll
                    for (int c = 0; c < CLASSES; ++c)
                        gradient[j] = fmaf(scores[c], w[c], gradient[j]);
                    gradient[j] *= units[j] > 0.0f ? 1.0f : 0.0f;  // a product, as it keeps NaN
                    largest = fmaxf(largest, fabsf(gradient[j]));
                }
            }
            const int to = row * UNIT_PITCH + place;
            *reinterpret_cast<float4*>(tile_hidden + to) =
                make_float4(units[0], units[1], units[2], units[3]);
            *reinterpret_cast<float4*>(tile_dhidden + to) =
                make_float4(gradient[0], gradient[1], gradient[2], gradient[3]);
        }
        largest = warp_max(largest);
        if (lane == 0) maxima[warp] = largest;
        __syncthreads();  // the tiles and maxima are there
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, maxima[i]);
        const int exponent = scale_exponent(largest);
        const float enlargement = scalbnf(1.0f, exponent);
        uint4* packed =
            gradients + (static_cast<long long>(blockIdx.x) * UNIT_BLOCKS + block) * VECTORS;
        if (threadIdx.x == 0)
            *reinterpret_cast<float*>(packed + VECTORS - 1) = scalbnf(1.0f, -exponent);
        for (int i = threadIdx.x; i < TILES * 64; i += 256) {
            const int group = i / 4 % 8, pair = i / 32 % 2, tile = i / 64;
            const float* from = tile_dhidden + (32 * pair + i % 4) * UNIT_PITCH + 8 * tile + group;
            unsigned heads[4], tails[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                split_into_halves(from[8 * j * UNIT_PITCH] * enlargement,
                                  from[(8 * j + 4) * UNIT_PITCH] * enlargement, heads[j], tails[j]);
            uint4* to = packed + i / 32 * PARTS * 32 + i % 32;
            to[0] = make_uint4(heads[0], heads[1], heads[2], heads[3]);
            if constexpr (SPLIT) to[32] = make_uint4(tails[0], tails[1], tails[2], tails[3]);
        }
        // Four lanes a unit again, for a quarter of the rows each.
        if (row < UNITS) {
            const int unit = first_unit + row;
            float sums[CLASSES] = {}, db = 0.0f;
#pragma unroll 4
            for (int i = member; i < GROUP; i += 4) {
                const float one = tile_hidden[i * UNIT_PITCH + row];
                db += tile_dhidden[i * UNIT_PITCH + row];
#pragma unroll
                for (int c = 0; c < CLASSES; ++c)
                    sums[c] = fmaf(one, tile_dscores[i * CLASS_PITCH + c], sums[c]);
            }
            db = row_sum<4>(db);
            if (member == 0 && unit < HIDDEN) group_sums[HIDDEN * CLASSES + unit] = db;
#pragma unroll
            for (int c = 0; c < CLASSES; ++c) {
                const float sum = row_sum<4>(sums[c]);
                if (c % 4 == member && unit < HIDDEN) group_sums[unit * CLASSES + c] = sum;
            }
        }
        if (block + 1 < UNIT_BLOCKS) __syncthreads();  // the tiles are free
    }
    if (threadIdx.x < CLASSES) {
        float sum = 0.0f;
        for (int i = 0; i < GROUP; ++i) sum += tile_dscores[i * CLASS_PITCH + threadIdx.x];
        group_sums[HIDDEN * CLASSES + HIDDEN + threadIdx.x] = sum;
    }
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (int i = 0; i < 8; ++i) sum += losses_of_warps[i];
        losses[blockIdx.x] = sum;
    }
}

// partials (shares, D, PITCH) gets the sums over a share of the groups. Grid: blocks of units,
// blocks of strips, shares.
extern "C" __global__ void __launch_bounds__(32 * BLOCK_STRIPS, 1)
multiply_gradients(const unsigned char* __restrict__ X, const uint4* __restrict__ gradients,
                   float* __restrict__ partials, int n_samples) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    // From the last rows on: project_rows has left those in L2.
    const int share = gridDim.z - 1 - blockIdx.z;
    const int n_groups = (n_samples + GROUP - 1) / GROUP;
    const int first = static_cast<long long>(n_groups) * share / gridDim.z;
    const int last = static_cast<long long>(n_groups) * (share + 1) / gridDim.z - 1;
    const int first_column = (blockIdx.y * BLOCK_STRIPS + warp) * STRIP;
    constexpr int STRIP_VECTORS = GROUP * STRIP / 16;
    constexpr int PIXEL_VECTORS = BLOCK_STRIPS * STRIP_VECTORS;
    constexpr int STAGE_VECTORS = PIXEL_VECTORS + VECTORS;

    const int copy_row = lane / 4, copy_column = first_column + 16 * member;
    const unsigned ring = shared_address(shared_memory);
    gradients += blockIdx.x * VECTORS + threadIdx.x;
    X += copy_row * FEATURES + copy_column;
    auto start_stage = [&](int number, int place) {
        if (number >= first) {
            const unsigned stage = ring + 16 * STAGE_VECTORS * place;
            const unsigned to = stage + 16 * (warp * STRIP_VECTORS + lane);
            const unsigned char* pixels = X + static_cast<long long>(number) * GROUP * FEATURES;
            const uint4* fragments =
                gradients + static_cast<long long>(number) * UNIT_BLOCKS * VECTORS;
#pragma unroll
            for (int i = 0; i < GROUP; i += 8)
                if (number * GROUP + copy_row + i < n_samples)
                    copy_pixels<COPY_BYTES, FEATURES % (BLOCK_STRIPS * STRIP) != 0>(
                        to + STRIP * i, pixels + i * FEATURES, FEATURES - copy_column);
#pragma unroll
            for (int i = 0; i < VECTORS; i += 32 * BLOCK_STRIPS)
                if (threadIdx.x + i < VECTORS)
                    copy_async<16>(stage + 16 * (PIXEL_VECTORS + i + threadIdx.x),
                                   fragments + i);
        }
        close_copy_group();
    };
    for (int i = 0; i < GRADIENT_STAGES - 1; ++i) start_stage(last - i, i);

    float totals[TILES][4][4] = {};
    int place = 0;
    for (int number = last; number >= first; --number) {
        wait_for_copies<GRADIENT_STAGES - 2>();
        __syncthreads();
        start_stage(number - GRADIENT_STAGES + 1, place == 0 ? GRADIENT_STAGES - 1 : place - 1);
        const uint4* stage = shared_memory + STAGE_VECTORS * place;
        place = place + 1 < GRADIENT_STAGES ? place + 1 : 0;
        const uint4* fragments = stage + PIXEL_VECTORS + lane;
        const float group_unscale =
            *reinterpret_cast<const float*>(stage + PIXEL_VECTORS + VECTORS - 1);
        // Lane 4 g + t has columns 8 g to 8 g + 7 of rows t, t + 4, and so on. The rows of a strip
        // lie next to each other, so that a load takes 256 bytes without gaps.
        const uint2* pixels =
            reinterpret_cast<const uint2*>(stage + warp * STRIP_VECTORS) + 8 * member + group;
#pragma unroll 1
        for (int pair = 0; pair < 2; ++pair) {
            unsigned a[2][4][4];
#pragma unroll
            for (int step = 0; step < 2; ++step)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint2 one = pixels[(32 * pair + 16 * step + 8 * i) * 8];
                    const uint2 other = pixels[(32 * pair + 16 * step + 8 * i + 4) * 8];
#pragma unroll
                    for (int word = 0; word < 2; ++word) {
                        unsigned lower, upper;
                        interleave_bytes(word ? one.y : one.x, word ? other.y : other.x, lower,
                                         upper);
                        halves_from_bytes(lower, a[step][2 * word][2 * i],
                                          a[step][2 * word][2 * i + 1]);
                        halves_from_bytes(upper, a[step][2 * word + 1][2 * i],
                                          a[step][2 * word + 1][2 * i + 1]);
                    }
                }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                float sums[4][4] = {};
#pragma unroll
                for (int part = PARTS - 1; part >= 0; --part) {  // tails first: they are small
                    const uint4 vector = fragments[((2 * tile + pair) * PARTS + part) * 32];
                    const unsigned b[2][2] = {{vector.x, vector.y}, {vector.z, vector.w}};
#pragma unroll
                    for (int step = 0; step < 2; ++step)
#pragma unroll
                        for (int i = 0; i < 4; ++i) mma_m16n8k16(sums[i], a[step][i], b[step]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        totals[tile][i][j] = fmaf(sums[i][j], group_unscale, totals[tile][i][j]);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int column = first_column + 8 * group + i;
        if (column >= FEATURES) break;
        float* to = partials + (static_cast<long long>(share) * FEATURES + column) * PITCH
            + blockIdx.x * UNITS + 2 * member;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            if (blockIdx.x * UNITS + 8 * tile >= PITCH) break;
            *reinterpret_cast<float2*>(to + 8 * tile) = make_float2(
                totals[tile][i / 2][i % 2 * 2], totals[tile][i / 2][i % 2 * 2 + 1]);
        }
    }
}

// The groups in order: 32 numbers of dW2, db1 and db2 a block, and in the last block the loss.
extern "C" __global__ void __launch_bounds__(1024)
sum_groups(const float* __restrict__ small_sums, const double* __restrict__ losses,
           const double* __restrict__ squares, const float* __restrict__ W2,
           float* __restrict__ dW2, float* __restrict__ db1, float* __restrict__ db2,
           double* __restrict__ loss, double penalty, int n_groups) {
    __shared__ double sums[32][33];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (blockIdx.x == gridDim.x - 1) {
        double sum = 0.0, of_weights = 0.0;
        for (int i = threadIdx.x; i < n_groups; i += 1024) sum += losses[i];
        for (int i = threadIdx.x; i < CHUNKS * UNIT_BLOCKS; i += 1024) of_weights += squares[i];
        for (int i = threadIdx.x; i < HIDDEN * CLASSES; i += 1024)
            of_weights += static_cast<double>(W2[i]) * W2[i];
        sum = warp_sum(sum + penalty * of_weights);
        if (lane == 0) sums[0][warp] = sum;
        __syncthreads();
        if (warp != 0) return;
        sum = warp_sum(sums[0][lane]);
        if (lane == 0) *loss = sum;
        return;
    }
    const int number = blockIdx.x * 32 + lane;
    double sum = 0.0;
    if (number < SMALL_SUMS)
#pragma unroll 8
        for (int i = warp; i < n_groups; i += 32)
            sum += small_sums[static_cast<long long>(i) * SMALL_SUMS + number];
    sums[lane][warp] = sum;
    __syncthreads();  // the warps' sums are there
    // A warp for a number.
    sum = warp_sum(sums[warp][lane]);
    const int place = blockIdx.x * 32 + warp;
    if (lane != 0 || place >= SMALL_SUMS) return;
    const float value = static_cast<float>(sum);
    if (place < HIDDEN * CLASSES)
        dW2[place] = value + static_cast<float>(2.0 * penalty) * W2[place];
    else if (place < HIDDEN * CLASSES + HIDDEN) db1[place - HIDDEN * CLASSES] = value;
    else db2[place - HIDDEN * CLASSES - HIDDEN] = value;
}

// The shares in order: dW1 = dW1' / scale - (mean - 128) / scale db1 + 2 penalty W1.
extern "C" __global__ void __launch_bounds__(256)
sum_partials(const float* __restrict__ partials, const float* __restrict__ W1,
             const float2* __restrict__ folding, const float* __restrict__ db1,
             float* __restrict__ dW1, double penalty, int n_shares) {
    const int number = blockIdx.x * 256 + threadIdx.x;
    const int column = number / PITCH, unit = number % PITCH;
    if (column >= FEATURES || unit >= HIDDEN) return;
    float total = 0.0f;
#pragma unroll 8
    for (int share = 0; share < n_shares; ++share)
        total += partials[static_cast<long long>(share) * FEATURES * PITCH + number];
    const float2 factor_and_shift = folding[column];
    const int place = column * HIDDEN + unit;
    dW1[place] = total * factor_and_shift.x - factor_and_shift.y * db1[unit]
        + static_cast<float>(2.0 * penalty) * W1[place];
}

#endif
