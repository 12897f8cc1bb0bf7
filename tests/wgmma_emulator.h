/* What `wgmma.cuh` has, for `cuda_emulator.cpp`: barriers in shared memory, copies that arrive on them, and models of the
 * products of warpgroups, written after the PTX ISA's text and figures (Asynchronous Warpgroup Level Matrix
 * Multiply-Accumulate Instructions).
 *
 * Copies are made as late as they may be, when a thread waits for the phase that they complete, or, with the threads in their
 * other order, at once. Products are made when they are waited for, of what is in memory and in registers then.
 */
#pragma once

namespace emulator {
struct Bulk { void *to; const void *from; int size; };
struct Barrier {
    int number, arrivals, missing; Time phase; long expected, copied; std::vector<Bulk> late;
    std::shared_ptr<Known> arrived; /* what those who arrive hand on */
    std::shared_ptr<const Known> completed; /* and who waits for the phase gets */
};
struct Distant { int block; Access access; };
static std::map<uintptr_t, Barrier> at_address;
static std::vector<Distant> distant; /* what must have ended before a block may: bulk copies, and arrivals from others */

static void begin_run() {
    runs++;
    now = 1;
    at_address.clear();
    distant.clear();
}

static void end_run() {
    for (const Distant &each : distant) {
        bool ended = false;
        for (int i = 0; i < block_threads; i++)
            ended |= each.access.time < known(each.block * block_threads + i, each.access.who);
        const char *const what = each.access.who < count ? "an arrival in" : "a copy to";
        if (!ended) fail("a block ends before %s its shared memory has", what);
    }
}

/* Who uses it has to know that it was made. */
static Barrier &barrier_at(const void *address, const void *place) {
    const auto found = at_address.find((uintptr_t)address);
    if (found == at_address.end() || (uintptr_t)address % 8) fail("there is no barrier here");
    access_by_thread(address, 8, place, read_word);
    return found->second;
}

/* The same place in the shared memory of another block of the cluster. */
static unsigned char *in_block(const void *address, int block) {
    const long offset = (const unsigned char *)address - shared[block_of(current)];
    if (offset < 0 || offset >= SHARED) fail("this is not in the block's shared memory");
    if (block < 0 || block >= count / block_threads) fail("there is no such block");
    return shared[block] + offset;
}

static int block_in(const void *address) { return ((const unsigned char *)address - shared[0]) / SHARED; }

static bool completed(Barrier &barrier) {
    if (barrier.missing != 0 || barrier.expected != barrier.copied) return false;
    for (const Bulk &bulk : barrier.late) memcpy(bulk.to, bulk.from, bulk.size);
    barrier.late.clear();
    barrier.missing = barrier.arrivals;
    barrier.expected = barrier.copied = 0;
    barrier.arrived->until[arrivals_on(barrier.number)] = ++barrier.phase;
    barrier.completed = finished(std::make_shared<Known>(*barrier.arrived));
    events++;
    return true;
}

static void arrive(Barrier &barrier) {
    if (barrier.missing-- == 0) fail("too many threads arrive on a barrier");
    release(current, *barrier.arrived);
    now++;
    if (barrier.late.empty()) completed(barrier);
    events++;
}

static void copy_bulk(unsigned char *to, const void *from, int size, unsigned char *on, const void *place) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || size % 16 || size <= 0) fail("a copy is not aligned");
    Barrier &barrier = barrier_at(on, place);
    const Access copy = {arrivals_on(barrier.number), barrier.phase, place};
    access(to, size, copy, write_word);
    distant.push_back({block_in(to), copy});
    barrier.copied += size;
    if (early) memcpy(to, from, size);
    else barrier.late.push_back({to, from, size});
    events++;
}

/* A word of a matrix in shared memory whose rows' neighbours are side by side: eight rows follow each other, rows of 128, 64
 * or 32 bytes, and then the next eight are the stride away; bits 4 to 6 of an address are changed by bits 7 to 9. */
static const unsigned char *place_of(uint64_t descriptor, int row, int word) {
    const int mode = (int)(descriptor >> 62), bytes = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 0;
    const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (bytes == 0 || stride % (8 * bytes) || (start & ~(uint32_t)(bytes - 1)) % (8 * bytes))
        fail("a descriptor has no swizzled matrix at a multiple of eight rows");
    uint32_t address = start + row / 8 * stride + row % 8 * bytes + 4 * word;
    address ^= (address >> 7 & (bytes / 16 - 1)) << 4;
    return shared[block_of(current)] + address;
}

static uint32_t word_of(uint64_t descriptor, int row, int word) {
    uint32_t value;
    memcpy(&value, place_of(descriptor, row, word), 4);
    return value;
}

/* The threads of a warp have 16 rows; of the sums as `mma` does, for each eight columns. Row i of the right matrix is its
 * column i, as both have the neighbours of a sum side by side. */
template <float (*product)(uint32_t, uint32_t)> static void multiply(const Product &p) {
    const int lane = current % WARP, first = current % 128 / WARP * 16;
    for (int i = 0; i < p.columns / 2; i++) {
        const int row = first + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        for (int word = 0; word < 8; word++) p.sums[i] += product(word_of(p.left, row, word), word_of(p.right, column, word));
    }
}

/* The same with half of the left matrix: see `mma_sparse`. */
template <float (*number)(uint32_t, int)> static void multiply_sparse(const Product &p) {
    const int lane = current % WARP, first = current % 128 / WARP * 16;
    for (int i = 0; i < 2; i++)
        if (*p.places[i] != p.given[i]) fail("a register changes that a product may still read");
    for (int i = 0; i < p.columns / 2; i++) {
        const int lower = i / 2 % 2, row = first + lane / 4 + lower * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        for (int word = 0; word < 8; word++) {
            const uint32_t left = word_of(p.left, row, word), kept = *p.places[word / 4] >> (16 * lower + 4 * (word % 4));
            if ((kept & 3) >= (kept >> 2 & 3)) fail("places are not in order");
            for (int which = 0; which < 2; which++) {
                const int at = 4 * word + (kept >> 2 * which & 3);
                p.sums[i] += number(left, which) * number(word_of(p.right, column, at / 2), at % 2);
            }
        }
    }
}

static uint64_t descriptor_of(const void *from, uint32_t layout) {
    return (uint64_t)layout << 32 | (uint64_t)(((const unsigned char *)from - shared[block_of(current)]) & 0x3ffff) >> 4;
}

/* Begins a product: what the warp reads, its lanes look at by turns. Where the left matrix is sparse, lanes 4 r and 4 r + 1
 * have the places for the rows of lanes 4 r to 4 r + 3. */
static void begin(
    void (*how)(const Product &), float *sums, uint64_t left, uint64_t right, const uint *places, int columns, const void *place
) {
    const int lane = current % WARP, next = current / 128 * 128;
    memcpy(words[current], &left, 8);
    memcpy(words[current] + 2, &right, 8);
    memcpy(words[current] + 4, &places, 8);
    wait(FOR_WARP);
    if (memcmp(words[current], words[current - lane], 16)) fail("lanes differ in factors");
    if (next + 128 > (block_of(current) + 1) * block_threads) fail("this is no warpgroup");
    Thread &thread = threads[current];
    const Access read = {products_of(current), (Time)thread.product_groups, place};
    for (int row = lane; row < 16 + columns; row += WARP)
        for (int word = 0; word < (places != NULL && row >= 16 ? 16 : 8); word++)
            access(row < 16 ? place_of(left, current % 128 / WARP * 16 + row, word) : place_of(right, row - 16, word), 4, read,
                   read_word);
    thread.products.push_back({how, sums, left, right, columns, thread.product_groups});
    for (int i = 0; places != NULL && i < 2; i++) {
        Product &product = thread.products.back();
        memcpy(product.places + i, words[current - lane % 4 + i] + 4, 8);
        product.given[i] = *product.places[i];
    }
    wait(FOR_WARP);
}

void cluster_barrier() { wait(FOR_CLUSTER); }

void arrive_on_barrier(void *barrier, int block) {
    unsigned char *const there = in_block(barrier, block);
    if (block != block_of(current)) distant.push_back({block, {current, now, NULL}});
    arrive(barrier_at(there, __builtin_return_address(0)));
}

void wait_for_barrier(void *address, int parity) {
    Barrier &barrier = barrier_at(address, __builtin_return_address(0));
    while ((int)(barrier.phase % 2) == parity && !completed(barrier)) wait(FOR_BARRIER);
    if (barrier.completed == NULL) return;
    const std::shared_ptr<Known> known = std::make_shared<Known>(*threads[current].known);
    join(*known, *barrier.completed);
    threads[current].known = finished(known);
}

/* Makes those of all groups but the last `pending`. */
void wait_for_products(int pending) {
    Thread &thread = threads[current];
    thread.multiplied = std::max(thread.multiplied, thread.product_groups - pending);
    std::vector<Product> later;
    for (const Product &p : thread.products) {
        if (p.group >= thread.product_groups - pending) later.push_back(p);
        else p.multiply(p);
    }
    thread.products = later;
    wait(FOR_WARP); /* all lanes' products are made */
}
}  // namespace emulator

void lwc_barrier_init(void *barrier, int arrivals) {
    using namespace emulator;
    access_by_thread(barrier, 8, __builtin_return_address(0), write_word);
    const int number = at_address.size();
    if (number >= MOST_BARRIERS) fail("there are too many barriers");
    at_address[(uintptr_t)barrier] = {number, arrivals, arrivals, 0, 0, 0, {}, nothing_known(), NULL};
}

void lwc_barrier_expect(void *barrier, int bytes) {
    emulator::Barrier &found = emulator::barrier_at(barrier, __builtin_return_address(0));
    found.expected += bytes;
    emulator::arrive(found);
}

void lwc_copy_bulk_to_all(void *to, const void *from, int bytes, void *barrier, int mask) {
    using namespace emulator;
    for (int block = 0; mask >> block; block++)
        if (mask >> block & 1)
            copy_bulk(in_block(to, block), from, bytes, in_block(barrier, block), __builtin_return_address(0));
}

void lwc_copy_bulk(void *to, const void *from, int bytes, void *barrier) {
    emulator::copy_bulk((unsigned char *)to, from, bytes, (unsigned char *)barrier, __builtin_return_address(0));
}

void lwc_wgmma_commit() { emulator::threads[emulator::current].product_groups++; }

#define LWC_PRODUCT(name, columns) \
    void lwc_wgmma_##name##_##columns(float *sums, const void *left, const void *right, uint layout) { \
        emulator::begin(emulator::multiply<emulator::name>, sums, emulator::descriptor_of(left, layout), \
                        emulator::descriptor_of(right, layout), NULL, columns, __builtin_return_address(0)); \
    }
#define LWC_SPARSE_PRODUCT(name, number, columns) \
    void lwc_wgmma_sparse_##name##_##columns( \
        float *sums, const void *left, const void *right, uint left_layout, uint right_layout, const uint *places \
    ) { \
        emulator::begin(emulator::multiply_sparse<emulator::number>, sums, emulator::descriptor_of(left, left_layout), \
                        emulator::descriptor_of(right, right_layout), places, columns, __builtin_return_address(0)); \
    }
#define LWC_PRODUCTS(columns) \
    LWC_PRODUCT(tf32, columns) LWC_PRODUCT(float16, columns) LWC_PRODUCT(bfloat16, columns) \
    LWC_SPARSE_PRODUCT(float16, from_half, columns) LWC_SPARSE_PRODUCT(bfloat16, from_bfloat, columns)
LWC_PRODUCTS(64)
LWC_PRODUCTS(96)
LWC_PRODUCTS(128)
LWC_PRODUCTS(176)
LWC_PRODUCTS(192)
LWC_PRODUCTS(256)
