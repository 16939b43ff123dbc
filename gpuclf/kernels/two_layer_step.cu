// A step of mini-batch SGD for the two-layer net over bytes, in three launches that the host can
// queue without waiting, or record once and repeat for every epoch:
//
//   shares of Z = (X[batch] - 128) W1' + b'          project_batch
//   H = relu(Z + b1), loss, dS, dH = dS W2^T [H > 0]   second_layer
//   W1' to W1, penalty, momentum, new W1, W2, b1, b2   update_parameters
//
// and sum_losses once an epoch. W1' = W1 / scale and b' = -((mean - 128) / scale) W1 are made where
// they are used; the standardised samples, W1', the batch and dW1 are never written.
//
// Bytes, for a step of n x D x H: the batch is read twice in the form it is stored in (2 n D), W1
// three times and written once, its velocity read and written once, all but the first batch from
// L2; shares of Z are written and read once. At 200 x 3,072 x 50 that is 1.2 MB of samples, 3.7 MB
// of parameters and 4.3 MB of shares. Array by array, the standardised batch alone is written and
// read as floats (2.5 MB each time), in some forty launches, each of which a host has to queue.
//
// Precision. A byte less 128 is exact as a half; W1' and dH are split into two halves each after a
// scaling by a power of two, chosen for 64 columns of W1' and for 64 rows of 16 hidden units of dH.
// Tensor cores cut sums off, so they add up 64 columns or rows and ordinary additions the rest.
// b' comes from float64 sums over 64 columns. All sums have one order, whatever the device.
//
// project_batch. Block: 64 rows (a warp for 16), up to 64 hidden units, a share of the columns.
// Bytes are the A operand: lane 4 g + t takes the 16 bytes at column 16 t of rows g and g + 8, which
// are its fragments of four products, because W1' is packed in the same order of columns. It is
// packed by the block itself: 64 columns of W1 make 16 KB of fragments in shared memory.
//
// second_layer. A warp for a row: hidden units are lanes' in turns, classes are one a lane.
//
// update_parameters. Block: 64 columns of W1 (8 bytes of a row a lane) and up to 64 hidden units, a
// warp for 16, over all rows. dH^T is the A operand and each warp packs its own, so that nothing is
// exchanged; bytes are the B operand, two rows interleaved by byte permutations. W1 and its
// velocity change where the sums end. Further blocks do W2 and the biases, 32 numbers each.
//
// The wrapper (two_layer_step_on_cupy.py) declines all but uint8 samples on the device whose
// columns are a multiple of 16, float32 parameters, up to 32 classes and 1,024 rows a batch, and
// sample weights, dropout and augmentation. It does not help where a batch fills the device by
// itself: with 512 hidden units and 1,024 rows, products in large tiles are worth more than launches.
//
// Constants: FEATURES, HIDDEN, CLASSES, NESTEROV (0, 1).
//
// check: registers<=184 from=80 FEATURES=3072 HIDDEN=50 CLASSES=10 NESTEROV=1
// check: registers<=184 from=80 FEATURES=3072 HIDDEN=512 CLASSES=32 NESTEROV=0
// check: registers<=184 from=80 FEATURES=96 HIDDEN=5 CLASSES=2 NESTEROV=1
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <reductions.cuh>
#include <tensor_core.cuh>

constexpr int CHUNK = 64;         // columns of a product that tensor cores add up
constexpr int GROUP = 64;         // rows of the same
constexpr int HIDDEN_BLOCK = 64;  // hidden units of a block
constexpr int MAX_BATCH = 1024;
constexpr int CHUNKS = (FEATURES + CHUNK - 1) / CHUNK;
constexpr int HIDDEN_BLOCKS = (HIDDEN + HIDDEN_BLOCK - 1) / HIDDEN_BLOCK;
constexpr int TILES = HIDDEN < HIDDEN_BLOCK ? (HIDDEN + 7) / 8 : 8;     // of 8 hidden units
constexpr int WARPS = HIDDEN < HIDDEN_BLOCK ? (HIDDEN + 15) / 16 : 4;  // of 16 hidden units
constexpr int PITCH = (HIDDEN + 7) / 8 * 8;                             // of a row of shares
constexpr int ROWS_OF_A_BLOCK = 2;                                      // in second_layer
static_assert(FEATURES % 16 == 0 && CLASSES <= 32);

// partials (shares, rows_of_partials, PITCH) gets sums over a share of the columns.
// Grid: shares, tiles of 64 rows, blocks of hidden units.
extern "C" __global__ void __launch_bounds__(128, 1)
project_batch(const unsigned char* __restrict__ X, const long long* __restrict__ order,
              const float* __restrict__ W1, const double* __restrict__ shift,
              const float* __restrict__ inverse_scale, float* __restrict__ partials, int first,
              int n_rows, int rows_of_partials) {
    __shared__ uint2 heads[4 * TILES * 32], tails[4 * TILES * 32];
    __shared__ float maxima[4];
    __shared__ double moved[4][8 * TILES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const int first_unit = blockIdx.z * HIDDEN_BLOCK;
    const int first_row = blockIdx.y * 64 + warp * 16;
    const unsigned char* row_pixels[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = min(first_row + 8 * i + group, n_rows - 1);
        row_pixels[i] = X + order[first + row] * FEATURES;
    }
    const int first_chunk = CHUNKS * blockIdx.x / gridDim.x;
    const int last_chunk = CHUNKS * (blockIdx.x + 1) / gridDim.x;

    float totals[TILES][4] = {};
    for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
        const int column = chunk * CHUNK + 16 * member;
        unsigned pixels[2][4] = {};
        if (column < FEATURES)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint4 vector = *reinterpret_cast<const uint4*>(row_pixels[i] + column);
                pixels[i][0] = vector.x, pixels[i][1] = vector.y;
                pixels[i][2] = vector.z, pixels[i][3] = vector.w;
            }

        // Each warp packs the fragments of one of the four steps.
        float values[TILES][4], largest = 0.0f;
        double sums_moved[TILES] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int k = column + 4 * warp + j;
            const bool exists = k < FEATURES;
            const float factor = exists ? inverse_scale[k] : 0.0f;
            const double offset = exists ? shift[k] : 0.0;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                const int unit = first_unit + 8 * i + group;
                const float w = exists && unit < HIDDEN ? W1[k * HIDDEN + unit] : 0.0f;
                sums_moved[i] += offset * w;
                values[i][j] = w * factor;
                largest = fmaxf(largest, fabsf(values[i][j]));
            }
        }
        largest = warp_max(largest);
        if (lane == 0) maxima[warp] = largest;
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            double sum = sums_moved[i];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (member == 0) moved[warp][8 * i + group] = sum;
        }
        __syncthreads();  // the maxima are there
        for (int i = 0; i < 4; ++i) largest = fmaxf(largest, maxima[i]);
        const int exponent = scale_exponent(largest);
        const float scale = scalbnf(1.0f, exponent), unscale = scalbnf(1.0f, -exponent);
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
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
                const double shifted =
                    (moved[0][unit] + moved[1][unit]) + (moved[2][unit] + moved[3][unit]);
                totals[i][j] += fmaf(sums[i][j], unscale, static_cast<float>(-shifted));
            }
        __syncthreads();  // shared memory is free for the next chunk
    }

#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int row = first_row + 8 * j + group;
            const int unit = first_unit + 8 * i + 2 * member;
            if (row < n_rows && unit < HIDDEN) {
                const long long place =
                    static_cast<long long>(blockIdx.x) * rows_of_partials + row;
                *reinterpret_cast<float2*>(partials + place * PITCH + unit) =
                    make_float2(totals[i][2 * j], totals[i][2 * j + 1]);
            }
        }
}

// From the shares of Z to the gradients with respect to scores and hidden units. Grid: 2 rows.
extern "C" __global__ void __launch_bounds__(32 * ROWS_OF_A_BLOCK)
second_layer(const float* __restrict__ partials, const long long* __restrict__ order,
             const long long* __restrict__ labels, const float* __restrict__ b1,
             const float* __restrict__ W2, const float* __restrict__ b2, float* __restrict__ hidden,
             float* __restrict__ dscores, float* __restrict__ dhidden,
             double* __restrict__ row_losses, int first, int n_rows, int rows_of_partials,
             int n_shares) {
    __shared__ float hidden_of_rows[ROWS_OF_A_BLOCK][HIDDEN];
    __shared__ float dscores_of_rows[ROWS_OF_A_BLOCK][CLASSES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.x * ROWS_OF_A_BLOCK + warp;
    if (row >= n_rows) return;  // a whole warp, and warps do not wait for each other
    float* hidden_of_row = hidden_of_rows[warp];
    float* dscores_of_row = dscores_of_rows[warp];

    const long long label = labels[order[first + row]];
    const long long stride = static_cast<long long>(rows_of_partials) * PITCH;
    for (int unit = lane; unit < HIDDEN; unit += 32) {
        const float* share = partials + static_cast<long long>(row) * PITCH + unit;
        float z = 0.0f;
#pragma unroll 16
        for (int i = 0; i < n_shares; ++i) z += share[i * stride];
        z += b1[unit];
        z = z < 0.0f ? 0.0f : z;  // keeps NaN
        hidden_of_row[unit] = z;
        hidden[row * HIDDEN + unit] = z;
    }
    __syncwarp();  // the hidden units are there

    const bool is_class = lane < CLASSES, is_known = label >= 0 && label < CLASSES;
    float score = 0.0f;
    if (is_class) {
#pragma unroll 8
        for (int unit = 0; unit < HIDDEN; ++unit)
            score = fmaf(hidden_of_row[unit], W2[unit * CLASSES + lane], score);
        score += b2[lane];
    }
    const float largest = warp_max(is_class ? score : -__int_as_float(0x7f800000));
    const float exponential = is_class ? expf(score - largest) : 0.0f;
    const float total = warp_sum(exponential);
    const float at_label = __shfl_sync(~0u, score, is_known ? static_cast<int>(label) : 0);
    if (lane == 0) {
        const float loss = logf(total) - (at_label - largest);
        // Nobody has looked at the labels: a wrong one must not give a plausible loss.
        row_losses[first + row] = is_known ? loss : nanf("");
    }
    if (is_class) {
        const float weight = 1.0f / n_rows;
        const float dscore = (exponential / total - (lane == label ? 1.0f : 0.0f)) * weight;
        dscores_of_row[lane] = dscore;
        dscores[row * CLASSES + lane] = dscore;
    }
    __syncwarp();  // the gradients of the scores are there

    for (int unit = lane; unit < HIDDEN; unit += 32) {
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < CLASSES; ++c)
            sum = fmaf(dscores_of_row[c], W2[unit * CLASSES + c], sum);
        dhidden[row * HIDDEN + unit] = hidden_of_row[unit] > 0.0f ? sum : 0.0f;
    }
}

// One number of a parameter, as gpuclf.training.momentum_step says.
__device__ __forceinline__ void momentum_step(float& value, float& velocity, float gradient,
                                              float rate, float momentum) {
    const float step = gradient * rate;
    const float v = velocity * momentum - step;
    velocity = v;
    value = NESTEROV ? value - step + momentum * v : value + v;
}

// The sum of squares of what the block's threads have, as penalties[block].
__device__ __forceinline__ void leave_penalty(double squares, double* penalties) {
    __shared__ double sums[WARPS];
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
    __syncthreads();  // the warps' sums are there
    if (threadIdx.x != 0) return;
    for (int i = 1; i < WARPS; ++i) squares += sums[i];
    penalties[blockIdx.x] = squares;
}

// Grid: CHUNKS * HIDDEN_BLOCKS for W1, then a block for 32 numbers of W2, b1 and b2.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
update_parameters(const unsigned char* __restrict__ X, const long long* __restrict__ order,
                  const double* __restrict__ shift, const float* __restrict__ inverse_scale,
                  const float* __restrict__ hidden, const float* __restrict__ dscores,
                  const float* __restrict__ dhidden, const float* __restrict__ rates,
                  float* __restrict__ W1, float* __restrict__ b1, float* __restrict__ W2,
                  float* __restrict__ b2, float* __restrict__ velocity_W1,
                  float* __restrict__ velocity_b1, float* __restrict__ velocity_W2,
                  float* __restrict__ velocity_b2, double* __restrict__ penalties, int step,
                  int first, int n_rows, float twice_reg, float momentum) {
    __shared__ int rows[MAX_BATCH];
    __shared__ float sums_of_warps[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
    const float rate = rates[step];
    penalties += static_cast<long long>(step) * gridDim.x;
    double squares = 0.0;

    if (blockIdx.x >= CHUNKS * HIDDEN_BLOCKS) {
        constexpr int N_W2 = HIDDEN * CLASSES;
        const int number = (blockIdx.x - CHUNKS * HIDDEN_BLOCKS) * 32 + lane;
        const int begin = n_rows * warp / WARPS, end = n_rows * (warp + 1) / WARPS;
        float sum = 0.0f;
        if (number < N_W2) {
            const float* unit = hidden + number / CLASSES;
            const float* label = dscores + number % CLASSES;
#pragma unroll 8
            for (int row = begin; row < end; ++row)
                sum = fmaf(unit[row * HIDDEN], label[row * CLASSES], sum);
        } else if (number < N_W2 + HIDDEN) {
#pragma unroll 8
            for (int row = begin; row < end; ++row) sum += dhidden[row * HIDDEN + number - N_W2];
        } else if (number < N_W2 + HIDDEN + CLASSES) {
#pragma unroll 8
            for (int row = begin; row < end; ++row)
                sum += dscores[row * CLASSES + number - N_W2 - HIDDEN];
        }
        sums_of_warps[warp][lane] = sum;
        __syncthreads();  // the warps' shares are there
        if (warp == 0) {
            for (int i = 1; i < WARPS; ++i) sum += sums_of_warps[i][lane];
            if (number < N_W2) {
                const float w = W2[number];
                squares = static_cast<double>(w) * w;
                momentum_step(W2[number], velocity_W2[number], sum + twice_reg * w, rate, momentum);
            } else if (number < N_W2 + HIDDEN) {
                const int i = number - N_W2;
                momentum_step(b1[i], velocity_b1[i], sum, rate, momentum);
            } else if (number < N_W2 + HIDDEN + CLASSES) {
                const int i = number - N_W2 - HIDDEN;
                momentum_step(b2[i], velocity_b2[i], sum, rate, momentum);
            }
        }
        leave_penalty(squares, penalties);
        return;
    }

    for (int i = threadIdx.x; i < n_rows; i += 32 * WARPS)
        rows[i] = static_cast<int>(order[first + i]);
    __syncthreads();  // the rows' numbers are there
    const int strip = blockIdx.x % CHUNKS * CHUNK;
    const int first_unit = blockIdx.x / CHUNKS * HIDDEN_BLOCK + warp * 16 + group;
    const bool is_column = strip + 8 * group < FEATURES;
    const unsigned char* columns = X + strip + 8 * group;

    float totals[8][4] = {}, db[2] = {};
    for (int start = 0; start < n_rows; start += GROUP) {
        uint2 pixels[4][4];
        float values[4][2][4], largest = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = start + 16 * k + 4 * member + j;
                const bool exists = row < n_rows;
                pixels[k][j] = uint2{0, 0};
                if (exists && is_column)
                    pixels[k][j] = *reinterpret_cast<const uint2*>(
                        columns + static_cast<long long>(rows[row]) * FEATURES);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int unit = first_unit + 8 * i;
                    const float value =
                        exists && unit < HIDDEN ? dhidden[row * HIDDEN + unit] : 0.0f;
                    values[k][i][j] = value;
                    db[i] += value;
                    largest = fmaxf(largest, fabsf(value));
                }
            }
        const int exponent = scale_exponent(warp_max(largest));
        const float scale = scalbnf(1.0f, exponent), unscale = scalbnf(1.0f, -exponent);
        float sums[8][4] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            unsigned heads[4], tails[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                split_into_halves(values[k][i % 2][i / 2 * 2] * scale,
                                  values[k][i % 2][i / 2 * 2 + 1] * scale, heads[i], tails[i]);
#pragma unroll
            for (int word = 0; word < 2; ++word) {
                unsigned b[4][2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint2 one = pixels[k][2 * i], other = pixels[k][2 * i + 1];
                    unsigned lower, upper;
                    interleave_bytes(word ? one.y : one.x, word ? other.y : other.x, lower, upper);
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
            for (int j = 0; j < 4; ++j) totals[i][j] = fmaf(sums[i][j], unscale, totals[i][j]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        db[i] += __shfl_xor_sync(~0u, db[i], 1);
        db[i] += __shfl_xor_sync(~0u, db[i], 2);
    }

#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int column = strip + 16 * member + 8 * (j % 2) + i;
            const int unit = first_unit + j / 2 * 8;
            if (column < FEATURES && unit < HIDDEN) {
                const int place = column * HIDDEN + unit;
                const float w = W1[place];
                squares += static_cast<double>(w) * w;
                const float shifted = static_cast<float>(shift[column]) * db[j / 2];
                const float gradient =
                    totals[i][j] * inverse_scale[column] - shifted + twice_reg * w;
                momentum_step(W1[place], velocity_W1[place], gradient, rate, momentum);
            }
        }
    leave_penalty(squares, penalties);
}

// losses[step] for a warp a step: the mean over its rows, and the penalty before its update.
extern "C" __global__ void __launch_bounds__(32)
sum_losses(const double* __restrict__ row_losses, const double* __restrict__ penalties,
           double* __restrict__ losses, int n_samples, int batch_size, int n_penalties, double reg) {
    const int step = blockIdx.x, first = step * batch_size;
    const int n_rows = min(batch_size, n_samples - first);
    double loss = 0.0, squares = 0.0;
    for (int i = threadIdx.x; i < n_rows; i += 32) loss += row_losses[first + i];
    for (int i = threadIdx.x; i < n_penalties; i += 32)
        squares += penalties[static_cast<long long>(step) * n_penalties + i];
    loss = warp_sum(loss), squares = warp_sum(squares);
    if (threadIdx.x == 0) losses[step] = loss / n_rows + reg * squares;
}

#endif
