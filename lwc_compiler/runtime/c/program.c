/* What a program is made of: stages, which run steps, which compute tiles. */

#include <stddef.h>
#include <stdint.h>

#if LWC_OS
#include <string.h>
#else
void *memcpy(void *to, const void *from, size_t bytes); /* of the board's C library */
#endif

typedef struct lwc_stage lwc_stage;

/* What a step needs: the workspace, the tensors between stages, the weights, and which part of the batch is computed,
 * and the pass of a loop. The rest is for a step that runs a stage on whole parts of the batch. */
typedef struct {
    unsigned char *workspace;
    unsigned char *between;
    const unsigned char *weights;
    size_t run;
    int32_t pass;
    const lwc_stage *stage;
    const void *const *inputs;
    void *const *outputs;
} lwc_frame;

typedef struct {
    void (*call)(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread);
    int32_t tiles;
    int32_t threads; /* more would not pay */
    int32_t passes; /* with more than one, a loop of so many ends here, which began ... */
    int32_t back; /* ... so many steps before */
} lwc_step;

/* Steps that run on a part of the batch: on one image, on some, or on all. */
struct lwc_stage {
    const lwc_step *steps;
    int step_count;
    int32_t runs; /* so many parts are a batch */
    size_t thread_bytes; /* of the workspace, when threads run parts of their own */
    void (*copy_in)(const lwc_frame *frame);
    void (*copy_out)(const lwc_frame *frame);
};

/* One way to compute the network: its stages, one after the other. */
typedef struct {
    const char *target;
    int (*supported)(void); /* the processor has the instructions */
    const lwc_stage *stages;
    int stage_count;
    int step_count; /* of all stages */
    size_t between_bytes; /* of the workspace: the tensors between stages, first in it */
    size_t shared_bytes; /* of the workspace; the rest of it is the threads' own */
    size_t thread_bytes;
} lwc_program;
