// Copies from global to shared memory that run while the thread goes on (cp.async). From sm_80.
//
// A thread starts copies, closes them into a group, and later waits until at most so many of its
// younger groups are still under way. After that it may read what it copied itself; what other
// threads copied needs a barrier as well.
//
// The tests run kernels on a CPU with a header of the same name (tests/cuda_on_cpu/include), where
// a copy is made only when it is waited for.
#pragma once

// Where dynamic shared memory lies, for copies. Computed once, it leaves an addition for each copy,
// where a pointer takes a conversion.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Both addresses must be multiples of BYTES: 4, 8 or 16.
template <int BYTES>
__device__ __forceinline__ void copy_async(unsigned to, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes that cp.async has");
    if constexpr (BYTES == 16)  // the only size that can pass the L1 cache by
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
                     :: "r"(to), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2;"
                     :: "r"(to), "l"(global), "n"(BYTES) : "memory");
}

__device__ __forceinline__ void close_copy_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait until at most PENDING groups of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
