/* Hazards in the GPU's memory, for `cuda_emulator.cpp`: accesses to the same byte, one of which writes, that nothing orders.
 *
 * In one launch nothing orders threads of different blocks, and no kernel hands anything on through this memory within a block:
 * what a thread writes, no other thread of the launch may read or write.
 *
 * Launches run here one after the other, and on a GPU from Hopper on may overlap (`codegen/launches.cuh`): one that does begins
 * while the one before it runs, and so does that one, if it overlaps, too. What a thread does before it waits (PTX ISA,
 * griddepcontrol.wait) is therefore ordered after nothing that a launch since the last which does not overlap did. After
 * its wait the launch before has ended, all of whose threads had waited likewise, so that all launches before have ended.
 */
#pragma once

namespace emulator {
struct Byte { int written = 0, writer = 0, read = 0, reader = 0; }; /* by which launch, 0: none, and which of its threads */
enum { SEVERAL = -1 };
struct Memory { const unsigned char *start; std::vector<Byte> bytes; };
static std::vector<Memory> memories;
static int launches, running; /* how many there were; the first that may still run when the present one begins */
static int first_thread; /* of those that run, in the launch */

static void check_memory(size_t at, int launch, int thread, const void *place, const char *what) {
    const bool same = launch == launches;
    if (launch == 0 || (same && thread == first_thread + current)) return;
    if (!same && (launch < running || threads[current].ready)) return;
    fail("%s: byte %zu of memory, thread %d of launch %d at {%#zx}%s, after launch %d", what, at, first_thread + current, launches,
         (size_t)((const char *)place - library_start()), same ? "" : " before its wait", launch);
}

/* Accesses by the current thread. */
static void access_memory(const void *address, size_t size, const void *place, bool writes) {
    const unsigned char *const first = (const unsigned char *)address;
    const int thread = first_thread + current;
    Memory *found = NULL;
    for (Memory &each : memories)
        if (first >= each.start && first < each.start + each.bytes.size()) found = &each;
    if (found == NULL) return;
    const size_t start = first - found->start;
    for (size_t at = start; at < std::min(start + size, found->bytes.size()); at++) {
        Byte &byte = found->bytes[at];
        check_memory(at, byte.written, byte.writer, place, writes ? "write after write" : "read after write");
        if (writes) {
            check_memory(at, byte.read, byte.reader, place, "write after read");
            byte.written = launches;
            byte.writer = thread;
        } else {
            byte.reader = byte.read != launches || byte.reader == thread ? thread : (int)SEVERAL;
            byte.read = launches;
        }
    }
}
}  // namespace emulator

/* There is no launch yet, and no memory. */
extern "C" void forget_memory() {
    emulator::memories.clear();
    emulator::launches = 0;
    emulator::running = 1;
}

/* Launches from now on share this, too. */
extern "C" void use_memory(const void *start, size_t size) {
    emulator::memories.push_back({(const unsigned char *)start, std::vector<emulator::Byte>(size)});
}
