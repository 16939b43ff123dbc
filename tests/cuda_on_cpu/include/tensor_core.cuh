// gpuclf/kernels/tensor_core.cuh in plain C++: the layouts of the fragments are described there.
#pragma once
#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

inline float float_from_half(uint16_t half) {
    unsigned bits = (half & 0x7fffu) << 13;
    float value = same_bits<float>(bits) * 0x1p112f;
    if ((half & 0x7c00) == 0) value = (half & 0x3ff) * 0x1p-24f;  // subnormal, as a float normal
    if ((half & 0x7c00) == 0x7c00) value = same_bits<float>(bits | 0x7f800000u);
    return half & 0x8000 ? -value : value;
}

inline uint16_t half_from_float(float value) {
    unsigned bits = same_bits<unsigned>(value);
    unsigned sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;                // NaN, as PTX gives it
    if (size >= 0x477ff000) return sign | 0x7c00;        // 65520 and more
    if (size < 0x38800000) {                             // subnormal: let an addition round
        float rounded = same_bits<float>(size) + 0.5f;
        return sign | (same_bits<unsigned>(rounded) - same_bits<unsigned>(0.5f));
    }
    return sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
}

// Tensor cores cut their sums off instead of rounding them: errors with a sign, which add up.
inline float toward_zero(double sum) {
    float rounded = static_cast<float>(sum);
    bool is_farther = rounded > 0 ? rounded > sum : rounded < sum;
    return is_farther ? same_bits<float>(same_bits<unsigned>(rounded) - 1) : rounded;
}
inline int toward_zero(int sum) { return sum; }

template <class D> struct Fragments {
    D* d;
    const unsigned *a, *b;
};

// D = A B + D for all lanes at once. `item(register, i)` is the i-th of `packed` items a register.
template <class D, int PACKED, class Item>
__attribute__((no_sanitize("bounds", "alignment"), optimize("O3")))  // most of the tests' time
void multiply_fragments(void* const* data, Item item) {
    constexpr int DEPTH = 8 * PACKED;
    using Sum = std::conditional_t<std::is_same_v<D, float>, double, D>;
    D A[16][DEPTH], B[DEPTH][8];
    Sum products[16][8] = {};
    for (int lane = 0; lane < 32; lane++) {
        if (!data[lane]) return note_failure("mma with lanes that are not there");
        auto& one = *static_cast<Fragments<D>*>(data[lane]);
        int group = lane / 4, member = lane % 4;
        for (int i = 0; i < PACKED; i++) {
            int k = PACKED * member + i;
            A[group][k] = item(one.a[0], i);
            A[group + 8][k] = item(one.a[1], i);
            A[group][k + DEPTH / 2] = item(one.a[2], i);
            A[group + 8][k + DEPTH / 2] = item(one.a[3], i);
            B[k][group] = item(one.b[0], i);
            B[k + DEPTH / 2][group] = item(one.b[1], i);
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < DEPTH; k++)
            for (int column = 0; column < 8; column++)
                products[row][column] += A[row][k] * B[k][column];
    for (int lane = 0; lane < 32; lane++) {
        auto& one = *static_cast<Fragments<D>*>(data[lane]);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            one.d[i] = toward_zero(one.d[i] + products[row][column]);
        }
    }
}

inline void mma_halves(void* const* data) {
    auto item = [](unsigned r, int i) { return float_from_half(r >> 16 * i); };
    multiply_fragments<float, 2>(data, item);
}
inline void mma_bytes(void* const* data) {
    multiply_fragments<int, 4>(data, [](unsigned r, int i) { return int{int8_t(r >> 8 * i)}; });
}
inline void mma_unsigned_bytes(void* const* data) {
    multiply_fragments<int, 4>(data, [](unsigned r, int i) { return int{uint8_t(r >> 8 * i)}; });
}

struct MatrixRows {
    unsigned* r;
    const void* row;
};

template <bool TRANSPOSED> void load_fragments(void* const* data) {
    uint16_t rows[32][8];
    for (int lane = 0; lane < 32; lane++) {
        if (!data[lane]) return note_failure("ldmatrix with lanes that are not there");
        auto row = reinterpret_cast<uintptr_t>(static_cast<MatrixRows*>(data[lane])->row);
        if (row % 16) return note_failure("ldmatrix from an address that is not aligned");
        auto is_within = [&](const char* memory, size_t bytes) {
            return row - reinterpret_cast<uintptr_t>(memory) < bytes;
        };
        if (!is_within(dynamic_memory, dynamic_bytes) &&
            !is_within(static_memory, static_bytes))
            return note_failure("ldmatrix from memory that is not shared");
        memcpy(rows[lane], reinterpret_cast<const void*>(row), 16);
    }
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, member = lane % 4;
        for (int m = 0; m < 4; m++) {
            auto element = [&](int i) -> unsigned {
                int k = 2 * member + i;
                return TRANSPOSED ? rows[8 * m + k][group] : rows[8 * m + group][k];
            };
            static_cast<MatrixRows*>(data[lane])->r[m] = element(0) | element(1) << 16;
        }
    }
}

}  // namespace cuda_on_cpu

inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], WHERE) {
    cuda_on_cpu::Fragments<float> own = {d, a, b};
    cuda_on_cpu::warp_operation(CUDA_ON_CPU_ALL, where, cuda_on_cpu::mma_halves, &own);
}
inline void mma_m16n8k32(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], WHERE) {
    cuda_on_cpu::Fragments<int> own = {d, a, b};
    cuda_on_cpu::warp_operation(CUDA_ON_CPU_ALL, where, cuda_on_cpu::mma_bytes, &own);
}
inline void mma_m16n8k32_unsigned(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                  WHERE) {
    cuda_on_cpu::Fragments<int> own = {d, a, b};
    cuda_on_cpu::warp_operation(CUDA_ON_CPU_ALL, where, cuda_on_cpu::mma_unsigned_bytes, &own);
}
inline void load_matrices(unsigned (&r)[4], const void* row, WHERE) {
    cuda_on_cpu::MatrixRows own = {r, row};
    cuda_on_cpu::warp_operation(CUDA_ON_CPU_ALL, where, cuda_on_cpu::load_fragments<false>, &own);
}
inline void load_matrices_transposed(unsigned (&r)[4], const void* row, WHERE) {
    cuda_on_cpu::MatrixRows own = {r, row};
    cuda_on_cpu::warp_operation(CUDA_ON_CPU_ALL, where, cuda_on_cpu::load_fragments<true>, &own);
}

inline unsigned halves_from_floats(float low, float high) {
    return cuda_on_cpu::half_from_float(low) | unsigned{cuda_on_cpu::half_from_float(high)} << 16;
}
inline void floats_from_halves(unsigned halves, float& low, float& high) {
    low = cuda_on_cpu::float_from_half(halves);
    high = cuda_on_cpu::float_from_half(halves >> 16);
}
inline void split_into_halves(float low, float high, unsigned& heads, unsigned& tails) {
    heads = halves_from_floats(low, high);
    float head_low, head_high;
    floats_from_halves(heads, head_low, head_high);
    tails = halves_from_floats(low - head_low, high - head_high);
}
inline void halves_from_bytes(unsigned bytes, unsigned& first, unsigned& second) {
    auto centred = [&](int i) { return static_cast<float>(bytes >> 8 * i & 0xff) - 128; };
    first = halves_from_floats(centred(0), centred(1));
    second = halves_from_floats(centred(2), centred(3));
}
inline void interleave_bytes(unsigned first, unsigned second, unsigned& lower, unsigned& upper) {
    lower = __byte_perm(first, second, 0x5140);
    upper = __byte_perm(first, second, 0x7362);
}
inline void separate_bytes(unsigned first, unsigned second, unsigned& even, unsigned& odd) {
    even = __byte_perm(first, second, 0x6420);
    odd = __byte_perm(first, second, 0x7531);
}
inline unsigned add_absolute_differences(unsigned a, unsigned b, unsigned sum) {
    return sum + __vsadu4(a, b);
}
