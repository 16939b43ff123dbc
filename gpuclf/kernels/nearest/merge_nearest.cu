// A tile of distances into the k nearest of each row so far, ordered by (distance, index).
//
// Fused: the selection from the tile, the merge with the list, and its order. The shared body sorts
// each row of a tile, gathers k of it, and sorts them together with the list; this reads the tile
// once, 4 bytes a pair, and the list, and writes the list.
//
// Launch: a warp for each row, MERGE_WARPS a block; the list lies in its lanes' registers, SLOTS
// entries each, sorted, and AHEAD loads of each lane are under way at a time. Columns come in
// ascending order and only a smaller distance than the k-th displaces one, behind those that equal
// it: that is the order by (distance, index). Of random distances some k ln(M / k) are inserted in
// a row.
//
// The wrapper (on_gpu.py) declines k > 128. Does not help: few rows, which leave most of
// the device idle. Distances that fall from column to column are all inserted, some 25 instructions
// each for k <= 32: slow, and correct.
//
// SLOTS: k / 32, rounded up.
//
// check: registers<=64 SLOTS=1
// check: registers<=64 SLOTS=4

constexpr unsigned ALL = 0xffffffffu;
constexpr int MERGE_WARPS = 4;
constexpr int AHEAD = 8;  // loads of a lane under way
constexpr int FARTHEST = 0x7fffffff;  // no sum of squares or differences of bytes equals it

// Entry 32 slot + lane of the list. `first_column` is the index of the tile's first column; nothing
// is read from `nearest` and `indices` if it is 0.
extern "C" __global__ void __launch_bounds__(32 * MERGE_WARPS)
merge_nearest(const int* __restrict__ distances, int* __restrict__ nearest,
              int* __restrict__ indices, int n_rows, int n_columns, int first_column, int k) {
    const int lane = threadIdx.x % 32;
    const int row = blockIdx.x * MERGE_WARPS + threadIdx.x / 32;
    if (row >= n_rows) return;
    distances += static_cast<long long>(row) * n_columns;
    nearest += static_cast<long long>(row) * k;
    indices += static_cast<long long>(row) * k;
    int distance[SLOTS], index[SLOTS];
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int entry = 32 * slot + lane;
        const bool exists = first_column > 0 && entry < k;
        distance[slot] = exists ? nearest[entry] : FARTHEST;
        index[slot] = exists ? indices[entry] : 0;
    }
    const int last_lane = (k - 1) % 32;  // of the k-th entry, in the last slot
    int limit = __shfl_sync(ALL, distance[SLOTS - 1], last_lane);

    for (int start = 0; start < n_columns; start += 32 * AHEAD) {
        int found[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int column = start + 32 * i + lane;
            found[i] = column < n_columns ? distances[column] : FARTHEST;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            unsigned candidates = __ballot_sync(ALL, found[i] < limit);
#pragma unroll 1
            while (candidates) {
                const int source = __ffs(candidates) - 1;
                candidates &= candidates - 1;
                const int candidate = __shfl_sync(ALL, found[i], source);
                if (candidate >= limit) continue;  // the limit has come down since
                int position = 0;
#pragma unroll
                for (int slot = 0; slot < SLOTS; ++slot)
                    position += __popc(__ballot_sync(ALL, distance[slot] <= candidate));
#pragma unroll
                for (int slot = SLOTS - 1; slot >= 0; --slot) {
                    const int entry = 32 * slot + lane;
                    int moved = __shfl_up_sync(ALL, distance[slot], 1);
                    int moved_index = __shfl_up_sync(ALL, index[slot], 1);
                    if (slot > 0) {
                        const int carried = __shfl_sync(ALL, distance[max(slot - 1, 0)], 31);
                        const int carried_index = __shfl_sync(ALL, index[max(slot - 1, 0)], 31);
                        moved = lane == 0 ? carried : moved;
                        moved_index = lane == 0 ? carried_index : moved_index;
                    }
                    if (entry > position) {
                        distance[slot] = moved;
                        index[slot] = moved_index;
                    } else if (entry == position) {
                        distance[slot] = candidate;
                        index[slot] = first_column + start + 32 * i + source;
                    }
                }
                limit = __shfl_sync(ALL, distance[SLOTS - 1], last_lane);
            }
        }
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int entry = 32 * slot + lane;
        if (entry < k) nearest[entry] = distance[slot], indices[entry] = index[slot];
    }
}
