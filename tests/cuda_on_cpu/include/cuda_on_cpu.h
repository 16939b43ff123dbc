// Runs CUDA C++ on a CPU: each thread of a block is a fiber, and blocks run one after another.
//
// A fiber runs until it has to wait for others, so between two barriers the threads of a block run
// in a fixed order, which the caller chooses. Data that is exchanged without a barrier is missing
// in at least one of the orders: shared memory holds garbage when a block begins.
//
// Reported as errors: threads that wait at different barriers or have exited while others wait;
// lanes of a warp that do not meet; array indices out of bounds; misaligned vectors; arguments of
// another type than the kernel's parameters; launches beyond the device's limits; wild pointers;
// reads and writes beyond arrays, around which the caller leaves pages that cannot be accessed.
// Not seen: races between blocks that run at the same time, bank conflicts, uncoalesced access.
// There are no atomics on floats here, because their sums depend on the order of the threads.
#pragma once
#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#if !defined(__x86_64__) && !defined(PORTABLE_FIBERS)
#define PORTABLE_FIBERS 1
#endif

// NVRTC has no headers: a kernel that uses these compiles with nvcc, but not where CuPy compiles it.
#undef INFINITY
#undef NAN
#undef FLT_MAX
#undef DBL_MAX
#undef INT_MAX

// ------------------------------------------------------------------------ CUDA's words and types

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__
// All fibers are one thread to the system, so they share what is local to a thread, and nothing
// else is: the library's thread-local memory is the block's shared memory. (A section of its own
// would not do: GCC ignores such an attribute in templates.) `used`, so that the compiler does not
// take what is never written for zeros.
#define __shared__ static thread_local __attribute__((used))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define CUDA_ON_CPU_VECTORS(type, name, pair, quad)                                  \
    struct __align__(pair) name##2 { type x, y; };                                   \
    struct __align__(quad) name##4 { type x, y, z, w; };                             \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                 \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTORS(char, char, 2, 4)
CUDA_ON_CPU_VECTORS(unsigned char, uchar, 2, 4)
CUDA_ON_CPU_VECTORS(short, short, 4, 8)
CUDA_ON_CPU_VECTORS(unsigned short, ushort, 4, 8)
CUDA_ON_CPU_VECTORS(int, int, 8, 16)
CUDA_ON_CPU_VECTORS(unsigned, uint, 8, 16)
CUDA_ON_CPU_VECTORS(float, float, 8, 16)
CUDA_ON_CPU_VECTORS(double, double, 16, 16)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

extern "C" void* __tls_get_addr(size_t module_and_offset[2]);

namespace cuda_on_cpu {

using Where = std::source_location;

// ------------------------------------------------------------------------------------- fibers

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t MAX_STATIC_SHARED = 48 << 10, MAX_SHARED = 227 << 10, SHARED_GUARD = 4 << 10;
constexpr size_t SHARED_ROOM = 228 << 10;  // whole pages

#if !PORTABLE_FIBERS
// ucontext's swapcontext asks the kernel for the signal mask at each switch; this does not.
using Context = void*;
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
    .text
    .local cuda_on_cpu_switch
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
inline void switch_context(Context& from, Context& to) { cuda_on_cpu_switch(&from, to); }
inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
    uintptr_t end = reinterpret_cast<uintptr_t>(stack) + bytes;
    auto top = reinterpret_cast<void**>(end & ~uintptr_t{15});
    *--top = nullptr;  // as after a call: 8 bytes below a multiple of 16
    *--top = reinterpret_cast<void*>(entry);
    context = top - 6;  // registers to pop, of any value
}
#else
using Context = ucontext_t;
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

enum class State { ready, at_barrier, at_warp_operation, exited };

// What the lanes of a warp do together: data[lane] is what each of them brought, or null.
using Combine = void (*)(void* const* data);

struct Thread {
    Context context;
    uint3 index;
    State state;
    unsigned line;      // of the barrier or the warp operation that it waits at
    unsigned mask;      // the lanes that it waits for
    Combine combine;
    void* data;
    int predicate;
};

inline Thread threads[MAX_THREADS];
inline Context scheduler;
inline int current, n_threads;
inline int barrier_votes;
inline char* stacks;
inline char message[1000];
inline bool failed;
inline sigjmp_buf wild_pointer;

// Dynamic shared memory ends where pages begin that cannot be accessed, or begins where they end:
// what was not asked for cannot be read. Multiples of 16, as on a device, and of nothing more.
inline char* shared_pages;  // SHARED_ROOM bytes, as many forbidden ones on either side
inline char* dynamic_memory;
inline unsigned dynamic_bytes, spare_bytes;  // asked for; of the same pages behind them
template <class T> T* const& dynamic_shared() { return reinterpret_cast<T* const&>(dynamic_memory); }

inline void place_dynamic_memory(unsigned bytes, bool at_end) {
    if (!shared_pages) {
        auto all = static_cast<char*>(mmap(nullptr, 3 * SHARED_ROOM, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        mprotect(all, SHARED_ROOM, PROT_NONE);
        mprotect(all + 2 * SHARED_ROOM, SHARED_ROOM, PROT_NONE);
        shared_pages = all + SHARED_ROOM;
    }
    dynamic_bytes = bytes;
    size_t start = at_end ? SHARED_ROOM - (bytes + 15) / 16 * 16 : 0;
    spare_bytes = std::min(SHARED_GUARD, SHARED_ROOM - start - bytes);
    dynamic_memory = shared_pages + start;
}

inline char* static_memory;
inline size_t static_bytes;

// Find this library among those that are loaded, and its thread-local memory.
inline void find_static_memory() {
    dl_iterate_phdr([](dl_phdr_info* library, size_t, void*) {
        auto own = reinterpret_cast<uintptr_t>(&static_memory) - library->dlpi_addr;
        bool found = false;
        for (int i = 0; i < library->dlpi_phnum; i++) {
            const auto& segment = library->dlpi_phdr[i];
            found |= segment.p_type == PT_LOAD && own - segment.p_vaddr < segment.p_memsz;
        }
        for (int i = 0; found && i < library->dlpi_phnum; i++)
            if (library->dlpi_phdr[i].p_type == PT_TLS) {
                size_t start[2] = {library->dlpi_tls_modid, 0};
                static_memory = static_cast<char*>(__tls_get_addr(start));
                static_bytes = library->dlpi_phdr[i].p_memsz;
            }
        return int{found};
    }, nullptr);
}

inline void note_failure(const char* format, ...) {
    if (failed) return;
    failed = true;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
}

inline void pause() { switch_context(threads[current].context, scheduler); }

template <class... Arguments> [[noreturn]] void fail(const char* format, Arguments... arguments) {
    note_failure(format, arguments...);
    pause();  // for good
    __builtin_unreachable();
}

// ------------------------------------------------------------------------------ the scheduler

inline void (*kernel_call)();

inline void run_thread() {
    kernel_call();
    threads[current].state = State::exited;
    pause();
    __builtin_unreachable();
}

inline void resume(int i) {
    current = i;
    threadIdx = threads[i].index;
    switch_context(scheduler, threads[i].context);
}

// Let the lanes that wait together with thread i do what they wait for, if all have come.
inline bool release_warp_operation(int i) {
    const Thread& one = threads[i];
    int first = i / 32 * 32, n_lanes = std::min(32, n_threads - first);
    void* data[32] = {};
    for (int lane = 0; lane < n_lanes; lane++) {
        const Thread& other = threads[first + lane];
        if (!(one.mask >> lane & 1) || other.state == State::exited) continue;
        if (other.state != State::at_warp_operation || other.line != one.line ||
            other.mask != one.mask || other.combine != one.combine)
            return false;
        data[lane] = other.data;
    }
    if (one.combine) one.combine(data);
    for (int lane = 0; lane < n_lanes; lane++)
        if (one.mask >> lane & 1 && threads[first + lane].state != State::exited)
            threads[first + lane].state = State::ready;
    return true;
}

inline void warp_operation(unsigned mask, Where where, Combine combine, void* data) {
    Thread& self = threads[current];
    if (!(mask >> current % 32 & 1))
        fail("line %u: lane %d is not in its own mask %08x", where.line(), current % 32, mask);
    self.state = State::at_warp_operation;
    self.line = where.line();
    self.mask = mask;
    self.combine = combine;
    self.data = data;
    if (!release_warp_operation(current) || failed) pause();
}

enum Order : unsigned { forward, reversed, shuffled };

// A permutation of 0..n-1: i -> (a i + b) mod n with a prime that does not divide n.
inline unsigned in_order(unsigned order, unsigned i, unsigned n) {
    if (order == reversed) return n - 1 - i;
    if (order == forward) return i;
    uint64_t factor = 7;
    for (uint64_t prime : {1009, 257, 61, 11})
        if (n % prime) factor = prime;
    if (n % factor == 0) factor = 1;
    return (factor * i + 5) % n;
}

inline bool run_warp(int first, unsigned order) {
    int n_lanes = std::min(32, n_threads - first);
    bool any = false;
    for (bool again = true; again;) {
        again = false;
        for (int k = 0; k < n_lanes; k++) {
            int i = first + in_order(order, k, n_lanes);
            if (threads[i].state == State::at_warp_operation) release_warp_operation(i);
            if (failed) return false;
            if (threads[i].state != State::ready) continue;
            resume(i);
            if (failed) return false;
            again = any = true;
        }
    }
    return any;
}

inline void report_deadlock() {
    for (int i = 0; i < n_threads; i++) {
        const Thread& one = threads[i];
        if (one.state == State::at_warp_operation)
            return note_failure("line %u: thread %d waits for lanes %08x of its warp, which do not "
                                "all come there", one.line, i, one.mask);
    }
    int waiting = 0;
    const Thread *first = nullptr, *other = nullptr;
    for (int i = 0; i < n_threads; i++) {
        const Thread& one = threads[i];
        if (one.state != State::at_barrier) continue;
        waiting++;
        if (!first) first = &one;
        if (one.line != first->line) other = &one;
    }
    if (other)
        note_failure("barrier divergence: threads wait at lines %u and %u", first->line,
                     other->line);
    else
        note_failure("barrier divergence: %d of %d threads wait at line %u, the others have exited",
                     waiting, n_threads, first->line);
}

inline bool release_barrier() {
    int votes = 0;
    for (int i = 0; i < n_threads; i++) {
        if (threads[i].state != State::at_barrier || threads[i].line != threads[0].line)
            return false;
        votes += threads[i].predicate;
    }
    barrier_votes = votes;
    for (int i = 0; i < n_threads; i++) threads[i].state = State::ready;
    return true;
}

inline uint64_t n_blocks_begun;

inline void run_block(unsigned order, unsigned shared_bytes, int fill) {
    n_blocks_begun++;
    if (static_bytes) memset(static_memory, fill, static_bytes);
    memset(dynamic_memory, fill, shared_bytes + spare_bytes);
    for (int i = 0; i < n_threads; i++) {
        threads[i].state = State::ready;
        threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                            i / (blockDim.x * blockDim.y)};
        // Staggered: stacks a power of two apart would compete for the same lines of the cache.
        size_t bytes = STACK_BYTES - i % 32 * 192;
        prepare_context(threads[i].context, stacks + i * STACK_BYTES, bytes, run_thread);
    }
    int n_warps = (n_threads + 31) / 32;
    for (;;) {
        bool any = false;
        for (int w = 0; w < n_warps; w++) {
            any |= run_warp(32 * in_order(order, w, n_warps), order);
            if (failed) return;
        }
        if (any || release_barrier()) continue;
        for (int i = 0; i < n_threads; i++)
            if (threads[i].state != State::exited) return report_deadlock();
        break;
    }
    for (size_t i = shared_bytes; i < shared_bytes + spare_bytes; i++)
        if (dynamic_memory[i] != static_cast<char>(fill))
            return note_failure("byte %zu of %u bytes of dynamic shared memory was written", i,
                                shared_bytes);
}

// --------------------------------------------------------------------------------- launching

struct Argument {
    void* value;     // an array's address, or that of a number
    char kind;       // NumPy's: 'f', 'i', 'u', 'b'; 'n' for a null pointer
    bool is_array, is_writable;
    int item_bytes;
    size_t bytes;    // of an array
};

struct Request {
    unsigned grid[3], block[3], shared_bytes, order, copies_at_once;
    int fill, n_arguments;
    const Argument* arguments;
};

template <class T> constexpr char kind_of() {
    if (std::is_floating_point_v<T>) return 'f';
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_integral_v<T>) return std::is_unsigned_v<T> ? 'u' : 'i';
    return 0;  // a vector
}

template <class T> bool fits(const Argument& given) {
    if constexpr (std::is_pointer_v<T>) {
        using Item = std::remove_pointer_t<T>;
        using Plain = std::remove_cv_t<Item>;
        if (given.kind == 'n') return true;
        if (!given.is_array || (!std::is_const_v<Item> && !given.is_writable)) return false;
        if constexpr (kind_of<Plain>() != 0)
            return given.kind == kind_of<Plain>() && given.item_bytes == sizeof(Plain);
        return true;
    } else {
        return !given.is_array && given.kind == kind_of<T>() && given.item_bytes == sizeof(T);
    }
}

template <class T> T argument(const Argument& given) {
    if constexpr (std::is_pointer_v<T>)
        return static_cast<T>(given.kind == 'n' ? nullptr : given.value);
    else
        return *static_cast<T*>(given.value);
}

inline const Request* running;
inline uintptr_t wild_address;
inline const char* wild_access;

inline void on_wild_pointer(int, siginfo_t* info, void* context) {
    wild_address = reinterpret_cast<uintptr_t>(info->si_addr);
    wild_access = "used";
#ifdef __x86_64__
    const auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    wild_access = registers[REG_ERR] & 2 ? "written" : "read";
#endif
    siglongjmp(wild_pointer, 1);
}

// Name the array that a thread has left.
inline void note_wild_pointer() {
    constexpr uintptr_t NEAR = 1 << 20;
    uintptr_t nearest = NEAR;
    const char* side = nullptr;
    int number = 0;
    for (int i = 0; i < running->n_arguments; i++) {
        const Argument& one = running->arguments[i];
        if (!one.is_array) continue;
        uintptr_t start = reinterpret_cast<uintptr_t>(one.value), end = start + one.bytes;
        uintptr_t distance = wild_address < start ? start - wild_address : wild_address - end;
        if (distance >= nearest) continue;
        nearest = distance, number = i, side = wild_address < start ? "before" : "after";
    }
    auto forbidden = reinterpret_cast<uintptr_t>(shared_pages) - SHARED_ROOM;
    if (shared_pages && wild_address - forbidden < 3 * SHARED_ROOM)
        note_failure("thread %d: memory %s the %u bytes of dynamic shared memory was %s", current,
                     wild_address < forbidden + SHARED_ROOM ? "before" : "after", dynamic_bytes,
                     wild_access);
    else if (side)
        note_failure("thread %d: memory %s argument %d was %s", current, side, number, wild_access);
    else
        note_failure("thread %d used a wild pointer, or divided by zero", current);
}

// Whether memory belongs to one of the kernel's arrays.
inline bool is_in_an_argument(const void* memory, size_t bytes) {
    for (int i = 0; i < running->n_arguments; i++) {
        const Argument& one = running->arguments[i];
        size_t offset = static_cast<const char*>(memory) - static_cast<const char*>(one.value);
        if (one.is_array && offset <= one.bytes && bytes <= one.bytes - offset) return true;
    }
    return false;
}

// CuPy compiles with -ftz=true: floats that are not normal are zeros, as operands and as results.
// (So are doubles here, below 1e-307.)
struct FlushToZero {
#ifdef __x86_64__
    unsigned before = __builtin_ia32_stmxcsr();
    FlushToZero() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushToZero() { __builtin_ia32_ldmxcsr(before); }
#endif
};

inline void run_grid(const Request& request) {
    struct sigaction action = {}, old_segv, old_bus, old_fpe;
    static char signal_stack[64 << 10];
    stack_t alternative = {}, old_stack;
    alternative.ss_sp = signal_stack;
    alternative.ss_size = sizeof signal_stack;
    sigaltstack(&alternative, &old_stack);
    action.sa_sigaction = on_wild_pointer;
    action.sa_flags = SA_ONSTACK | SA_SIGINFO;
    running = &request;
    place_dynamic_memory(request.shared_bytes, request.order != reversed);
    FlushToZero flushing;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    sigaction(SIGFPE, &action, &old_fpe);
    if (sigsetjmp(wild_pointer, 1) == 0) {
        unsigned n_blocks = gridDim.x * gridDim.y * gridDim.z;
        for (unsigned k = 0; k < n_blocks && !failed; k++) {
            unsigned i = in_order(request.order, k, n_blocks);
            blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / (gridDim.x * gridDim.y)};
            run_block(request.order, request.shared_bytes, request.fill);
        }
    } else {
        note_wild_pointer();
    }
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaction(SIGFPE, &old_fpe, nullptr);
    sigaltstack(&old_stack, nullptr);
    if (failed) {
        size_t length = strlen(message);
        snprintf(message + length, sizeof message - length,
                 " (block %u %u %u, thread %u %u %u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
    }
}

inline unsigned most_threads(unsigned threads = MAX_THREADS, ...) { return threads; }

inline void note_misfit(size_t i, const Argument& given) {
    const char* access = given.is_array && !given.is_writable ? ", read-only" : "";
    note_failure("argument %zu is %s of kind '%c' with %d bytes%s, which does not fit the kernel's "
                 "parameter", i, given.is_array ? "an array" : "a number", given.kind,
                 given.item_bytes, access);
}

template <class... P, size_t... I>
void take_arguments(std::tuple<P...>& values, const Argument* given, std::index_sequence<I...>) {
    ((fits<P>(given[I]) ? void(std::get<I>(values) = argument<P>(given[I]))
                        : note_misfit(I, given[I])),
     ...);
}

// Returns null, or what went wrong.
template <class... P>
const char* launch(void (*kernel)(P...), unsigned bound, const Request& request) {
    failed = false;
    const unsigned *g = request.grid, *b = request.block;
    find_static_memory();  // each thread that launches has its own
    if (!g[0] || !g[1] || !g[2] || g[0] > 0x7fffffff || g[1] > 65535 || g[2] > 65535)
        note_failure("a grid of %u x %u x %u blocks", g[0], g[1], g[2]);
    else if (uint64_t{b[0]} * b[1] * b[2] == 0 || uint64_t{b[0]} * b[1] * b[2] > bound || b[2] > 64)
        note_failure("a block of %u x %u x %u threads, at most %u", b[0], b[1], b[2], bound);
    else if (static_bytes > MAX_STATIC_SHARED || static_bytes + request.shared_bytes > MAX_SHARED)
        note_failure("%zu + %u bytes of shared memory", static_bytes, request.shared_bytes);
    else if (request.n_arguments != int{sizeof...(P)})
        note_failure("%d arguments for %d parameters", request.n_arguments, int{sizeof...(P)});
    if (failed) return message;
    static std::tuple<P...> values;
    static void (*called)(P...);
    called = kernel;
    take_arguments(values, request.arguments, std::index_sequence_for<P...>{});
    if (failed) return message;
    kernel_call = [] { std::apply(called, values); };
    if (!stacks)
        stacks = static_cast<char*>(mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    gridDim = {g[0], g[1], g[2]};
    blockDim = {b[0], b[1], b[2]};
    n_threads = b[0] * b[1] * b[2];
    run_grid(request);
    return failed ? message : nullptr;
}

// ------------------------------------------------------------------ what lanes do together

template <class T> struct Exchange {
    T value;
    int source;
    T result;
};

template <class T> void exchange_values(void* const* data) {
    for (int lane = 0; lane < 32; lane++) {
        if (!data[lane]) continue;
        auto& one = *static_cast<Exchange<T>*>(data[lane]);
        auto* other = static_cast<Exchange<T>*>(data[one.source]);
        if (other) one.result = other->value;
        else memset(&one.result, 0xff, sizeof(T));  // undefined: a lane that is not there
    }
}

template <class T> T exchange(unsigned mask, T value, int source, Where where) {
    static_assert(sizeof(T) <= 8 && std::is_arithmetic_v<T>);
    Exchange<T> one = {value, source, {}};
    warp_operation(mask, where, exchange_values<T>, &one);
    return one.result;
}

inline int lane() { return current % 32; }

template <class T, class F> T reduce(unsigned mask, T value, Where where, F) {
    struct Share { T value; } share = {value};
    warp_operation(mask, where, [](void* const* data) {
        T total = {};
        bool any = false;
        for (int i = 0; i < 32; i++) {
            if (!data[i]) continue;
            T v = static_cast<Share*>(data[i])->value;
            total = any ? F{}(total, v) : v;
            any = true;
        }
        for (int i = 0; i < 32; i++)
            if (data[i]) static_cast<Share*>(data[i])->value = total;
    }, &share);
    return share.value;
}

inline int vote_at_barrier(int predicate, Where where) {
    Thread& self = threads[current];
    self.state = State::at_barrier;
    self.line = where.line();
    self.predicate = predicate != 0;
    pause();
    return barrier_votes;
}

template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace cuda_on_cpu

// ------------------------------------------------------------------------- CUDA's functions

#define WHERE cuda_on_cpu::Where where = cuda_on_cpu::Where::current()
constexpr unsigned CUDA_ON_CPU_ALL = 0xffffffffu;

inline void __syncthreads(WHERE) { cuda_on_cpu::vote_at_barrier(0, where); }
inline int __syncthreads_count(int p, WHERE) { return cuda_on_cpu::vote_at_barrier(p, where); }
inline int __syncthreads_or(int p, WHERE) { return cuda_on_cpu::vote_at_barrier(p, where) > 0; }
inline int __syncthreads_and(int p, WHERE) {
    return cuda_on_cpu::vote_at_barrier(p, where) == cuda_on_cpu::n_threads;
}
inline void __syncwarp(unsigned mask = CUDA_ON_CPU_ALL, WHERE) {
    static int nothing;
    cuda_on_cpu::warp_operation(mask, where, nullptr, &nothing);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() {
    cuda_on_cpu::fail("trap");
    __builtin_unreachable();
}

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, WHERE) {
    int first = cuda_on_cpu::lane() & -width;
    return cuda_on_cpu::exchange(mask, v, first + (source & (width - 1)), where);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, WHERE) {
    int lane = cuda_on_cpu::lane(), source = lane - static_cast<int>(delta);
    return cuda_on_cpu::exchange(mask, v, source < (lane & -width) ? lane : source, where);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, WHERE) {
    int lane = cuda_on_cpu::lane(), source = lane + static_cast<int>(delta);
    return cuda_on_cpu::exchange(mask, v, source >= (lane & -width) + width ? lane : source, where);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32, WHERE) {
    int lane = cuda_on_cpu::lane(), source = lane ^ flip;
    return cuda_on_cpu::exchange(mask, v, source >= (lane & -width) + width ? lane : source, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, WHERE) {
    unsigned own = predicate ? 1u << cuda_on_cpu::lane() : 0;
    return cuda_on_cpu::reduce(mask, own, where, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, WHERE) {
    return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, WHERE) {
    return __ballot_sync(mask, !predicate, where) == 0;
}
template <class T> T __reduce_add_sync(unsigned mask, T v, WHERE) {
    static_assert(std::is_integral_v<T>);
    return cuda_on_cpu::reduce(mask, v, where, [](T a, T b) { return T(a + b); });
}
template <class T> T __reduce_max_sync(unsigned mask, T v, WHERE) {
    static_assert(std::is_integral_v<T>);
    return cuda_on_cpu::reduce(mask, v, where, [](T a, T b) { return a > b ? a : b; });
}
template <class T> T __reduce_min_sync(unsigned mask, T v, WHERE) {
    static_assert(std::is_integral_v<T>);
    return cuda_on_cpu::reduce(mask, v, where, [](T a, T b) { return a < b ? a : b; });
}

#define CUDA_ON_CPU_ATOMIC(name, expression)                                          \
    template <class T> T name(T* address, std::type_identity_t<T> value) {            \
        static_assert(std::is_integral_v<T>, "no atomics on floats: sums would vary"); \
        T old = *address;                                                             \
        *address = expression;                                                        \
        return old;                                                                   \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + value)
CUDA_ON_CPU_ATOMIC(atomicSub, old - value)
CUDA_ON_CPU_ATOMIC(atomicMax, old > value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicMin, old < value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicOr, old | value)
CUDA_ON_CPU_ATOMIC(atomicAnd, old & value)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ value)
CUDA_ON_CPU_ATOMIC(atomicExch, value)
CUDA_ON_CPU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    static_assert(std::is_integral_v<T>, "no atomics on floats: sums would vary");
    T old = *address;
    if (old == expected) *address = value;
    return old;
}

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> void __stcs(T* p, std::type_identity_t<T> v) { *p = v; }
template <class T> void __stcg(T* p, std::type_identity_t<T> v) { *p = v; }

inline int __float_as_int(float x) { return cuda_on_cpu::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::same_bits<double>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

template <std::integral T> T min(T a, T b) { return a < b ? a : b; }
template <std::integral T> T max(T a, T b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; i++) sum += uint8_t(a >> 8 * i) * uint8_t(b >> 8 * i);
    return sum;
}
inline unsigned __vsadu4(unsigned a, unsigned b) {
    unsigned sum = 0;
    for (int i = 0; i < 4; i++) {
        int difference = uint8_t(a >> 8 * i) - uint8_t(b >> 8 * i);
        sum += difference < 0 ? -difference : difference;
    }
    return sum;
}

// --------------------------------------------- what the compiler's sanitizers call when they find

namespace cuda_on_cpu {
struct Finding {
    const char* file;
    unsigned line, column;
};
}
extern "C" {
inline __attribute__((used)) void __ubsan_handle_out_of_bounds(void* data, unsigned long index) {
    cuda_on_cpu::fail("line %u: index %ld is out of bounds",
                      static_cast<cuda_on_cpu::Finding*>(data)->line, static_cast<long>(index));
}
inline __attribute__((used)) void __ubsan_handle_type_mismatch_v1(void* data, unsigned long p) {
    cuda_on_cpu::fail("line %u: address %lx is not aligned for its type",
                      static_cast<cuda_on_cpu::Finding*>(data)->line, p);
}
}
