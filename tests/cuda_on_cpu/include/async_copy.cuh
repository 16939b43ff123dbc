// gpuclf/kernels/async_copy.cuh in plain C++. A copy is made when it is waited for, not before, so
// that a missing wait leaves what was there; what no thread waits for is never copied.
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
    uint3 block = {~0u, ~0u, ~0u};  // of the block that they belong to
    std::vector<std::vector<Copy>> groups = {{}};  // the last one is open
};

inline Copies copies_of_threads[MAX_THREADS];

// A new block begins with no copies, though the last may have left some.
inline Copies& own_copies() {
    Copies& own = copies_of_threads[current];
    if (memcmp(&own.block, &blockIdx, sizeof blockIdx)) own = {blockIdx};
    return own;
}

}  // namespace cuda_on_cpu

inline unsigned shared_address(const void* shared) {
    return static_cast<const char*>(shared) - cuda_on_cpu::dynamic_memory;
}

template <int BYTES> void copy_async(unsigned to, const void* global) {
    using namespace cuda_on_cpu;
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    if (to > sizeof dynamic_memory - BYTES)
        fail("an asynchronous copy to memory that is not dynamic shared memory");
    if (to % BYTES || reinterpret_cast<uintptr_t>(global) % BYTES)
        fail("an asynchronous copy of %d bytes at addresses that are no multiples of it", BYTES);
    if (!is_in_an_argument(global, BYTES))
        fail("an asynchronous copy of %d bytes from memory beyond the kernel's arrays", BYTES);
    own_copies().groups.back().push_back({dynamic_memory + to, global, BYTES});
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
