// A step of mini-batch SGD for linear classifiers over bytes, softmax or multiclass SVM, in three
// launches that the host can queue without waiting, or record once and repeat for every epoch:
//
//   shares of (X[batch] - 128) W' + b'            project_batch
//   scores, loss, dS, penalty                     score_losses
//   dW' to dW, momentum, new W and b              update_parameters
//
// and sum_losses once an epoch. sgd_over_bytes.cuh has all but the second; it says how, and what
// bytes, halves and mirrored images are to it. K models that see the same mini-batches are one
// product with K C outputs.
//
// Bytes, for a step of n x D x C: the batch is read twice in the form it is stored in (2 n D), W
// three times and written once, its velocity read and written once, all but the first batch from
// L2; shares of the scores are written and read once. At 200 x 3,072 x 10 that is 1.2 MB of samples,
// 0.7 MB of parameters and 1.2 MB of shares. Array by array, the standardised batch alone is written
// and read as floats (2.5 MB each time), in some twenty launches, each of which a host has to queue.
//
// score_losses. A warp for a row of one model: a class a lane, and where the classes leave room,
// lanes of the same class add up their part of the shares.
//
// The wrapper (linear_on_gpu.py) declines all but uint8 samples on the device whose columns
// are a multiple of 16, float32 parameters with a bias, up to 32 classes, 1,024 outputs and 1,024
// rows a batch, and augmentation other than flips of images whose width is a multiple of 4. A step
// is bound by the latency of three launches, not by bytes: it does not help where steps are few and
// large, which the kernels of linear_pass.cu are for.
//
// Constants: those of sgd_over_bytes.cuh, CLASSES, HINGE (0, 1).
//
// check: registers<=208 from=80 FEATURES=3072 CLASSES=10 HINGE=0 TILES=2 NESTEROV=1 WIDTH=0
// check: registers<=208 from=80 FEATURES=3072 CLASSES=10 HINGE=1 TILES=2 NESTEROV=0 WIDTH=32
// check: registers<=208 from=80 FEATURES=3072 CLASSES=32 HINGE=0 TILES=8 NESTEROV=1 WIDTH=32
// check: registers<=208 from=80 FEATURES=96 CLASSES=2 HINGE=1 TILES=1 NESTEROV=1 WIDTH=0
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#include <sgd_over_bytes.cuh>

constexpr int ROWS_OF_A_BLOCK = 2;
constexpr int LANES = CLASSES <= 2 ? 2 : CLASSES <= 4 ? 4 : CLASSES <= 8 ? 8 : CLASSES <= 16 ? 16 : 32;

// From the shares of the scores to their gradients, and the models' penalties, in the place of one
// more row. Grid: 2 rows; rows of all models in turns.
// A row's weight is row_weight, times its own where weights is not null: (N,), for all models, or
// (models, N), for which weights_of_a_model is N.
extern "C" __global__ void __launch_bounds__(32 * ROWS_OF_A_BLOCK, 1)
score_losses(const float* __restrict__ partials, const long long* __restrict__ order,
             const long long* __restrict__ labels, const float* __restrict__ weights,
             const float* __restrict__ b, const double* __restrict__ squares,
             float* __restrict__ dscores, double* __restrict__ row_losses,
             double* __restrict__ penalties, float row_weight, int weights_of_a_model, int step,
             int first, int n_rows, int rows_of_partials, int n_shares, int n_models) {
    const int lane = threadIdx.x % 32, number = blockIdx.x * ROWS_OF_A_BLOCK + threadIdx.x / 32;
    const int row = number / n_models, model = number % n_models;
    const int label = lane % LANES, n_outputs = n_models * CLASSES, pitch = pitch_of(n_outputs);
    if (row >= n_rows) {  // a whole warp, and warps do not wait for each other
        if (row > n_rows) return;
        const double sum = sum_of_squares(squares, model, n_outputs, CLASSES);
        if (lane == 0) penalties[step * n_models + model] = sum;
        return;
    }
    const int output = model * CLASSES + label;

    const long long sample = sample_of(order[first + row]);
    float weight = row_weight;
    if (weights) weight *= weights[static_cast<long long>(model) * weights_of_a_model + sample];
    float score = 0.0f;
    if (label < CLASSES) {
        const float* share = partials + static_cast<long long>(row) * pitch + output;
        const long long stride = static_cast<long long>(rows_of_partials) * pitch;
#pragma unroll 12
        for (int i = lane / LANES; i < n_shares; i += 32 / LANES) score += share[i * stride];
    }
    for (int distance = LANES; distance < 32; distance *= 2)
        score += __shfl_xor_sync(~0u, score, distance);
    if (label < CLASSES) score += b[output];

    const float loss = row_loss<HINGE>(score, labels[sample]);
    if (lane == 0)
        row_losses[static_cast<long long>(first + row) * n_models + model] =
            static_cast<double>(loss) * weight;
    if (lane < CLASSES) dscores[row * n_outputs + output] = score * weight;
}

// Grid: CHUNKS times blocks of outputs.
extern "C" __global__ void __launch_bounds__(32 * UPDATE_WARPS)
update_parameters(const unsigned char* __restrict__ X, const long long* __restrict__ order,
                  const double* __restrict__ shift, const float* __restrict__ inverse_scale,
                  const float* __restrict__ dscores, const float* __restrict__ rates,
                  const double* __restrict__ regs, const float* __restrict__ momenta,
                  float* __restrict__ W, float* __restrict__ b, float* __restrict__ velocity_W,
                  float* __restrict__ velocity_b, int step, int first, int n_rows, int n_models) {
    update_first_layer(X, order + first, shift, inverse_scale, dscores, rates + step * n_models,
                       regs, momenta, W, b, velocity_W, velocity_b, n_rows, n_models * CLASSES,
                       CLASSES);
}

#endif
