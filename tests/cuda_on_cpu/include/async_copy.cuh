// gpuclf/kernels/building/async_copy.cuh in plain C++. A copy is made when it is waited for, not
// before, so that a missing wait leaves what was there; what no thread waits for is never copied. Or
// it is made at once, so that what others still read is gone: a device may do either.
#pragma once
#include <vector>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

struct Copy {
    void* to;
    const void* from;
    int bytes;
};

struct Copies {
    uint64_t block = 0;  // the number of the block that they belong to, of all launches
    std::vector<std::vector<Copy>> groups = {{}};  // the last one is open
};

inline Copies copies_of_threads[MAX_THREADS];

// A new block begins with no copies, though the last may have left some.
inline Copies& own_copies() {
    Copies& own = copies_of_threads[current];
    if (own.block != n_blocks_begun) own = {n_blocks_begun};
    return own;
}

}  // namespace cuda_on_cpu

inline unsigned shared_address(const void* shared) {
    return static_cast<const char*>(shared) - cuda_on_cpu::dynamic_memory;
}

template <int BYTES> void copy_async(unsigned to, const void* global) {
    using namespace cuda_on_cpu;
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    if (dynamic_bytes < BYTES || to > dynamic_bytes - BYTES)
        fail("an asynchronous copy to memory that is not dynamic shared memory");
    if (to % BYTES || reinterpret_cast<uintptr_t>(global) % BYTES)
        fail("an asynchronous copy of %d bytes at addresses that are no multiples of it", BYTES);
    if (!is_in_an_argument(global, BYTES))
        fail("an asynchronous copy of %d bytes from memory beyond the kernel's arrays", BYTES);
    if (running->copies_at_once) memcpy(dynamic_memory + to, global, BYTES);
    else own_copies().groups.back().push_back({dynamic_memory + to, global, BYTES});
}

inline void close_copy_group() { cuda_on_cpu::own_copies().groups.emplace_back(); }

template <int PENDING> void wait_for_copies() {
    auto& groups = cuda_on_cpu::own_copies().groups;
    size_t n_closed = groups.size() - 1;
    size_t n_done = n_closed > PENDING ? n_closed - PENDING : 0;
    for (size_t i = 0; i < n_done; i++)
        for (const auto& copy : groups[i]) memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin(), groups.begin() + n_done);
}
