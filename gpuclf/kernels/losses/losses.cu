// Softmax cross-entropy and multiclass hinge: loss and gradient in two launches.
//
// Fused: everything between the scores and their gradient. Of S bytes of scores, the shared bodies
// in gpuclf/losses.py move about 18.5 S (softmax) and 29 S (hinge), in about twenty launches; this
// reads S and writes S. (A row is read up to three times, again from L1.)
//
// Launch: LANES neighbouring lanes share a row, the power of two that its classes fill, at most a
// warp. A warp takes 32 / LANES rows at a time; blocks of THREADS threads go round over the rows of
// one model, blockIdx.y. How many blocks there are depends on the sizes alone, so the order of all
// sums, and with it every bit, is the same in each run. Each block leaves its share of the loss in
// `partials`; `add_partials` adds these, a warp for each model.
//
// The wrapper (on_gpu.py) declines more than 16,384 classes, where a row is worth more than
// a warp, mixed types, and what does not fit the launch. After a product that moves far more, it
// saves launches but little bandwidth: 50,000 x 10 scores are 2 MB beside the features' 614.
//
// Class loops are unrolled twice, and one block a multiprocessor is asked for: otherwise ptxas
// spills a few registers to fit more blocks than a kernel bound by memory needs.
//
// REAL: float32 or float64. LABEL: the name of NumPy's integer type. LANES, THREADS: above.
//
// check: registers<=64 REAL=float32 LABEL=int64 LANES=16 THREADS=256
// check: registers<=64 REAL=float32 LABEL=uint8 LANES=32 THREADS=256
// check: registers<=80 REAL=float64 LABEL=int64 LANES=16 THREADS=256

using float32 = float;
using float64 = double;
using int8 = signed char;
using int16 = short;
using int32 = int;
using int64 = long long;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned;
using uint64 = unsigned long long;

constexpr int WARPS = THREADS / 32;
constexpr int ROWS_OF_A_WARP = 32 / LANES;
constexpr unsigned ALL = 0xffffffffu;

template <class T> __device__ __forceinline__ T sum_over_lanes(T x, int width) {
    for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step, width);
    return x;
}

__device__ __forceinline__ REAL maximum_over_lanes(REAL x) {
    for (int step = LANES / 2; step > 0; step /= 2) {
        REAL other = __shfl_xor_sync(ALL, x, step, LANES);
        x = other > x ? other : x;
    }
    return x;
}

// One row, as the lanes that share it see it.
struct Row {
    const REAL* scores;
    REAL* gradient;
    long long label;
    bool has_label, exists;
    int lane;      // among those that share the row
    REAL weight;   // factor of the row's loss
    REAL divisor;  // of its gradient, beside the weight
};

// Give each row of this block's model to `one_row`, which returns its loss, and leave their sum.
template <class OneRow>
__device__ __forceinline__ void for_each_row(const REAL* scores, const LABEL* labels,
                                             const REAL* weights, long long weights_of_a_model,
                                             REAL* gradient, double* partials, int n_samples,
                                             int n_classes, OneRow one_row) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    long long model = blockIdx.y;
    double loss = 0;
    // All lanes go round equally often, because they exchange values: rows past the end only look.
    #pragma unroll 1
    for (long long first = (long long)(blockIdx.x * WARPS + warp) * ROWS_OF_A_WARP;
         first < n_samples; first += (long long)gridDim.x * WARPS * ROWS_OF_A_WARP) {
        long long i = first + lane / LANES;
        Row row;
        row.exists = i < n_samples;
        if (!row.exists) i = n_samples - 1;
        long long start = (model * n_samples + i) * n_classes;
        row.scores = scores + start;
        row.gradient = gradient + start;
        row.label = labels[i];
        row.has_label = row.label >= 0 && row.label < n_classes;
        row.lane = lane % LANES;
        row.weight = weights ? weights[model * weights_of_a_model + i] : REAL(1);
        row.divisor = weights ? REAL(1) : REAL(n_samples);
        REAL loss_of_row = one_row(row);
        if (row.exists && row.lane == 0) {
            // A wrong label must not give a plausible loss.
            if (!row.has_label) loss_of_row = REAL(__int_as_float(0x7fc00000));
            loss += double(loss_of_row) * double(row.weight);
        }
    }
    __shared__ double sums[WARPS];
    loss = sum_over_lanes(loss, 32);
    if (lane == 0) sums[warp] = loss;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (int w = 0; w < WARPS; w++) total += sums[w];
        partials[model * gridDim.x + blockIdx.x] = total;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
softmax_cross_entropy(const REAL* __restrict__ logits, const LABEL* __restrict__ labels,
                      const REAL* __restrict__ weights, long long weights_of_a_model,
                      REAL* __restrict__ dlogits, double* __restrict__ partials, int n_samples,
                      int n_classes) {
    auto one_row = [&](const Row& row) {
        REAL maximum = row.scores[0];
        #pragma unroll 2
        for (int c = row.lane; c < n_classes; c += LANES)
            maximum = row.scores[c] > maximum ? row.scores[c] : maximum;
        maximum = maximum_over_lanes(maximum);
        REAL normaliser = 0;
        #pragma unroll 2
        for (int c = row.lane; c < n_classes; c += LANES)
            normaliser += exp(row.scores[c] - maximum);
        normaliser = sum_over_lanes(normaliser, LANES);
        if (row.exists)
            #pragma unroll 2
            for (int c = row.lane; c < n_classes; c += LANES) {
                REAL probability = exp(row.scores[c] - maximum) / normaliser;
                row.gradient[c] = (probability - REAL(c == row.label)) * row.weight / row.divisor;
            }
        return log(normaliser) - (row.scores[row.has_label ? row.label : 0] - maximum);
    };
    for_each_row(logits, labels, weights, weights_of_a_model, dlogits, partials, n_samples,
                 n_classes, one_row);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
multiclass_hinge(const REAL* __restrict__ scores, const LABEL* __restrict__ labels,
                 const REAL* __restrict__ weights, long long weights_of_a_model,
                 REAL* __restrict__ dscores, double* __restrict__ partials, int n_samples,
                 int n_classes, REAL margin) {
    auto one_row = [&](const Row& row) {
        REAL label_score = row.has_label ? row.scores[row.label] : REAL(0);
        REAL loss = 0, n_violated = 0;
        #pragma unroll 2
        for (int c = row.lane; c < n_classes; c += LANES) {
            REAL excess = row.scores[c] - label_score + margin;
            REAL violated = REAL(excess > 0 && c != row.label);
            loss += excess * violated;  // a product, because it keeps NaN
            n_violated += violated;
        }
        loss = sum_over_lanes(loss, LANES);
        n_violated = sum_over_lanes(n_violated, LANES);
        if (row.exists)
            #pragma unroll 2
            for (int c = row.lane; c < n_classes; c += LANES) {
                REAL violated = REAL(row.scores[c] - label_score + margin > 0);
                REAL slope = c == row.label ? 0 - n_violated : violated;
                row.gradient[c] = slope * row.weight / row.divisor;
            }
        return loss;
    };
    for_each_row(scores, labels, weights, weights_of_a_model, dscores, partials, n_samples,
                 n_classes, one_row);
}

// losses[model] = sum of that model's partials / divisor, for one warp a block.
extern "C" __global__ void __launch_bounds__(32)
add_partials(const double* __restrict__ partials, double* __restrict__ losses, int n_partials,
             double divisor) {
    double total = 0;
    #pragma unroll 2
    for (int i = threadIdx.x; i < n_partials; i += 32)
        total += partials[(long long)blockIdx.x * n_partials + i];
    total = sum_over_lanes(total, 32);
    if (threadIdx.x == 0) losses[blockIdx.x] = total / divisor;
}
