// What warps and the lanes of a row reduce, and the powers of two that bring numbers into the range of halves.
#pragma once

// The exponent e for which x 2^e is below 2^15 for |x| <= largest, and 2^e and 2^-e are normal.
__device__ __forceinline__ int scale_exponent(float largest) {
    int exponent = largest > 0.0f ? ilogbf(largest) : 0;
    exponent = exponent < -100 ? -100 : exponent > 127 ? 127 : exponent;
    return 14 - exponent;
}

// Over LANES neighbouring lanes, from a multiple of LANES on.
template <int LANES, class T> __device__ __forceinline__ T row_sum(T x) {
    for (int distance = 1; distance < LANES; distance *= 2)
        x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

template <int LANES> __device__ __forceinline__ float row_max(float x) {
    for (int distance = 1; distance < LANES; distance *= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

template <class T> __device__ __forceinline__ T warp_sum(T x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}
