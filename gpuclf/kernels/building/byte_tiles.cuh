// What walks over bytes on tensor cores have in common: folded columns, copies, the loss of a row.
#pragma once

#include <async_copy.cuh>
#include <reductions.cuh>

// Start to copy 16 bytes of a row, BYTES at a time, or as many as the row has left where it may end
// before.
template <int BYTES, bool MAY_END>
__device__ __forceinline__ void copy_pixels(unsigned to, const unsigned char* from,
                                            int n_columns_left) {
#pragma unroll
    for (int i = 0; i < 16; i += BYTES)
        if (!MAY_END || i < n_columns_left) copy_async<BYTES>(to + i, from + i);
}

// A thread's column of a block's: 1 / scale and (mean - 128) / scale, where mean and scale may be
// null, for bytes as they are. folding may be null too.
__device__ __forceinline__ void fold_column(const double* mean, const double* scale, int column,
                                            float& factor, double& shift, float2* folding) {
    const double divisor = scale ? scale[column] : 1.0;
    factor = static_cast<float>(1.0 / divisor);
    shift = ((mean ? mean[column] : 0.0) - 128.0) / divisor;
    if (folding) folding[column] = make_float2(factor, static_cast<float>(shift));
}

// Turn a row's scores, of which LANES neighbouring lanes have some each, into their gradient and
// return the row's loss; both still without the row's weight. column_of(i) is the class of a lane's
// i-th score, or beyond the last.
template <int LANES, int N_CLASSES, bool IS_HINGE, int N, class Label, class ColumnOf>
__device__ __forceinline__ float row_loss(float (&values)[N], Label label, ColumnOf column_of) {
    float largest = -__int_as_float(0x7f800000), at_label = 0.0f, loss, total = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int column = column_of(i);
        if (column < N_CLASSES) largest = fmaxf(largest, values[i]);
        if (column == label) at_label = values[i];
    }
    at_label = row_sum<LANES>(at_label);
    if constexpr (IS_HINGE) {
        loss = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int column = column_of(i);
            const float margin = values[i] - at_label + 1.0f;
            const bool counts = column < N_CLASSES && column != label;
            const float violated = counts && margin > 0.0f ? 1.0f : 0.0f;
            if (column < N_CLASSES) loss += margin * violated;  // a product, because it keeps NaN
            total += violated;
            values[i] = violated;
        }
        loss = row_sum<LANES>(loss);
    } else {
        largest = row_max<LANES>(largest);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            values[i] = column_of(i) < N_CLASSES ? expf(values[i] - largest) : 0.0f;
            total += values[i];
        }
    }
    total = row_sum<LANES>(total);
    if constexpr (!IS_HINGE) loss = logf(total) - (at_label - largest);
    const float reciprocal = 1.0f / total;  // one division a row
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if constexpr (!IS_HINGE) values[i] *= reciprocal;
        if (column_of(i) == label) values[i] -= IS_HINGE ? total : 1.0f;
    }
    // Nobody has looked at the labels: a wrong one must not give a plausible loss.
    return label >= 0 && label < N_CLASSES ? loss : nanf("");
}
