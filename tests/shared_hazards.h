/* Hazards in shared memory, for `cuda_emulator.cpp`: accesses to the same word, one of which writes, that nothing orders.
 *
 * Every thread knows, of everyone who may access shared memory, up to when that one's accesses have ended before what it does
 * next (vector clocks; Mattern, Virtual Time and Global States of Distributed Systems, 1989). Barriers hand knowledge on.
 * Those who access are threads; the asynchronous copies of a thread, which it knows to have ended when it has waited for
 * them; the products of a warp, likewise; and the bulk copies that arrive on a barrier, which are known to have ended to
 * whoever waited for its phase. Lanes of a warp are not ordered by being in one, nor by shuffles or products.
 *
 * Kernels are compiled with GCC's instrumentation for ThreadSanitizer, whose functions these are: they see every access. Of a
 * word, its last write is kept, and the reads since then that may not have ended before others.
 */
#pragma once

namespace emulator {
typedef uint32_t Time; /* of a thread: how often anyone has handed knowledge on; of others, their groups or phases */
enum : Time { ALWAYS = UINT32_MAX };
enum { MOST_BARRIERS = 256 }; /* of a cluster, in shared memory */
struct Access { int who; Time time; const void *place; };
struct Word { unsigned run; Access written; std::vector<Access> read; Time last_read; };
struct Known {
    std::vector<Time> until; /* of each who accesses, the first time that is not over */
    Time of_threads; /* the least of all threads */
};
static std::vector<Word> words_of_shared(MOST_BLOCKS * SHARED / 4);
static unsigned runs; /* words of earlier ones count for nothing */
static Time now;

static int copies_of(int thread) { return count + thread; }
static int products_of(int thread) { return 2 * count + thread / WARP; }
static int arrivals_on(int barrier) { return 2 * count + count / WARP + 1 + barrier; }

static Time known(int thread, int who) {
    if (who == thread) return ALWAYS;
    if (who == copies_of(thread)) return threads[thread].copied;
    if (who == products_of(thread)) return threads[thread].multiplied;
    return threads[thread].known->until[who];
}

static void join(Known &to, const Known &from) {
    for (size_t i = 0; i < to.until.size(); i++) to.until[i] = std::max(to.until[i], from.until[i]);
}

/* Hands on what a thread knows and did. */
static void release(int thread, Known &to) {
    join(to, *threads[thread].known);
    to.until[thread] = now + 1;
    to.until[copies_of(thread)] = threads[thread].copied;
    to.until[products_of(thread)] = std::max<Time>(to.until[products_of(thread)], threads[thread].multiplied);
}

static std::shared_ptr<Known> nothing_known() {
    return std::make_shared<Known>(Known{std::vector<Time>(arrivals_on(MOST_BARRIERS)), 0});
}

static std::shared_ptr<const Known> finished(std::shared_ptr<Known> known) {
    known->of_threads = *std::min_element(known->until.begin(), known->until.begin() + count);
    return known;
}

/* All of some threads wait for each other. */
static void order(int first, int size) {
    const std::shared_ptr<Known> all = nothing_known();
    for (int thread = first; thread < first + size; thread++) release(thread, *all);
    now++;
    const std::shared_ptr<const Known> done = finished(all);
    for (int thread = first; thread < first + size; thread++) threads[thread].known = done;
}

static const char *kind_of(int who) {
    if (who < count) return "";
    if (who < 2 * count) return "a copy of ";
    return who < arrivals_on(0) ? "a product of the warp of " : "a bulk copy to ";
}

static int number_of(int who) {
    if (who < 2 * count) return who % count;
    return who < arrivals_on(0) ? (who - 2 * count) * WARP : who - arrivals_on(0);
}

static void report(const char *what, size_t word, const Access &later, const Access &before) {
    const int block = word / (SHARED / 4);
    std::string text[2];
    for (int i = 0; i < 2; i++) {
        const Access &access = i ? before : later;
        char said[200];
        snprintf(said, sizeof said, "%s%s %d at {%#zx}", kind_of(access.who),
                 access.who < arrivals_on(0) ? "thread" : "barrier", number_of(access.who),
                 (size_t)((const char *)access.place - library_start()));
        text[i] = said;
    }
    const uint3 at = threads[block * block_threads].block;
    fail("%s: byte %zu of shared memory, block (%u, %u, %u): %s, after %s", what, word % (SHARED / 4) * 4, at.x, at.y, at.z,
         text[0].c_str(), text[1].c_str());
}

/* A word as it is in this run. */
static Word &word_at(size_t number) {
    Word &word = words_of_shared[number];
    if (word.run != runs) {
        word.run = runs;
        word.written.who = -1;
        word.read.clear();
        word.last_read = 0;
    }
    return word;
}

static bool ordered(const Access &before) { return before.time < known(current, before.who); }

static void check_written(size_t number, const Word &word, const Access &access, const char *what) {
    if (word.written.who < 0) return;
    if (!ordered(word.written)) report(what, number, access, word.written);
    /* No kernel has a fence.proxy.async, which has to be between what a thread writes and what reads it so. */
    if (access.who >= products_of(0) && word.written.who < products_of(0)) report("no fence", number, access, word.written);
}

static void read_word(size_t number, const Access &access) {
    Word &word = word_at(number);
    check_written(number, word, access, "read after write");
    /* Who writes after this read then writes after those, too. */
    if (word.last_read < threads[current].known->of_threads) word.read.clear();
    if (!word.read.empty() && word.read.back().who == access.who) word.read.back() = access;
    else word.read.push_back(access);
    word.last_read = std::max(word.last_read, access.who < count ? access.time : ALWAYS);
}

static void write_word(size_t number, const Access &access) {
    Word &word = word_at(number);
    check_written(number, word, access, "write after write");
    if (word.last_read >= threads[current].known->of_threads)
        for (const Access &read : word.read)
            if (!ordered(read)) report("write after read", number, access, read);
    word.written = access;
    word.read.clear();
    word.last_read = 0;
}

/* Accesses by the current thread, or by what it starts, in its shared memory or in that of a block of its cluster. */
static void access(const void *at, size_t size, const Access &access, void (*each)(size_t, const Access &)) {
    const size_t offset = (const unsigned char *)at - shared[0];
    if (offset >= sizeof shared) return;
    if (offset % 4 || size % 4) fail("an access to shared memory is not one of words");
    for (size_t word = offset / 4; word < (offset + size) / 4; word++) each(word, access);
}

static void access_by_thread(const void *at, size_t size, const void *place, void (*each)(size_t, const Access &)) {
    access(at, size, {current, now, place}, each);
}

static void read_by_thread(const void *at, size_t size, const void *place) {
    access_by_thread(at, size, place, read_word);
    access_memory(at, size, place, false);
}

static void write_by_thread(const void *at, size_t size, const void *place) {
    access_by_thread(at, size, place, write_word);
    access_memory(at, size, place, true);
}
}  // namespace emulator

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define LWC_ACCESS(name, size) \
    void __tsan_##name##size(void *at) { emulator::name##_by_thread(at, size, __builtin_return_address(0)); }
#define LWC_ACCESSES(name) \
    LWC_ACCESS(name, 1) LWC_ACCESS(name, 2) LWC_ACCESS(name, 4) LWC_ACCESS(name, 8) LWC_ACCESS(name, 16) \
    void __tsan_##name##_range(void *at, size_t size) { emulator::name##_by_thread(at, size, __builtin_return_address(0)); }
LWC_ACCESSES(read)
LWC_ACCESSES(write)
}
