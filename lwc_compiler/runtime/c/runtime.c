/* The runtime that ships in every artifact: runs the steps of the program, on the threads of a pool.
 *
 * A step is a function over a range of tiles. The threads of a pool take chunks of the range from a shared counter, so
 * an uneven tile does not hold the others up; every tile is computed whole by one thread, so results do not depend on
 * how the range was split. Workers spin briefly for the next step and then sleep. Nothing allocates while a program
 * runs. `LWC(name)` adds the model's prefix; the generated part of the file defines it and what is declared here.
 */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* What a step needs: the workspace. Weights are static data. */
typedef struct {
    unsigned char *workspace;
} lwc_frame;

typedef struct {
    void (*call)(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread);
    int32_t tiles;
} lwc_step;

enum { LWC_SPINS = 4000, LWC_MAX_THREADS = 256 };

struct LWC(pool) {
    int threads; /* including the caller */
    pthread_t workers[LWC_MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int sleeping; /* under lock */
    const lwc_step *step;
    const lwc_frame *frame;
    int32_t chunk;
    _Alignas(64) atomic_int generation;
    _Alignas(64) atomic_int next;
    _Alignas(64) atomic_int running;
    int stopping; /* written before a generation begins, read after */
};

typedef struct {
    struct LWC(pool) *pool;
    int thread;
} lwc_worker;

static inline void lwc_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void lwc_work(struct LWC(pool) *pool, int thread) {
    const lwc_step *step = pool->step;
    for (;;) {
        int32_t t0 = atomic_fetch_add_explicit(&pool->next, pool->chunk, memory_order_relaxed);
        if (t0 >= step->tiles) return;
        int32_t t1 = step->tiles - t0 < pool->chunk ? step->tiles : t0 + pool->chunk;
        step->call(pool->frame, t0, t1, thread);
    }
}

static void *lwc_worker_main(void *argument) {
    lwc_worker worker = *(lwc_worker *)argument;
    struct LWC(pool) *pool = worker.pool;
    free(argument);
    int seen = 0;
    for (;;) {
        for (int i = 0; i < LWC_SPINS && atomic_load_explicit(&pool->generation, memory_order_acquire) == seen; i++)
            lwc_pause();
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
            pthread_mutex_lock(&pool->lock);
            pool->sleeping++;
            while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
                pthread_cond_wait(&pool->wake, &pool->lock);
            pool->sleeping--;
            pthread_mutex_unlock(&pool->lock);
        }
        seen++;
        if (pool->stopping) return NULL;
        lwc_work(pool, worker.thread);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

/* Begins a generation: every worker leaves its wait once. */
static void lwc_release(struct LWC(pool) *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    if (pool->sleeping) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void lwc_run_step(struct LWC(pool) *pool, const lwc_frame *frame, const lwc_step *step) {
    if (pool == NULL || pool->threads < 2 || step->tiles < 2) {
        step->call(frame, 0, step->tiles, 0);
        return;
    }
    int32_t chunk = step->tiles / (pool->threads * 4);
    pool->step = step;
    pool->frame = frame;
    pool->chunk = chunk < 1 ? 1 : chunk;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, pool->threads - 1, memory_order_relaxed);
    lwc_release(pool);
    lwc_work(pool, 0);
    for (int spins = 0; atomic_load_explicit(&pool->running, memory_order_acquire) != 0; spins++) {
        if (spins < LWC_SPINS) lwc_pause();
        else sched_yield(); /* a worker lost its core: let it have this one */
    }
}

LWC_API struct LWC(pool) *LWC(pool_create)(int threads) {
    if (threads < 1 || threads > LWC_MAX_THREADS) return NULL;
    struct LWC(pool) *pool = NULL;
    if (posix_memalign((void **)&pool, 64, sizeof *pool) != 0) return NULL;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        lwc_worker *worker = malloc(sizeof *worker);
        if (worker != NULL) *worker = (lwc_worker){pool, i};
        if (worker == NULL || pthread_create(&pool->workers[i], NULL, lwc_worker_main, worker) != 0) {
            free(worker);
            LWC(pool_destroy)(pool);
            return NULL;
        }
        pool->threads++;
    }
    return pool;
}

LWC_API void LWC(pool_destroy)(struct LWC(pool) *pool) {
    if (pool == NULL) return;
    pool->stopping = 1;
    lwc_release(pool);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

#if defined(__x86_64__)
#include <cpuid.h>

/* What the processor has (Intel SDM, CPUID), and whether the operating system saves the registers (XCR0). Not by
 * `__builtin_cpu_supports`: it answers from a table that not every compiler's run-time library fills. */
enum { LWC_EBX = 1, LWC_ECX = 2, LWC_YMM = 0x06, LWC_ZMM = 0xe6 };

static int lwc_cpu_has(unsigned leaf, int output, int bit) {
    unsigned r[4] = {0};
    return __get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3]) && (r[output] >> bit & 1);
}

static int lwc_os_saves(unsigned registers) {
    unsigned low, high;
    if (!lwc_cpu_has(1, LWC_ECX, 27)) return 0; /* OSXSAVE: XGETBV may be used */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

#define LWC_HAS_avx (lwc_cpu_has(1, LWC_ECX, 28) && lwc_os_saves(LWC_YMM))
#define LWC_HAS_f16c lwc_cpu_has(1, LWC_ECX, 29)
#define LWC_HAS_fma lwc_cpu_has(1, LWC_ECX, 12)
#define LWC_HAS_movbe lwc_cpu_has(1, LWC_ECX, 22)
#define LWC_HAS_lzcnt lwc_cpu_has(0x80000001u, LWC_ECX, 5)
#define LWC_HAS_bmi lwc_cpu_has(7, LWC_EBX, 3)
#define LWC_HAS_avx2 lwc_cpu_has(7, LWC_EBX, 5)
#define LWC_HAS_bmi2 lwc_cpu_has(7, LWC_EBX, 8)
#define LWC_HAS_avx512f (lwc_cpu_has(7, LWC_EBX, 16) && lwc_os_saves(LWC_ZMM))
#define LWC_HAS_avx512dq lwc_cpu_has(7, LWC_EBX, 17)
#define LWC_HAS_avx512cd lwc_cpu_has(7, LWC_EBX, 28)
#define LWC_HAS_avx512bw lwc_cpu_has(7, LWC_EBX, 30)
#define LWC_HAS_avx512vl lwc_cpu_has(7, LWC_EBX, 31)
#endif

LWC_API const char *LWC(error_string)(int code) {
    switch (code) {
        case 0: return "ok";
        case LWC_ERROR_NULL: return "an input, an output or the workspace is NULL";
        case LWC_ERROR_ALIGNMENT: return "the workspace is not aligned to 64 bytes";
        default: return "unknown error";
    }
}
