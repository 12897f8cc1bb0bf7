/* Runs CUDA C++ as lwc writes it on a processor, block by block, or cluster by cluster: a thread is a context of its own,
 * which goes on until it waits for its warp, its block or its cluster. A block in which some threads wait for more than the
 * others do aborts the program.
 *
 * Threads take their turns from the first to the last, or the other way round: what depends on it is a race. Functions on
 * tensor cores are models of the instructions, written after the PTX ISA's figures of fragments.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __restrict__

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
struct uint3 { uint x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
struct alignas(8) ushort4 { ushort x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }
using std::max;
using std::min;
#define CUDART_INF_F INFINITY

static uint3 threadIdx, blockIdx;
#define lwc_shared (emulator::shared[emulator::block_of(emulator::current)]) /* what a launch asks for */

namespace emulator {
enum { WARP = 32, MOST = 2048, STACK = 1 << 16, MOST_BLOCKS = 4, SHARED = 1 << 18 };
enum Wait { NOTHING, FOR_WARP, FOR_BLOCK, FOR_CLUSTER, FOR_BARRIER, DONE };
struct Copy { void *to; const void *from; int size, group; };
struct Product { void (*multiply)(const Product &); float *sums; uint64_t left, right; int columns, group; };
struct Thread {
    ucontext_t context; Wait wait; uint3 index, block; std::vector<Copy> copies; int groups, waits;
    std::vector<Product> products; int product_groups;
};
static Thread threads[MOST];
alignas(1024) static unsigned char shared[MOST_BLOCKS][SHARED];
static char stacks[MOST][STACK];
static ucontext_t scheduler;
static int count, current; /* threads of a cluster; the one that runs */
static int block_threads;
static int events; /* what threads do that others may wait for */
static bool early; /* copies to a block's shared memory are made at once, and not as late as they may be */
static uint32_t words[MOST][9]; /* what lanes show each other */

static void wait(Wait what) {
    threads[current].wait = what;
    swapcontext(&threads[current].context, &scheduler);
}

static void (*body)();
static void start() {
    body();
    if (threads[current].waits != 1) { fprintf(stderr, "a thread does not wait for its inputs once\n"); abort(); }
    threads[current].wait = DONE;
}

static int block_of(int thread) { return thread / block_threads; }

static void resume(int thread) {
    current = thread;
    threadIdx = threads[thread].index;
    blockIdx = threads[thread].block;
    swapcontext(&scheduler, &threads[thread].context);
}

/* How many threads from `first` on wait for something. */
static int waiting(int first, int size, Wait what) {
    int found = 0;
    for (int i = first; i < first + size; i++) found += threads[i].wait == what;
    return found;
}

/* Which thread copies to a word, and after how many barriers of the block it started. */
static std::unordered_map<uintptr_t, std::pair<int, int>> copied;
static int barriers;

static void resume_all(int first, int size, bool backwards) {
    for (int i = 0; i < size; i++) resume(backwards ? first + size - 1 - i : first + i);
}

/* Resumes the threads that wait for nothing, or for what others do one by one, or else whole warps; none: false. */
static bool resume_warps(bool backwards) {
    bool moved = false;
    const int before = events;
    for (int first = 0; first < count; first += WARP) {
        const int size = std::min<int>(WARP, count - first), warp = waiting(first, size, FOR_WARP);
        const int nothing = waiting(first, size, NOTHING);
        if (nothing + waiting(first, size, FOR_BARRIER) > 0) {
            for (int i = 0; i < size; i++) {
                const int thread = backwards ? first + size - 1 - i : first + i;
                if (threads[thread].wait == NOTHING || threads[thread].wait == FOR_BARRIER) resume(thread);
            }
            moved |= nothing > 0 || waiting(first, size, FOR_BARRIER) == 0;
        } else if (warp != 0) {
            if (warp != size) { fprintf(stderr, "lanes of a warp diverge\n"); abort(); }
            resume_all(first, size, backwards);
            moved = true;
        }
    }
    return moved || events != before;
}

static void run_cluster(uint3 size, const uint3 *blocks, int cluster, bool backwards) {
    block_threads = (int)(size.x * size.y * size.z);
    count = block_threads * cluster;
    early = backwards;
    if (count > MOST || cluster > MOST_BLOCKS) { fprintf(stderr, "a cluster has too many threads\n"); abort(); }
    for (int i = 0; i < count; i++) {
        Thread &thread = threads[i];
        const uint number = i % block_threads;
        thread.wait = NOTHING;
        thread.copies.clear();
        thread.products.clear();
        thread.groups = thread.waits = thread.product_groups = 0;
        thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
        thread.block = blocks[block_of(i)];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks[i];
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        makecontext(&thread.context, start, 0);
    }
    while (waiting(0, count, DONE) < count) {
        if (resume_warps(backwards)) continue;
        bool moved = false;
        for (int first = 0; first < count; first += block_threads) {
            if (waiting(first, block_threads, FOR_BLOCK) != block_threads) continue;
            barriers++;
            moved = true;
            resume_all(first, block_threads, backwards);
        }
        if (moved) continue;
        if (waiting(0, count, FOR_CLUSTER) != count) { fprintf(stderr, "threads miss a barrier\n"); abort(); }
        resume_all(0, count, backwards);
    }
    barriers++;
}

static void launch(const unsigned *grid, const unsigned *block, int cluster, bool backwards) {
    const unsigned all = grid[0] * grid[1] * grid[2] / cluster;
    for (unsigned i = 0; i < all; i++) {
        uint3 blocks[MOST_BLOCKS];
        for (int rank = 0; rank < cluster; rank++) {
            const unsigned at = (backwards ? all - 1 - i : i) * cluster + rank;
            blocks[rank] = {at % grid[0], at / grid[0] % grid[1], at / (grid[0] * grid[1])};
        }
        run_cluster({block[0], block[1], block[2]}, blocks, cluster, backwards);
    }
}

static void start_copy(void *to, const void *from, int exists, int size) {
    if ((uintptr_t)to % size || (uintptr_t)from % size) { fprintf(stderr, "a copy is not aligned\n"); abort(); }
    for (uintptr_t word = (uintptr_t)to; word < (uintptr_t)to + size; word += 4) {
        const auto found = copied.find(word);
        if (found != copied.end() && found->second.first != current && found->second.second == barriers) {
            fprintf(stderr, "two threads copy to the same place\n");
            abort();
        }
        copied[word] = {current, barriers};
    }
    threads[current].copies.push_back({to, exists ? from : NULL, size, threads[current].groups});
}

/* Those of all groups but the last `pending`. */
static void make_copies(int pending) {
    Thread &thread = threads[current];
    std::vector<Copy> later;
    for (const Copy &copy : thread.copies) {
        if (copy.group >= thread.groups - pending) later.push_back(copy);
        else if (copy.from != NULL) memcpy(copy.to, copy.from, copy.size);
        else memset(copy.to, 0, copy.size);
    }
    thread.copies = later;
}

static float from_half(uint32_t word, int high) {
    _Float16 value;
    const uint16_t bits = (uint16_t)(high ? word >> 16 : word);
    memcpy(&value, &bits, 2);
    return (float)value;
}
static float from_bfloat(uint32_t word, int high) { return __int_as_float((int)(high ? word & 0xffff0000u : word << 16)); }

/* The product of two words of the sums: of one pair of numbers or of two. */
static float tf32(uint32_t a, uint32_t b) {
    return __int_as_float((int)(a & 0xffffe000u)) * __int_as_float((int)(b & 0xffffe000u));
}
static float float16(uint32_t a, uint32_t b) {
    return from_half(a, 0) * from_half(b, 0) + from_half(a, 1) * from_half(b, 1);
}
static float bfloat16(uint32_t a, uint32_t b) {
    return from_bfloat(a, 0) * from_bfloat(b, 0) + from_bfloat(a, 1) * from_bfloat(b, 1);
}

/* Lane 4 r + c has of the left fragment the words (r, c), (r + 8, c), (r, c + 4), (r + 8, c + 4), of the right one
 * (c, r), (c + 4, r), and of the sums (r, 2 c), (r, 2 c + 1), (r + 8, 2 c), (r + 8, 2 c + 1). */
static void mma(float *sums, const uint32_t *a, const uint32_t *b, float (*product)(uint32_t, uint32_t)) {
    const int lane = current % WARP, first = current - lane;
    memcpy(words[current], a, 16);
    memcpy(words[current] + 4, b, 8);
    wait(FOR_WARP);
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const uint32_t left = words[first + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
            const uint32_t right = words[first + column * 4 + k % 4][4 + k / 4];
            sums[i] += product(left, right);
        }
    }
    wait(FOR_WARP);
}

/* The same with half of the left matrix: word c of a row has two of its columns 4 c to 4 c + 3. Of row r,
 * lane 4 r has the places for words 0 to 3 and lane 4 r + 1 those for 4 to 7, 4 bits each; the high halves are of
 * row r + 8. The right fragment has 16 words: lane 4 r + c has (c, r), (c + 4, r), (c + 8, r), (c + 12, r). */
static void mma_sparse(
    float *sums, const uint32_t *a, const uint32_t *b, uint32_t places, float (*number)(uint32_t, int)
) {
    const int lane = current % WARP, first = current - lane;
    memcpy(words[current], a, 16);
    memcpy(words[current] + 4, b, 16);
    words[current][8] = places;
    wait(FOR_WARP);
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const uint32_t left = words[first + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
            const uint32_t kept = words[first + row % 8 * 4 + k / 4][8] >> (row / 8 * 16 + k % 4 * 4);
            if ((kept & 3) >= (kept >> 2 & 3)) { fprintf(stderr, "places are not in order\n"); abort(); }
            for (int which = 0; which < 2; which++) {
                const int at = 4 * k + (kept >> 2 * which & 3), word = at / 2;
                sums[i] += number(left, which) * number(words[first + column * 4 + word % 4][4 + word / 4], at % 2);
            }
        }
    }
    wait(FOR_WARP);
}

static uint32_t shuffle(uint32_t value, int from) {
    const int first = current - current % WARP;
    words[current][0] = value;
    wait(FOR_WARP);
    const uint32_t result = words[first + from][0];
    wait(FOR_WARP);
    return result;
}
}  // namespace emulator

static inline void __syncthreads() { emulator::wait(emulator::FOR_BLOCK); }

template <typename T> static T __shfl_down_sync(unsigned, T value, unsigned by, int = 32) {
    const int lane = emulator::current % 32;
    uint32_t bits;
    static_assert(sizeof(T) == 4);
    memcpy(&bits, &value, 4);
    bits = emulator::shuffle(bits, lane + (int)by < 32 ? lane + (int)by : lane);
    memcpy(&value, &bits, 4);
    return value;
}
template <typename T> static T __shfl_sync(unsigned, T value, int from, int = 32) {
    uint32_t bits;
    static_assert(sizeof(T) == 4);
    memcpy(&bits, &value, 4);
    bits = emulator::shuffle(bits, from % 32);
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __activemask() { return 0xffffffffu; }

/* Kernels run one after the other. */
static void lwc_launch_next() {}
static void lwc_inputs_ready() { emulator::threads[emulator::current].waits++; }

/* Asynchronous copies are made as late as they may be: when a thread waits for their group. */
static void lwc_copy_4(void *to, const void *from, int exists) { emulator::start_copy(to, from, exists, 4); }
static void lwc_copy_8(void *to, const void *from, int exists) { emulator::start_copy(to, from, exists, 8); }
static void lwc_copy_16(void *to, const void *from, int exists) { emulator::start_copy(to, from, exists, 16); }
static void lwc_read_8(void *to, const void *from) { memcpy(to, from, 8); }
static void lwc_read_16(void *to, const void *from) { memcpy(to, from, 16); }
static void lwc_commit() { emulator::threads[emulator::current].groups++; }
static void lwc_wait_0() { emulator::make_copies(0); }
static void lwc_wait_1() { emulator::make_copies(1); }

static inline float lwc_low_float16(uint word) { return emulator::from_half(word, 0); }
static inline float lwc_high_float16(uint word) { return emulator::from_half(word, 1); }
static inline float lwc_low_bfloat16(uint word) { return emulator::from_bfloat(word, 0); }
static inline float lwc_high_bfloat16(uint word) { return emulator::from_bfloat(word, 1); }
static inline uint lwc_round_tf32(float value) {
    uint bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x1000u) & 0xffffe000u;
}
static inline uint lwc_round_float16(float low, float high) {
    const _Float16 halves[] = {(_Float16)low, (_Float16)high};
    uint word;
    memcpy(&word, halves, 4);
    return word;
}
static inline uint lwc_round_bfloat16(float low, float high) {
    uint bits[2];
    memcpy(&bits[0], &low, 4);
    memcpy(&bits[1], &high, 4);
    for (uint &each : bits) each = (each + 0x7fffu + (each >> 16 & 1)) >> 16;
    return bits[0] | bits[1] << 16;
}
static void lwc_mma_tf32(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::tf32); }
static void lwc_mma_float16(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::float16); }
static void lwc_mma_sparse_float16(float *d, const uint *a, const uint *b, uint places) {
    emulator::mma_sparse(d, a, b, places, emulator::from_half);
}
static void lwc_mma_sparse_bfloat16(float *d, const uint *a, const uint *b, uint places) {
    emulator::mma_sparse(d, a, b, places, emulator::from_bfloat);
}
static void lwc_mma_bfloat16(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::bfloat16); }

#include "wgmma_emulator.h"
