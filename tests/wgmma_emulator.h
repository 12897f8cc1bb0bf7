/* What `wgmma.cuh` has, for `cuda_emulator.h`: barriers in shared memory, copies that arrive on them, and models of the
 * products of warpgroups, written after the PTX ISA's text and figures (Asynchronous Warpgroup Level Matrix
 * Multiply-Accumulate Instructions).
 *
 * Copies are made as late as they may be, when a thread waits for the phase that they complete, or, with the threads in their
 * other order, at once. Products are made when they are waited for.
 */
#pragma once

namespace emulator {
struct Bulk { void *to; const void *from; int size; };
struct Barrier { int arrivals, missing, phase; long expected, copied; std::vector<Bulk> late; };
static std::map<uintptr_t, Barrier> at_address;

static Barrier &barrier_at(const void *address) {
    const auto found = at_address.find((uintptr_t)address);
    if (found == at_address.end() || (uintptr_t)address % 8) { fprintf(stderr, "there is no barrier here\n"); abort(); }
    return found->second;
}

/* The same place in the shared memory of another block of the cluster. */
static unsigned char *in_block(const void *address, int block) {
    const long offset = (const unsigned char *)address - shared[block_of(current)];
    if (offset < 0 || offset >= SHARED) { fprintf(stderr, "this is not in the block's shared memory\n"); abort(); }
    if (block < 0 || block >= count / block_threads) { fprintf(stderr, "there is no such block\n"); abort(); }
    return shared[block] + offset;
}

static bool completed(Barrier &barrier) {
    if (barrier.missing != 0 || barrier.expected != barrier.copied) return false;
    for (const Bulk &bulk : barrier.late) memcpy(bulk.to, bulk.from, bulk.size);
    barrier = {barrier.arrivals, barrier.arrivals, 1 - barrier.phase, 0, 0, {}};
    events++;
    return true;
}

static void arrive(Barrier &barrier) {
    if (barrier.missing-- == 0) { fprintf(stderr, "too many threads arrive on a barrier\n"); abort(); }
    if (barrier.late.empty()) completed(barrier);
    events++;
}

static void copy_bulk(unsigned char *to, const void *from, int size, unsigned char *on) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || size % 16 || size <= 0) {
        fprintf(stderr, "a copy is not aligned\n");
        abort();
    }
    Barrier &barrier = barrier_at(on);
    barrier.copied += size;
    if (early) memcpy(to, from, size);
    else barrier.late.push_back({to, from, size});
    events++;
}

/* A word of a matrix in shared memory whose rows' neighbours are side by side: eight rows follow each other, rows of 128, 64
 * or 32 bytes, and then the next eight are the stride away; bits 4 to 6 of an address are changed by bits 7 to 9. */
static uint32_t word_of(uint64_t descriptor, int row, int word) {
    const int mode = (int)(descriptor >> 62), bytes = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 0;
    const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (bytes == 0 || stride % (8 * bytes) || (start & ~(uint32_t)(bytes - 1)) % (8 * bytes)) {
        fprintf(stderr, "a descriptor has no swizzled matrix at a multiple of eight rows\n");
        abort();
    }
    uint32_t address = start + row / 8 * stride + row % 8 * bytes + 4 * word;
    address ^= (address >> 7 & (bytes / 16 - 1)) << 4;
    uint32_t value;
    memcpy(&value, shared[block_of(current)] + address, 4);
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

static uint64_t descriptor_of(const void *from, uint32_t layout) {
    return (uint64_t)layout << 32 | (uint64_t)(((const unsigned char *)from - shared[block_of(current)]) & 0x3ffff) >> 4;
}

/* Begins a product. */
static void begin(void (*how)(const Product &), float *sums, uint64_t left, uint64_t right, int columns) {
    const int lane = current % WARP, next = current / 128 * 128;
    memcpy(words[current], &left, 8);
    memcpy(words[current] + 2, &right, 8);
    wait(FOR_WARP);
    if (memcmp(words[current], words[current - lane], 16)) { fprintf(stderr, "lanes differ in factors\n"); abort(); }
    if (next + 128 > (block_of(current) + 1) * block_threads) { fprintf(stderr, "this is no warpgroup\n"); abort(); }
    Thread &thread = threads[current];
    thread.products.push_back({how, sums, left, right, columns, thread.product_groups});
    wait(FOR_WARP);
}

/* Those of all groups but the last `pending`. */
static void make_products(int pending) {
    Thread &thread = threads[current];
    std::vector<Product> later;
    for (const Product &p : thread.products) {
        if (p.group >= thread.product_groups - pending) later.push_back(p);
        else p.multiply(p);
    }
    thread.products = later;
    wait(FOR_WARP); /* all lanes' products are made */
}
}  // namespace emulator

static void lwc_barrier_init(void *barrier, int arrivals) {
    emulator::at_address[(uintptr_t)barrier] = {arrivals, arrivals, 0, 0, 0, {}};
}
static void lwc_cluster_sync() { emulator::wait(emulator::FOR_CLUSTER); }
static void lwc_barrier_expect(void *barrier, int bytes) {
    emulator::barrier_at(barrier).expected += bytes;
    emulator::arrive(emulator::barrier_at(barrier));
}
static void lwc_barrier_arrive(void *barrier, int block) {
    emulator::arrive(emulator::barrier_at(emulator::in_block(barrier, block)));
}
static void lwc_barrier_wait(void *address, int parity) {
    emulator::Barrier &barrier = emulator::barrier_at(address);
    while (barrier.phase == parity && !emulator::completed(barrier)) emulator::wait(emulator::FOR_BARRIER);
}
static void lwc_copy_bulk_to_all(void *to, const void *from, int bytes, void *barrier, int mask) {
    for (int block = 0; mask >> block; block++)
        if (mask >> block & 1) emulator::copy_bulk(emulator::in_block(to, block), from, bytes, emulator::in_block(barrier, block));
}
static void lwc_copy_bulk(void *to, const void *from, int bytes, void *barrier) {
    emulator::copy_bulk((unsigned char *)to, from, bytes, (unsigned char *)barrier);
}

static void lwc_registers_24() {}
static void lwc_registers_240() {}
static void lwc_wgmma_begin() {}
static void lwc_wgmma_commit() { emulator::threads[emulator::current].product_groups++; }
static void lwc_wgmma_wait_0() { emulator::make_products(0); }
static void lwc_wgmma_wait_1() { emulator::make_products(1); }

#define LWC_WGMMA(name, how, columns) \
    static void lwc_wgmma_##name##_##columns(float *s, const void *a, const void *b, uint layout) { \
        emulator::begin(how, s, emulator::descriptor_of(a, layout), emulator::descriptor_of(b, layout), columns); \
    }
#define LWC_WGMMA_OF(columns) \
    LWC_WGMMA(tf32, emulator::multiply<emulator::tf32>, columns) \
    LWC_WGMMA(float16, emulator::multiply<emulator::float16>, columns) \
    LWC_WGMMA(bfloat16, emulator::multiply<emulator::bfloat16>, columns)
static int lwc_now(int number) { return number; }
static void lwc_wgmma_done_32(float *) {}
static void lwc_wgmma_done_48(float *) {}
static void lwc_wgmma_done_64(float *) {}
static void lwc_wgmma_done_88(float *) {}
static void lwc_wgmma_done_96(float *) {}
static void lwc_wgmma_done_128(float *) {}

LWC_WGMMA_OF(64)
LWC_WGMMA_OF(96)
LWC_WGMMA_OF(128)
LWC_WGMMA_OF(176)
LWC_WGMMA_OF(192)
LWC_WGMMA_OF(256)
