// A step of mini-batch SGD for the two-layer net over bytes, in three launches that the host can
// queue without waiting, or record once and repeat for every epoch:
//
//   shares of Z = (X[batch] - 128) W1' + b'                     project_batch
//   H = relu(Z + b1), loss, dS, dH = dS W2^T [H > 0], penalty   second_layer
//   dW1' to dW1, dW2, momentum, new W1, W2, b1, b2              update_parameters
//
// and sum_losses once an epoch. sgd_over_bytes.cuh has the first launch, the sums, and what the
// third does for W1 and b1; it says how, and what bytes, halves and mirrored images are to it.
//
// Bytes, for a step of n x D x H: the batch is read twice in the form it is stored in (2 n D), W1
// three times and written once, its velocity read and written once, all but the first batch from
// L2; shares of Z are written and read once. At 200 x 3,072 x 50 that is 1.2 MB of samples, 3.7 MB
// of parameters and 4.3 MB of shares. Array by array, the standardised batch alone is written and
// read as floats (2.5 MB each time), in some forty launches, each of which a host has to queue.
//
// second_layer. A warp for a row: hidden units are lanes' in turns, classes are one a lane.
//
// update_parameters. Blocks of W1 first, then blocks for 32 numbers of W2 and b2 each. For 50 units
// and 10 classes that is 64 blocks, fewer than an H200 has multiprocessors, as the one warp that adds
// up the penalty sets second_layer's length. Wider launches need sums of their own in a fixed order:
// not before a GPU has measured these.
//
// The wrapper (two_layer_on_gpu.py) declines all but uint8 samples on the device whose
// columns are a multiple of 16, float32 parameters, up to 32 classes and 1,024 rows a batch, and
// several models, dropout, and augmentation other than flips of images whose width is a multiple
// of 4. It does not help where a batch fills the device by itself: with 512 hidden units and 1,024
// rows, products in large tiles are worth more than launches.
//
// Constants: those of sgd_over_bytes.cuh, HIDDEN, CLASSES.
//
// check: registers<=208 from=80 FEATURES=3072 HIDDEN=50 CLASSES=10 TILES=7 NESTEROV=1 WIDTH=0
// check: registers<=208 from=80 FEATURES=3072 HIDDEN=50 CLASSES=10 TILES=7 NESTEROV=1 WIDTH=32
// check: registers<=208 from=80 FEATURES=3072 HIDDEN=512 CLASSES=32 TILES=8 NESTEROV=0 WIDTH=0
// check: registers<=208 from=80 FEATURES=96 HIDDEN=5 CLASSES=2 TILES=1 NESTEROV=1 WIDTH=0
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <sgd_over_bytes.cuh>

constexpr int UNIT_BLOCKS = (HIDDEN + UNITS - 1) / UNITS;
constexpr int PITCH = (HIDDEN + 7) / 8 * 8;  // of a row of shares
constexpr int ROWS_OF_A_BLOCK = 2;           // in second_layer

// From the shares of Z to the gradients with respect to scores and hidden units, and the penalty,
// in the place of one more row. Grid: 2 rows.
// A row's weight is row_weight, times its own where weights is not null.
extern "C" __global__ void __launch_bounds__(32 * ROWS_OF_A_BLOCK)
second_layer(const float* __restrict__ partials, const long long* __restrict__ order,
             const long long* __restrict__ labels, const float* __restrict__ weights,
             const float* __restrict__ b1, const float* __restrict__ W2,
             const float* __restrict__ b2, const double* __restrict__ squares,
             float* __restrict__ hidden, float* __restrict__ dscores, float* __restrict__ dhidden,
             double* __restrict__ row_losses, double* __restrict__ penalties, float row_weight,
             int step, int first, int n_rows, int rows_of_partials, int n_shares) {
    __shared__ float hidden_of_rows[ROWS_OF_A_BLOCK][HIDDEN];
    __shared__ float dscores_of_rows[ROWS_OF_A_BLOCK][CLASSES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.x * ROWS_OF_A_BLOCK + warp;
    if (row >= n_rows) {  // a whole warp, and warps do not wait for each other
        if (row > n_rows) return;
        double sum = 0.0;
        for (int i = lane; i < HIDDEN * CLASSES; i += 32)
            sum += static_cast<double>(W2[i]) * W2[i];
        sum = sum_of_squares(squares, 0, HIDDEN, HIDDEN) + warp_sum(sum);
        if (lane == 0) penalties[step] = sum;
        return;
    }
    float* hidden_of_row = hidden_of_rows[warp];
    float* dscores_of_row = dscores_of_rows[warp];

    const long long sample = sample_of(order[first + row]);
    const float weight = weights ? weights[sample] * row_weight : row_weight;
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

    float score = 0.0f;
    if (lane < CLASSES) {
#pragma unroll 8
        for (int unit = 0; unit < HIDDEN; ++unit)
            score = fmaf(hidden_of_row[unit], W2[unit * CLASSES + lane], score);
        score += b2[lane];
    }
    const float loss = row_loss<false>(score, labels[sample]);
    if (lane == 0) row_losses[first + row] = static_cast<double>(loss) * weight;
    if (lane < CLASSES) {
        dscores_of_row[lane] = score * weight;
        dscores[row * CLASSES + lane] = score * weight;
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

// Grid: CHUNKS * UNIT_BLOCKS for W1 and b1, then a block for 32 numbers of W2 and b2.
extern "C" __global__ void __launch_bounds__(32 * UPDATE_WARPS)
update_parameters(const unsigned char* __restrict__ X, const long long* __restrict__ order,
                  const double* __restrict__ shift, const float* __restrict__ inverse_scale,
                  const float* __restrict__ hidden, const float* __restrict__ dscores,
                  const float* __restrict__ dhidden, const float* __restrict__ rates,
                  const double* __restrict__ regs, const float* __restrict__ momenta,
                  float* __restrict__ W1, float* __restrict__ b1, float* __restrict__ W2,
                  float* __restrict__ b2, float* __restrict__ velocity_W1,
                  float* __restrict__ velocity_b1, float* __restrict__ velocity_W2,
                  float* __restrict__ velocity_b2, int step, int first, int n_rows) {
    constexpr int N_W2 = HIDDEN * CLASSES, N_OTHERS = N_W2 + CLASSES;
    const int block = blockIdx.x - CHUNKS * UNIT_BLOCKS;
    if (block < 0) {
        update_first_layer(X, order + first, shift, inverse_scale, dhidden, rates + step, regs,
                           momenta, W1, b1, velocity_W1, velocity_b1, n_rows, HIDDEN, HIDDEN);
        return;
    }

    __shared__ float sums_of_warps[UPDATE_WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, number = block * 32 + lane;
    const int begin = n_rows * warp / UPDATE_WARPS, end = n_rows * (warp + 1) / UPDATE_WARPS;
    float sum = 0.0f;
    if (number < N_W2) {
        const float* unit = hidden + number / CLASSES;
        const float* label = dscores + number % CLASSES;
#pragma unroll 8
        for (int row = begin; row < end; ++row)
            sum = fmaf(unit[row * HIDDEN], label[row * CLASSES], sum);
    } else if (number < N_OTHERS) {
#pragma unroll 8
        for (int row = begin; row < end; ++row) sum += dscores[row * CLASSES + number - N_W2];
    }
    sums_of_warps[warp][lane] = sum;
    __syncthreads();  // the warps' shares are there
    if (warp != 0) return;
    for (int i = 1; i < UPDATE_WARPS; ++i) sum += sums_of_warps[i][lane];
    const float rate = rates[step], momentum = momenta[0];
    if (number < N_W2) {
        const float gradient = sum + static_cast<float>(2 * regs[0]) * W2[number];
        momentum_step(W2[number], velocity_W2[number], gradient, rate, momentum);
    } else if (number < N_OTHERS) {
        const int i = number - N_W2;
        momentum_step(b2[i], velocity_b2[i], sum, rate, momentum);
    }
}

#endif
