// What a step of mini-batch SGD over bytes is made of, whatever follows the model's first product:
//
//   shares of Z = (X[batch] - 128) W' + b', squares of W    project_batch
//   loss of a row and its gradient, penalty                 row_loss, sum_of_squares
//   dW' to dW, momentum, new W and b                        update_first_layer
//
// and sum_losses once an epoch. W' = W / scale and b' = -((mean - 128) / scale) W are made where
// they are used; the standardised samples, W', the batch and dW are never written. An entry of the
// epoch's order that is negative, ~i, asks for image i mirrored: words of four pixels are read from
// the other end of their line, and their bytes turned round.
//
// K models (a fleet) are one product with the outputs of all side by side; each model has a
// learning rate, a penalty and a momentum of its own.
//
// Precision. As in linear_pass.cu, with a scale for each output and 64 columns of W' or 64 rows of
// dZ: a model that diverges does not take its neighbours' digits. Tensor cores add up 64 columns or
// rows. b' comes from float64 sums over 64 columns. All sums have one order, whatever the device.
//
// project_batch. Block: 64 rows (a warp for 16), 8 TILES outputs, a share of the columns. Fragments
// are those of score_rows in linear_pass.cu, but W' is packed by the block itself: 64 columns of W
// make up to 16 KB of fragments in shared memory. Its two float64 sums a weight, repeated for each 64
// rows, are the longest part where float64 has 1/64 of the units (sm_86, sm_89). They stay: in
// floats, what is taken from b' would lose the digits that cancel with the products.
//
// update_first_layer. Block: 64 columns of W (8 bytes of a row a lane) and 8 TILES outputs, a warp
// for 16; where that leaves warps of four, they share the rows. dZ^T is the A operand and each warp
// packs its own; bytes are the B operand, two rows interleaved by byte permutations. W and its
// velocity change where the sums end, b in the blocks of the first columns.
//
// Constants: FEATURES, CLASSES (up to 32), TILES (of 8 outputs for a block: 1 to 8, and 8 where there
// are several blocks), NESTEROV (0, 1), WIDTH (of images that may be mirrored, a multiple of 4; 0 if
// none is).
#pragma once

#include <reductions.cuh>
#include <tensor_core.cuh>

constexpr int CHUNK = 64;  // columns of a product that tensor cores add up
constexpr int GROUP = 64;  // rows of the same
constexpr int PROJECTION_ROWS = 64;  // of a block of project_batch
constexpr int MAX_BATCH = 1024;
constexpr int MAX_CLASSES = 32;
constexpr int MAX_TILES = 8;
constexpr int CHUNKS = (FEATURES + CHUNK - 1) / CHUNK;
constexpr int UNITS = 8 * TILES;                // outputs of a block
constexpr int UNIT_WARPS = (TILES + 1) / 2;     // of update_first_layer, for 16 outputs each
constexpr int ROW_WARPS = 4 / UNIT_WARPS;       // of the same that share the rows
constexpr int UPDATE_WARPS = UNIT_WARPS * ROW_WARPS;
static_assert(FEATURES % 16 == 0 && CLASSES <= MAX_CLASSES && TILES <= MAX_TILES && WIDTH % 4 == 0);

// Outputs in a row of shares.
__device__ __forceinline__ int pitch_of(int n_outputs) { return (n_outputs + 7) / 8 * 8; }

// The number of the sample that an entry of the order asks for, mirrored or not.
template <class Int> __device__ __forceinline__ Int sample_of(Int entry) {
    return WIDTH && entry < 0 ? ~entry : entry;
}

// Pixels of one image from `column` on, which is a multiple of their number.
template <int WORDS>
__device__ __forceinline__ void load_pixels(unsigned (&pixels)[WORDS], const unsigned char* image,
                                            int column, bool is_mirrored) {
    if constexpr (WIDTH != 0) {
        constexpr int LINE = WIDTH ? WIDTH : 4;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            const int at = column + 4 * i, opposite = at - 2 * (at % LINE) + LINE - 4;
            const unsigned word =
                *reinterpret_cast<const unsigned*>(image + (is_mirrored ? opposite : at));
            pixels[i] = __byte_perm(word, 0, is_mirrored ? 0x0123 : 0x3210);
        }
    } else if constexpr (WORDS == 4) {
        const uint4 vector = *reinterpret_cast<const uint4*>(image + column);
        pixels[0] = vector.x, pixels[1] = vector.y, pixels[2] = vector.z, pixels[3] = vector.w;
    } else {
        static_assert(WORDS == 2);
        const uint2 vector = *reinterpret_cast<const uint2*>(image + column);
        pixels[0] = vector.x, pixels[1] = vector.y;
    }
}

// partials (shares, rows_of_partials, pitch) gets sums over a share of the columns, and squares
// (CHUNKS, n_outputs) those of the squares of W over 64 columns.
// Grid: shares, tiles of 64 rows, blocks of outputs.
extern "C" __global__ void __launch_bounds__(128, 1)
project_batch(const unsigned char* __restrict__ X, const long long* __restrict__ order,
              const float* __restrict__ W, const double* __restrict__ shift,
              const float* __restrict__ inverse_scale, float* __restrict__ partials,
              double* __restrict__ squares, int first, int n_rows, int rows_of_partials,
              int n_outputs) {
    __shared__ uint2 heads[4 * TILES * 32], tails[4 * TILES * 32];
    __shared__ float maxima[4][UNITS], scales[UNITS], unscales[UNITS], shifted[UNITS];
    __shared__ double moved[4][UNITS], squares_of_warps[4][UNITS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const int first_unit = blockIdx.z * UNITS;
    const int first_row = blockIdx.y * PROJECTION_ROWS + warp * 16;
    const unsigned char* images[2];
    bool is_mirrored[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const long long entry = order[first + min(first_row + 8 * i + group, n_rows - 1)];
        images[i] = X + sample_of(entry) * FEATURES;
        is_mirrored[i] = entry < 0;
    }
    const int first_chunk = CHUNKS * blockIdx.x / gridDim.x;
    const int last_chunk = CHUNKS * (blockIdx.x + 1) / gridDim.x;

    float totals[TILES][4] = {};
    // What a chunk's last reads see, the next chunk writes behind its first barrier.
    for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
        const int column = chunk * CHUNK + 16 * member;
        unsigned pixels[2][4] = {};
        if (column < FEATURES)
#pragma unroll
            for (int i = 0; i < 2; ++i) load_pixels(pixels[i], images[i], column, is_mirrored[i]);

        // Each warp packs the fragments of one of the four steps.
        float values[TILES][4], largest[TILES] = {};
        double sums_moved[TILES] = {}, sums_squared[TILES] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int k = column + 4 * warp + j;
            const bool exists = k < FEATURES;
            const float factor = exists ? inverse_scale[k] : 0.0f;
            const double offset = exists ? shift[k] : 0.0;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                const int unit = first_unit + 8 * i + group;
                const float w = exists && unit < n_outputs ? W[k * n_outputs + unit] : 0.0f;
                sums_moved[i] += offset * w;
                sums_squared[i] += static_cast<double>(w) * w;
                values[i][j] = w * factor;
                largest[i] = fmaxf(largest[i], fabsf(values[i][j]));
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const float largest_of_group = row_max<4>(largest[i]);
            const double sum = row_sum<4>(sums_moved[i]), squared = row_sum<4>(sums_squared[i]);
            if (member == 0) {
                maxima[warp][8 * i + group] = largest_of_group;
                moved[warp][8 * i + group] = sum;
                squares_of_warps[warp][8 * i + group] = squared;
            }
        }
        __syncthreads();  // the maxima are there
        if (const int i = threadIdx.x; i < UNITS) {
            const int exponent = scale_exponent(
                fmaxf(fmaxf(maxima[0][i], maxima[1][i]), fmaxf(maxima[2][i], maxima[3][i])));
            scales[i] = scalbnf(1.0f, exponent), unscales[i] = scalbnf(1.0f, -exponent);
            shifted[i] =
                static_cast<float>((moved[0][i] + moved[1][i]) + (moved[2][i] + moved[3][i]));
            if (blockIdx.y == 0 && first_unit + i < n_outputs)
                squares[chunk * n_outputs + first_unit + i] =
                    (squares_of_warps[0][i] + squares_of_warps[1][i]) +
                    (squares_of_warps[2][i] + squares_of_warps[3][i]);
        }
        __syncthreads();  // the scales are there
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const float scale = scales[8 * i + group];
            uint2 head, tail;
            split_into_halves(values[i][0] * scale, values[i][1] * scale, head.x, tail.x);
            split_into_halves(values[i][2] * scale, values[i][3] * scale, head.y, tail.y);
            heads[(warp * TILES + i) * 32 + lane] = head;
            tails[(warp * TILES + i) * 32 + lane] = tail;
        }
        __syncthreads();  // the fragments are there

        float sums[TILES][4] = {};
#pragma unroll
        for (int part = 1; part >= 0; --part)  // tails first: they are small
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                unsigned a[4];
                halves_from_bytes(pixels[0][step], a[0], a[2]);
                halves_from_bytes(pixels[1][step], a[1], a[3]);
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const uint2 vector = (part ? tails : heads)[(step * TILES + i) * 32 + lane];
                    const unsigned b[2] = {vector.x, vector.y};
                    mma_m16n8k16(sums[i], a, b);
                }
            }
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int unit = 8 * i + 2 * member + j % 2;
                totals[i][j] += fmaf(sums[i][j], unscales[unit], -shifted[unit]);
            }
    }

    const int pitch = pitch_of(n_outputs);
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int row = first_row + 8 * j + group;
            const int unit = first_unit + 8 * i + 2 * member;
            if (row < n_rows && unit < n_outputs) {
                const long long place =
                    static_cast<long long>(blockIdx.x) * rows_of_partials + row;
                *reinterpret_cast<float2*>(partials + place * pitch + unit) =
                    make_float2(totals[i][2 * j], totals[i][2 * j + 1]);
            }
        }
}

// A row's loss, and its gradient in the place of the scores, for a warp with class l in lane l; both
// still without the row's weight.
template <bool IS_HINGE>
__device__ __forceinline__ float row_loss(float& score, long long label) {
    const int lane = threadIdx.x % 32;
    const bool is_class = lane < CLASSES, is_known = label >= 0 && label < CLASSES;
    const float at_label = __shfl_sync(~0u, score, is_known ? static_cast<int>(label) : 0);
    float loss;
    if constexpr (IS_HINGE) {
        const float margin = score - at_label + 1.0f;
        const float violated = is_class && lane != label && margin > 0.0f ? 1.0f : 0.0f;
        loss = warp_sum(is_class ? margin * violated : 0.0f);  // a product, because it keeps NaN
        const float n_violated = warp_sum(violated);
        score = lane == label ? 0.0f - n_violated : violated;
    } else {
        const float largest = warp_max(is_class ? score : -__int_as_float(0x7f800000));
        const float exponential = is_class ? expf(score - largest) : 0.0f;
        const float total = warp_sum(exponential);
        loss = logf(total) - (at_label - largest);
        score = exponential / total - (lane == label ? 1.0f : 0.0f);
    }
    // Nobody has looked at the labels: a wrong one must not give a plausible loss.
    return is_known ? loss : nanf("");
}

// The sum of squares of one model's W, for a warp, from what project_batch has left of them.
__device__ __forceinline__ double sum_of_squares(const double* squares, int model, int n_outputs,
                                                 int outputs_of_a_model) {
    double sum = 0.0;
    squares += model * outputs_of_a_model;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < CHUNKS * outputs_of_a_model; i += 32)
        sum += squares[i / outputs_of_a_model * n_outputs + i % outputs_of_a_model];
    return warp_sum(sum);
}

// One number of a parameter, as gpuclf.training.momentum_step says.
__device__ __forceinline__ void momentum_step(float& value, float& velocity, float gradient,
                                              float rate, float momentum) {
    const float step = gradient * rate;
    const float v = velocity * momentum - step;
    velocity = v;
    value = NESTEROV ? value - step + momentum * v : value + v;
}

// rates, regs and momenta are those of the step's models. Blocks: CHUNKS times blocks of outputs.
__device__ __forceinline__ void update_first_layer(
    const unsigned char* __restrict__ X, const long long* __restrict__ order,
    const double* __restrict__ shift, const float* __restrict__ inverse_scale,
    const float* __restrict__ doutputs, const float* __restrict__ rates,
    const double* __restrict__ regs, const float* __restrict__ momenta, float* __restrict__ W,
    float* __restrict__ b, float* __restrict__ velocity_W, float* __restrict__ velocity_b,
    int n_rows, int n_outputs, int outputs_of_a_model) {
    __shared__ int entries[MAX_BATCH];
    __shared__ float shares[ROW_WARPS][UNIT_WARPS][2][17][32];  // sums for 16 columns, and of db
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    const int unit_warp = threadIdx.x / 32 % UNIT_WARPS, row_warp = threadIdx.x / 32 / UNIT_WARPS;
    for (int i = threadIdx.x; i < n_rows; i += 32 * UPDATE_WARPS)
        entries[i] = static_cast<int>(order[i]);
    __syncthreads();  // the entries are there
    const int chunk = blockIdx.x % CHUNKS, strip = chunk * CHUNK;
    const int first_unit = blockIdx.x / CHUNKS * UNITS + unit_warp * 16 + group;
    const bool is_column = strip + 8 * group < FEATURES;

    float totals[8][4] = {}, db[2] = {};
    for (int start = GROUP * row_warp; start < n_rows; start += GROUP * ROW_WARPS) {
        unsigned pixels[4][4][2] = {};
        float values[4][2][4], largest[2] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = start + 16 * k + 4 * member + j;
                const bool exists = row < n_rows;
                if (exists && is_column) {
                    const int entry = entries[row];
                    const unsigned char* image =
                        X + static_cast<long long>(sample_of(entry)) * FEATURES;
                    load_pixels(pixels[k][j], image, strip + 8 * group, entry < 0);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int unit = first_unit + 8 * i;
                    const float value =
                        exists && unit < n_outputs ? doutputs[row * n_outputs + unit] : 0.0f;
                    values[k][i][j] = value;
                    db[i] += value;
                    largest[i] = fmaxf(largest[i], fabsf(value));
                }
            }
        float scales[2], unscales[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int exponent = scale_exponent(row_max<4>(largest[i]));
            scales[i] = scalbnf(1.0f, exponent), unscales[i] = scalbnf(1.0f, -exponent);
        }
        float sums[8][4] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            unsigned heads[4], tails[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                split_into_halves(values[k][i % 2][i / 2 * 2] * scales[i % 2],
                                  values[k][i % 2][i / 2 * 2 + 1] * scales[i % 2], heads[i],
                                  tails[i]);
#pragma unroll
            for (int word = 0; word < 2; ++word) {
                unsigned b[4][2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    unsigned lower, upper;
                    interleave_bytes(pixels[k][2 * i][word], pixels[k][2 * i + 1][word], lower,
                                     upper);
                    halves_from_bytes(lower, b[0][i], b[1][i]);
                    halves_from_bytes(upper, b[2][i], b[3][i]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) mma_m16n8k16(sums[4 * word + i], tails, b[i]);
#pragma unroll
                for (int i = 0; i < 4; ++i) mma_m16n8k16(sums[4 * word + i], heads, b[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                totals[i][j] = fmaf(sums[i][j], unscales[j / 2], totals[i][j]);
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float(&of_unit)[17][32] = shares[row_warp][unit_warp][i];
#pragma unroll
        for (int k = 0; k < 16; ++k) of_unit[k][lane] = totals[k % 8][2 * i + k / 8];
        of_unit[16][lane] = row_sum<4>(db[i]);
    }
    __syncthreads();  // the shares of the rows are there
    auto total_of = [&](int i, int k) {
        float total = 0.0f;
#pragma unroll
        for (int share = 0; share < ROW_WARPS; ++share)
            total += shares[share][unit_warp][i][k][lane];
        return total;
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int unit = first_unit + 8 * i;
        const bool exists = unit < n_outputs;
        const int model = exists ? unit / outputs_of_a_model : 0;
        const float rate = rates[model], momentum = momenta[model];
        const float twice_reg = static_cast<float>(2 * regs[model]), db_total = total_of(i, 16);
        if (exists && strip + 16 * member < FEATURES)
            for (int k = row_warp; k < 16; k += ROW_WARPS) {
                const int column = strip + 16 * member + k;
                const int place = column * n_outputs + unit;
                const float w = W[place];
                const float shifted = static_cast<float>(shift[column]) * db_total;
                const float gradient =
                    total_of(i, k) * inverse_scale[column] - shifted + twice_reg * w;
                momentum_step(W[place], velocity_W[place], gradient, rate, momentum);
            }
        if (exists && member == 0 && chunk == 0 && row_warp == 0)
            momentum_step(b[unit], velocity_b[unit], db_total, rate, momentum);
    }
}

// losses (steps, models): the weighted sum over the step's rows, and the penalty before its update.
// Grid: steps, models.
extern "C" __global__ void __launch_bounds__(32)
sum_losses(const double* __restrict__ row_losses, const double* __restrict__ penalties,
           const double* __restrict__ regs, double* __restrict__ losses, int n_samples,
           int batch_size) {
    const int step = blockIdx.x, model = blockIdx.y, n_models = gridDim.y;
    const int first = step * batch_size, n_rows = min(batch_size, n_samples - first);
    double loss = 0.0;
    for (int i = threadIdx.x; i < n_rows; i += 32)
        loss += row_losses[static_cast<long long>(first + i) * n_models + model];
    loss = warp_sum(loss);
    const int place = step * n_models + model;
    if (threadIdx.x == 0) losses[place] = loss + regs[model] * penalties[place];
}
