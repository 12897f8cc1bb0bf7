/* The threads that share a program's steps; for targets with an operating system.
 *
 * Each thread that takes part has a part of the range of its own, the same
 * part in every step of so many tiles, so that its data stay in the caches of its core; when it is done it takes tiles
 * of others. A tile is always computed whole by one thread, so results do not depend on who took it.
 *
 * The caller opens a step by storing a ticket and closes it by storing another when no tile is left to take. It then
 * waits for the threads that are at work, and not for those that have not come yet: a thread that sleeps, or has lost
 * its core, holds nobody up. A thread says that it is at work before it looks whether the step is still open, and the
 * caller closes the step before it looks who is at work; both in sequentially consistent order, so one sees the other.
 *
 * A thread that has had no work for a while sleeps. It is woken by its parent in a binary tree whose root is the
 * caller. Nothing allocates, and nothing but sleeping and waking takes a lock.
 */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum {
    LWC_MAX_THREADS = 256,
    LWC_PAUSES = 64,            /* between two looks at the clock */
    LWC_SPIN_NANOSECONDS = 50000, /* without work before a thread sleeps */
    LWC_TICKET_BITS = 16,       /* of a ticket that hold the threads of the open step: 0 when none is */
    LWC_STOP = 0xffff           /* instead of threads: the pool ends */
};

/* One thread of a pool; number 0 is the caller. */
typedef struct {
    _Alignas(64) atomic_int next; /* the first tile of its part that is not taken */
    _Alignas(64) atomic_int busy; /* it is at work, or is about to look whether it may be */
    atomic_int asleep;
    int number;
    struct LWC(pool) *pool;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} lwc_seat;

struct LWC(pool) {
    _Alignas(64) atomic_uint_least64_t ticket; /* generation and threads */
    _Alignas(64) const lwc_step *step; /* of the open step, as is `frame` */
    const lwc_frame *frame;
    uint64_t generation;
    int threads; /* including the caller */
    lwc_seat seats[];
};

static inline void lwc_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static double lwc_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The first tile of a thread's part of a step. */
static int32_t lwc_part(int32_t tiles, int thread, int threads) { return (int32_t)((int64_t)tiles * thread / threads); }

/* Takes a quarter of what is left of a part: few calls at first, and an even end. */
static int lwc_take(lwc_seat *seat, int32_t end, int32_t *t0, int32_t *t1) {
    int next = atomic_load_explicit(&seat->next, memory_order_relaxed);
    do {
        if (next >= end) return 0;
        *t0 = next;
        *t1 = next + (end - next + 3) / 4;
    } while (!atomic_compare_exchange_weak_explicit(
        &seat->next, &next, *t1, memory_order_relaxed, memory_order_relaxed));
    return 1;
}

static void lwc_work(struct LWC(pool) *pool, int thread, int threads) {
    const lwc_step *step = pool->step;
    for (int i = 0; i < threads; i++) {
        int owner = thread + i < threads ? thread + i : thread + i - threads;
        int32_t t0, t1, end = lwc_part(step->tiles, owner + 1, threads);
        while (lwc_take(&pool->seats[owner], end, &t0, &t1)) step->call(pool->frame, t0, t1, thread);
    }
}

static void lwc_wake(lwc_seat *seat) {
    if (!atomic_load(&seat->asleep)) return;
    pthread_mutex_lock(&seat->lock);
    pthread_cond_signal(&seat->wake);
    pthread_mutex_unlock(&seat->lock);
}

static void lwc_wake_children(struct LWC(pool) *pool, int thread, int threads) {
    for (int child = 2 * thread + 1; child <= 2 * thread + 2 && child < threads; child++)
        lwc_wake(&pool->seats[child]);
}

/* The time at which a thread that is wanted now may sleep again. */
static double lwc_sleep_time(void) { return lwc_seconds() + 1e-9 * (double)LWC_SPIN_NANOSECONDS; }

/* Waits for a ticket other than `seen`: spins until the time `sleep_at`, then sleeps. */
static uint64_t lwc_wait(lwc_seat *seat, uint64_t seen, double *sleep_at) {
    struct LWC(pool) *pool = seat->pool;
    uint64_t ticket;
    do {
        for (int i = 0; i < LWC_PAUSES; i++) {
            if ((ticket = atomic_load(&pool->ticket)) != seen) return ticket;
            lwc_pause();
        }
    } while (lwc_seconds() < *sleep_at);
    pthread_mutex_lock(&seat->lock);
    atomic_store(&seat->asleep, 1);
    while ((ticket = atomic_load(&pool->ticket)) == seen) pthread_cond_wait(&seat->wake, &seat->lock);
    atomic_store(&seat->asleep, 0);
    pthread_mutex_unlock(&seat->lock);
    *sleep_at = lwc_sleep_time();
    return ticket;
}

static void *lwc_worker_main(void *argument) {
    lwc_seat *seat = argument;
    struct LWC(pool) *pool = seat->pool;
    double sleep_at = 0;
    for (uint64_t ticket = 0;;) {
        ticket = lwc_wait(seat, ticket, &sleep_at);
        int threads = (int)(ticket & LWC_STOP);
        if (threads == LWC_STOP) return NULL;
        if (seat->number >= threads) continue;
        lwc_wake_children(pool, seat->number, threads);
        atomic_store(&seat->busy, 1);
        if (atomic_load(&pool->ticket) == ticket) lwc_work(pool, seat->number, threads);
        atomic_store(&seat->busy, 0);
        sleep_at = lwc_sleep_time();
    }
}

static void lwc_run_step(struct LWC(pool) *pool, const lwc_frame *frame, const lwc_step *step) {
    int threads = pool != NULL && pool->threads < step->threads ? pool->threads : step->threads;
    if (pool == NULL || threads < 2) {
        step->call(frame, 0, step->tiles, 0);
        return;
    }
    pool->step = step;
    pool->frame = frame;
    for (int i = 0; i < threads; i++)
        atomic_store_explicit(&pool->seats[i].next, lwc_part(step->tiles, i, threads), memory_order_relaxed);
    uint64_t closed = ++pool->generation << LWC_TICKET_BITS;
    atomic_store(&pool->ticket, closed | (uint64_t)threads);
    lwc_wake_children(pool, 0, threads);
    lwc_work(pool, 0, threads);
    atomic_store(&pool->ticket, closed);
    for (int i = 1; i < threads; i++)
        for (int pauses = 0; atomic_load(&pool->seats[i].busy); pauses++) {
            if (pauses < 8 * LWC_PAUSES) lwc_pause();
            else sched_yield(); /* the thread lost its core: let it have this one */
        }
}

LWC_API struct LWC(pool) *LWC(pool_create)(int threads) {
    if (threads < 1 || threads > LWC_MAX_THREADS) return NULL;
    struct LWC(pool) *pool = NULL;
    const size_t bytes = sizeof *pool + (size_t)threads * sizeof *pool->seats;
    if (posix_memalign((void **)&pool, 64, bytes) != 0) return NULL;
    memset(pool, 0, bytes);
    for (pool->threads = 1; pool->threads < threads; pool->threads++) {
        lwc_seat *seat = &pool->seats[pool->threads];
        seat->number = pool->threads;
        seat->pool = pool;
        pthread_mutex_init(&seat->lock, NULL);
        pthread_cond_init(&seat->wake, NULL);
        if (pthread_create(&seat->thread, NULL, lwc_worker_main, seat) != 0) {
            pthread_cond_destroy(&seat->wake);
            pthread_mutex_destroy(&seat->lock);
            LWC(pool_destroy)(pool);
            return NULL;
        }
    }
    return pool;
}

LWC_API void LWC(pool_destroy)(struct LWC(pool) *pool) {
    if (pool == NULL) return;
    atomic_store(&pool->ticket, ++pool->generation << LWC_TICKET_BITS | LWC_STOP);
    for (int i = 1; i < pool->threads; i++) {
        lwc_seat *seat = &pool->seats[i];
        lwc_wake(seat);
        pthread_join(seat->thread, NULL);
        pthread_cond_destroy(&seat->wake);
        pthread_mutex_destroy(&seat->lock);
    }
    free(pool);
}
