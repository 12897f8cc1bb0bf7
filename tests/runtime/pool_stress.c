/* Many threads, many steps of all sizes: every tile must be computed once, in the order of the steps.
 *
 * Built around runtime/c/pool.c, with -DTHREADS=n.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

typedef struct net_pool net_pool;
net_pool *net_pool_create(int threads);
void net_pool_destroy(net_pool *pool);
#define LWC(name) net_##name
#define LWC_API
#define LWC_OS 1
#include "program.c"
#include "pool.c"

enum { TILES = 300, ROUNDS = 3000 };

static int32_t rounds_of[TILES], wrong, threads_used[THREADS];

/* Not atomic on purpose: a sanitizer sees when two threads have the same tile, or a step begins too early. */
static void count(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread) {
    const int32_t round = *(const int32_t *)frame->workspace;
    for (int32_t tile = t0; tile < t1; tile++) {
        if (rounds_of[tile] != round) rounds_of[tile] = -1;
        else rounds_of[tile]++;
    }
    threads_used[thread]++;
}

int main(void) {
    for (int pools = 0; pools < 3; pools++) {
        net_pool *pool = net_pool_create(THREADS);
        if (pool == NULL) return 2;
        memset(rounds_of, 0, sizeof rounds_of);
        for (int32_t round = 0; round < ROUNDS; round++) {
            const lwc_frame frame = {(unsigned char *)&round};
            /* Fewer and more threads than the pool has, and fewer and more than the step has tiles. */
            const int32_t first = 1 + round * 7 % (TILES - 1);
            const lwc_step steps[] = {{count, first, 1 + round % (2 * THREADS)}, {count, TILES, THREADS}};
            lwc_run_step(pool, &frame, &steps[0]);
            for (int32_t tile = 0; tile < TILES; tile++) {
                if (rounds_of[tile] != round + (tile < first)) wrong++;
                rounds_of[tile] = round;
            }
            lwc_run_step(pool, &frame, &steps[1]);
            if (round % 100 == 0) usleep(300); /* until they sleep */
        }
        for (int32_t tile = 0; tile < TILES; tile++) wrong += rounds_of[tile] != ROUNDS;
        net_pool_destroy(pool);
    }
    int used = 0;
    for (int i = 0; i < THREADS; i++) used += threads_used[i] > 0;
    printf("%d wrong, %d threads\n", wrong, used);
    return wrong != 0;
}
