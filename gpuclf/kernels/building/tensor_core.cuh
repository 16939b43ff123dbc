// Tensor cores and half precision by inline PTX, so that no CUDA header is needed. From sm_80, but
// for what is said to be there before.
//
// Layout of the fragments, for lane = 4 * group + member (PTX ISA, "Matrix fragments for mma"):
//   m16n8k16, two halves a register, element k of the pair in the lower half first
//     a[0]: row group,     columns 2*member, +1        a[1]: row group + 8, the same columns
//     a[2]: row group,     columns 2*member + 8, +1    a[3]: row group + 8, the same columns
//     b[0]: rows 2*member, +1 of column group          b[1]: rows 2*member + 8, +1
//     d[0], d[1]: row group, columns 2*member, +1      d[2], d[3]: row group + 8
//   m16n8k32, four bytes a register
//     a[0]: row group, columns 4*member..+3            a[1]: row group + 8
//     a[2]: row group, columns 4*member + 16..+3       a[3]: row group + 8
//     b[0]: rows 4*member..+3 of column group          b[1]: rows 4*member + 16..+3
//     d as above
//
// The tests run kernels on a CPU with a header of the same name that does the same in plain C++
// (tests/cuda_on_cpu/include): a function that is added here is added there.
#pragma once

// d += a b, halves multiplied, floats added.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, signed bytes, exact.
__device__ __forceinline__ void mma_m16n8k32(int (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for unsigned bytes.
__device__ __forceinline__ void mma_m16n8k32_unsigned(int (&d)[4], const unsigned (&a)[4],
                                                      const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of halves from shared memory: lane l gives the address of row l % 8 of
// matrix l / 8 (16 bytes, aligned), and gets elements 2*member, +1 of row `group` of each.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
    asm volatile("{ .reg .u64 shared; cvta.to.shared.u64 shared, %4;\n"
                 "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [shared]; }"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "l"(row)
                 : "memory");
}

// The same, each matrix transposed: elements 2*member, +1 of column `group`.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("{ .reg .u64 shared; cvta.to.shared.u64 shared, %4;\n"
                 "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [shared]; }"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "l"(row)
                 : "memory");
}

// Two floats, rounded to the nearest half, ties to even; the first in the lower 16 bits.
__device__ __forceinline__ unsigned halves_from_floats(float low, float high) {
    unsigned halves;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
    return halves;
}

__device__ __forceinline__ void floats_from_halves(unsigned halves, float& low, float& high) {
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high)
        : "r"(halves));
}

// x = head + tail with 22 bits of x in two halves, if |x| is within the range of normal halves.
__device__ __forceinline__ void split_into_halves(float low, float high, unsigned& heads,
                                                  unsigned& tails) {
    heads = halves_from_floats(low, high);
    float head_low, head_high;
    floats_from_halves(heads, head_low, head_high);
    tails = halves_from_floats(low - head_low, high - head_high);
}

// Four bytes x as halves x - 128, exact: the byte as the last bits of the half 1024, less 1152.
__device__ __forceinline__ void halves_from_bytes(unsigned bytes, unsigned& first,
                                                  unsigned& second) {
    asm("{ .reg .b32 lower, upper;\n"
        "prmt.b32 lower, %2, 0x64646464, 0x4140; prmt.b32 upper, %2, 0x64646464, 0x4342;\n"
        "sub.f16x2 %0, lower, %3; sub.f16x2 %1, upper, %3; }"
        : "=r"(first), "=r"(second)
        : "r"(bytes), "r"(0x64806480u));
}

// The bytes of two words in turns: 0 and 1 of both, then 2 and 3 of both, `first` first.
__device__ __forceinline__ void interleave_bytes(unsigned first, unsigned second, unsigned& lower,
                                                 unsigned& upper) {
    asm("prmt.b32 %0, %2, %3, 0x5140; prmt.b32 %1, %2, %3, 0x7362;"
        : "=&r"(lower), "=r"(upper)
        : "r"(first), "r"(second));
}

// Bytes 0 and 2 of both words, and bytes 1 and 3 of both, those of `first` first.
__device__ __forceinline__ void separate_bytes(unsigned first, unsigned second, unsigned& even,
                                               unsigned& odd) {
    asm("prmt.b32 %0, %2, %3, 0x6420; prmt.b32 %1, %2, %3, 0x7531;"
        : "=&r"(even), "=r"(odd)
        : "r"(first), "r"(second));
}

// sum + |a - b| over four unsigned bytes. From sm_75; in one instruction where the processor has it,
// while compilers make an addition of its own of `sum + __vsadu4(a, b)`.
__device__ __forceinline__ unsigned add_absolute_differences(unsigned a, unsigned b,
                                                             unsigned sum) {
    asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}
