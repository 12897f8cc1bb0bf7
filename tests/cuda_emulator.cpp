/* Runs CUDA C++ as lwc writes it on a processor, block by block, or cluster by cluster: a thread is a context of its own,
 * which goes on until it waits for its warp, its block or its cluster. A block in which some threads wait for more than the
 * others do is wrong, and so is what nothing orders in shared memory (`shared_hazards.h`) or in the GPU's
 * (`memory_hazards.h`).
 *
 * Threads take their turns from the first to the last, or the other way round. Functions on tensor cores are models of the
 * instructions, written after the PTX ISA's figures of fragments.
 */
#include "cuda_emulator.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;

namespace emulator {
enum { WARP = 32, MOST = 2048, STACK = 1 << 16, MOST_BLOCKS = 4, SHARED = 1 << 18 };
enum Wait { NOTHING, FOR_WARP, FOR_BLOCK, FOR_CLUSTER, FOR_BARRIER, DONE };
struct Copy { void *to; const void *from; int size, group; };
struct Product {
    void (*multiply)(const Product &); float *sums; uint64_t left, right; int columns, group;
    const uint *places[2]; /* registers of the lanes that have them for the thread's rows, and what they held */
    uint given[2];
};
struct Known;
struct Thread {
    ucontext_t context; Wait wait; uint3 index, block;
    int waits; bool ready; /* for its inputs: how often it waited, and that they are there */
    std::vector<Copy> copies; int groups, copied; /* groups that were ended, and that were waited for */
    std::vector<Product> products; int product_groups, multiplied;
    std::shared_ptr<const Known> known;
};
struct Failed {};
int left_out;
static Thread threads[MOST];
alignas(1024) static unsigned char shared[MOST_BLOCKS][SHARED];
static char stacks[MOST][STACK];
static ucontext_t scheduler;
static int count, current; /* threads of a cluster; the one that runs */
static int block_threads;
static int events; /* what threads do that others may wait for */
static bool early; /* copies to a block's shared memory are made at once, and not as late as they may be */
static uint32_t words[MOST][9]; /* what lanes show each other */
static std::string failure; /* what is wrong: nothing is run any more */
static bool in_thread;

[[noreturn]] static void fail(const char *format, ...) {
    char text[1000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    failure = text;
    if (in_thread) setcontext(&scheduler);
    throw Failed();
}

static const char *library_start() {
    Dl_info found;
    dladdr(threads, &found);
    return (const char *)found.dli_fbase;
}

static void wait(Wait what) {
    threads[current].wait = what;
    swapcontext(&threads[current].context, &scheduler);
}

static void (*body)();
static void start() {
    body();
    if (threads[current].waits != 1) fail("a thread does not wait for its inputs once");
    threads[current].wait = DONE;
}

static int block_of(int thread) { return thread / block_threads; }

static void resume(int thread) {
    current = thread;
    threadIdx = threads[thread].index;
    blockIdx = threads[thread].block;
    in_thread = true;
    swapcontext(&scheduler, &threads[thread].context);
    in_thread = false;
    if (!failure.empty()) throw Failed();
}

}  // namespace emulator

#include "memory_hazards.h"
#include "shared_hazards.h"

namespace emulator {
unsigned char *shared_memory() { return shared[block_of(current)]; }

void warp_barrier() {
    wait(FOR_WARP);
    if (current % WARP == 0) order(current, WARP);
    wait(FOR_WARP);
}

void wait_for_inputs(bool left_out) {
    threads[current].waits++;
    threads[current].ready = !left_out;
}

void block_barrier() { wait(FOR_BLOCK); }

/* It is made as late as it may be: when the thread waits for its group. */
static void start_copy(void *to, const void *from, int exists, int size, const void *place) {
    if ((uintptr_t)to % size || (uintptr_t)from % size) fail("a copy is not aligned");
    Thread &thread = threads[current];
    access(to, size, {copies_of(current), (Time)thread.groups, place}, write_word);
    if (exists) access_memory(from, size, place, false);
    thread.copies.push_back({to, exists ? from : NULL, size, thread.groups});
}

/* Those of all groups but the last `pending`. */
void wait_for_copies(int pending) {
    Thread &thread = threads[current];
    thread.copied = std::max(thread.copied, thread.groups - pending);
    std::vector<Copy> later;
    for (const Copy &copy : thread.copies) {
        if (copy.group >= thread.groups - pending) later.push_back(copy);
        else if (copy.from != NULL) memcpy(copy.to, copy.from, copy.size);
        else memset(copy.to, 0, copy.size);
    }
    thread.copies = later;
}

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

/* What a word of half of the left matrix adds to a sum, with its places and two words of the right one: in 16 bits it has
 * two of four numbers, in tf32 one of two, of which the places are those of its halves. */
template <float (*number)(uint32_t, int)>
static float two_of_four(uint32_t left, const uint32_t *right, uint32_t places) {
    const int first = places & 3, second = places >> 2;
    if (first >= second) fail("places are not in order");
    return number(left, 0) * number(right[first / 2], first % 2) + number(left, 1) * number(right[second / 2], second % 2);
}
static float one_of_two(uint32_t left, const uint32_t *right, uint32_t places) {
    if (places != 0x4 && places != 0xe) fail("places are not those of a word");
    return tf32(left, right[places == 0xe]);
}

/* The same with half of the left matrix: word c of a row is of the words 2 c and 2 c + 1 of the right one. Of row r,
 * lane 4 r has the places for words 0 to 3 and lane 4 r + 1 those for 4 to 7, 4 bits each; the high halves are of
 * row r + 8. The right fragment has 16 words: lane 4 r + c has (c, r), (c + 4, r), (c + 8, r), (c + 12, r). */
static void mma_sparse(
    float *sums, const uint32_t *a, const uint32_t *b, uint32_t places,
    float (*product)(uint32_t, const uint32_t *, uint32_t)
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
            uint32_t right[2];
            for (int word = 2 * k; word < 2 * k + 2; word++)
                right[word % 2] = words[first + column * 4 + word % 4][4 + word / 4];
            sums[i] += product(left, right, kept & 15);
        }
    }
    wait(FOR_WARP);
}

int lane() { return current % WARP; }

uint32_t shuffle(uint32_t value, int from) {
    const int first = current - current % WARP;
    words[current][0] = value;
    wait(FOR_WARP);
    const uint32_t result = words[first + from][0];
    wait(FOR_WARP);
    return result;
}
}  // namespace emulator

#include "wgmma_emulator.h"

namespace emulator {
/* How many threads from `first` on wait for something. */
static int waiting(int first, int size, Wait what) {
    int found = 0;
    for (int i = first; i < first + size; i++) found += threads[i].wait == what;
    return found;
}

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
            if (warp != size) fail("lanes of a warp diverge");
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
    if (count > MOST || cluster > MOST_BLOCKS) fail("a cluster has too many threads");
    begin_run();
    const std::shared_ptr<const Known> nothing = nothing_known();
    for (int i = 0; i < count; i++) {
        Thread &thread = threads[i];
        const uint number = i % block_threads;
        thread.wait = NOTHING;
        thread.ready = false;
        thread.copies.clear();
        thread.products.clear();
        thread.groups = thread.copied = thread.waits = thread.product_groups = thread.multiplied = 0;
        thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
        thread.block = blocks[block_of(i)];
        thread.known = nothing;
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
            moved = true;
            order(first, block_threads);
            resume_all(first, block_threads, backwards);
        }
        if (moved) continue;
        if (waiting(0, count, FOR_CLUSTER) != count) fail("threads miss a barrier");
        order(0, count);
        resume_all(0, count, backwards);
    }
    end_run();
}

static void launch_all(const unsigned *grid, const unsigned *block, int cluster, bool backwards) {
    const unsigned all = grid[0] * grid[1] * grid[2] / cluster;
    for (unsigned i = 0; i < all; i++) {
        uint3 blocks[MOST_BLOCKS];
        for (int rank = 0; rank < cluster; rank++) {
            const unsigned at = (backwards ? all - 1 - i : i) * cluster + rank;
            blocks[rank] = {at % grid[0], at / grid[0] % grid[1], at / (grid[0] * grid[1])};
        }
        first_thread = i * cluster * block[0] * block[1] * block[2];
        run_cluster({block[0], block[1], block[2]}, blocks, cluster, backwards);
    }
}

/* What is wrong with a launch, or NULL: `without` is the line that is left out, 0 for none. */
const char *launch(
    void (*kernel)(), const unsigned *grid, const unsigned *block, int cluster, bool overlaps, bool backwards, int without
) {
    body = kernel;
    left_out = without;
    launches++;
    if (!overlaps) running = launches;
    failure.clear();
    try {
        launch_all(grid, block, cluster, backwards);
    } catch (const Failed &) {
        return failure.c_str();
    }
    return NULL;
}
}  // namespace emulator

void lwc_launch_next() {}

#define LWC_COPY(size) \
    void lwc_copy_##size(void *to, const void *from, int exists) { \
        emulator::start_copy(to, from, exists, size, __builtin_return_address(0)); \
    }
LWC_COPY(4)
LWC_COPY(8)
LWC_COPY(16)
void lwc_commit() { emulator::threads[emulator::current].groups++; }

void lwc_mma_tf32(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::tf32); }
void lwc_mma_float16(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::float16); }
void lwc_mma_bfloat16(float *d, const uint *a, const uint *b) { emulator::mma(d, a, b, emulator::bfloat16); }
void lwc_mma_sparse_float16(float *d, const uint *a, const uint *b, uint places) {
    emulator::mma_sparse(d, a, b, places, emulator::two_of_four<emulator::from_half>);
}
void lwc_mma_sparse_bfloat16(float *d, const uint *a, const uint *b, uint places) {
    emulator::mma_sparse(d, a, b, places, emulator::two_of_four<emulator::from_bfloat>);
}
void lwc_mma_sparse_tf32(float *d, const uint *a, const uint *b, uint places) {
    emulator::mma_sparse(d, a, b, places, emulator::one_of_two);
}
