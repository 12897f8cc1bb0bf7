/* The runtime that ships in every artifact: chooses the program for the processor and runs its steps.
 *
 * `LWC(name)` adds the model's prefix. The generated text before this defines it, with `LWC_INPUTS`, `LWC_OUTPUTS`,
 * `LWC_PROGRAMS`, `LWC_OS` (0: no operating system) and `LWC_WEIGHTS_FILE` (1: the caller hands over the weights), and
 * that after it the programs. A library holds one program for each target it has code for, the least demanding first.
 */

static const lwc_program lwc_programs[LWC_PROGRAMS];

#if LWC_PROGRAMS > 1
/* What runs here; NULL until the processor was asked, which gives the same answer every time. */
static _Atomic(const lwc_program *) lwc_chosen;

static const lwc_program *lwc_program_here(void) {
    const lwc_program *program = atomic_load_explicit(&lwc_chosen, memory_order_relaxed);
    if (program == NULL) {
        int i = LWC_PROGRAMS - 1;
        while (i > 0 && !lwc_programs[i].supported()) i--;
        program = &lwc_programs[i];
        atomic_store_explicit(&lwc_chosen, program, memory_order_relaxed);
    }
    return program;
}
#else
static const lwc_program *lwc_program_here(void) { return lwc_programs; }
#endif

/* The step after step i: where a loop is not over the first of the loop, in the next pass. */
static inline int lwc_next(lwc_frame *frame, const lwc_step *steps, int i) {
    if (steps[i].passes == 1) return i + 1;
    frame->pass = (frame->pass + 1) % steps[i].passes;
    return frame->pass ? i - steps[i].back : i + 1;
}

/* Parts t0 to t1 - 1 of the batch, on this thread alone and in a workspace of its own. */
static void lwc_parts(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread) {
    const lwc_stage *stage = frame->stage;
    lwc_frame own = *frame;
    own.workspace += (size_t)thread * stage->thread_bytes;
    for (int32_t part = t0; part < t1; part++) {
        own.run = (size_t)part;
        stage->copy_in(&own);
        for (int i = 0; i < stage->step_count; i = lwc_next(&own, stage->steps, i))
            stage->steps[i].call(&own, 0, stage->steps[i].tiles, 0);
        stage->copy_out(&own);
    }
}

LWC_API size_t LWC(workspace_bytes)(int threads) {
    size_t most = 0, count = (size_t)(threads < 1 ? 1 : threads);
    for (int i = 0; i < LWC_PROGRAMS; i++) {
        const lwc_program *program = &lwc_programs[i];
        size_t bytes = program->between_bytes + program->shared_bytes + count * program->thread_bytes;
        if (bytes > most) most = bytes;
        for (int j = 0; j < program->stage_count; j++) {
            const lwc_stage *stage = &program->stages[j];
            bytes = (count < (size_t)stage->runs ? count : (size_t)stage->runs) * stage->thread_bytes;
            if (stage->runs > 1 && program->between_bytes + bytes > most) most = program->between_bytes + bytes;
        }
    }
    return most;
}

#if LWC_WEIGHTS_FILE
/* A file of weights begins with their identity, which the library knows too; the constants follow at LWC_ALIGNMENT. */
#define LWC_WEIGHTS_PARAMETER const void *weights,
#define LWC_WEIGHTS_ARGUMENT weights,

static int lwc_check_identity(const void *weights) {
    if (weights == NULL) return LWC_ERROR_NULL;
    if ((uintptr_t)weights % LWC_ALIGNMENT != 0) return LWC_ERROR_ALIGNMENT;
    for (size_t i = 0; i < sizeof lwc_weights_identity; i++)
        if (((const unsigned char *)weights)[i] != lwc_weights_identity[i]) return LWC_ERROR_WEIGHTS;
    return 0;
}

LWC_API int LWC(check_weights)(const void *weights, size_t bytes) {
    const int code = lwc_check_identity(weights);
    if (code != 0) return code;
    if (bytes != LWC_WEIGHTS_BYTES) return LWC_ERROR_WEIGHTS;
    uint32_t crc = 0xffffffffu; /* CRC-32 of all that follows the identity, as zlib computes it */
    for (size_t i = LWC_ALIGNMENT; i < bytes; i++) {
        crc ^= ((const unsigned char *)weights)[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return (crc ^ 0xffffffffu) == LWC_WEIGHTS_CRC ? 0 : LWC_ERROR_WEIGHTS;
}
#else
#define LWC_WEIGHTS_PARAMETER
#define LWC_WEIGHTS_ARGUMENT
#endif

/* Adds the time since `*last` to `*seconds`, if there is one. */
static inline void lwc_clock(double *seconds, double *last) {
    if (seconds == NULL) return;
    const double now = lwc_seconds();
    *seconds += now - *last;
    *last = now;
}

/* Runs the network; adds the seconds of every step, and then of the copies of inputs and outputs, to `seconds`. */
static inline int lwc_run(
    LWC_WEIGHTS_PARAMETER const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes,
    LWC(pool) *pool, double *seconds
) {
#if LWC_WEIGHTS_FILE
    const int code = lwc_check_identity(weights);
    if (code != 0) return code;
    const unsigned char *constants = (const unsigned char *)weights + LWC_ALIGNMENT;
#else
    const unsigned char *constants = LWC_CONSTANTS;
#endif
    if (inputs == NULL || outputs == NULL || workspace == NULL) return LWC_ERROR_NULL;
    if ((uintptr_t)workspace % LWC_ALIGNMENT != 0) return LWC_ERROR_ALIGNMENT;
    if (workspace_bytes < LWC(workspace_bytes)(pool == NULL ? 1 : pool->threads)) return LWC_ERROR_WORKSPACE;
    for (int i = 0; i < LWC_INPUTS; i++) if (inputs[i] == NULL) return LWC_ERROR_NULL;
    for (int i = 0; i < LWC_OUTPUTS; i++) if (outputs[i] == NULL) return LWC_ERROR_NULL;
    const lwc_program *program = lwc_program_here();
    double *copies = seconds ? seconds + program->step_count : NULL, last = seconds ? lwc_seconds() : 0;
    lwc_frame frame = {(unsigned char *)workspace + program->between_bytes, workspace, constants, 0, 0, NULL, inputs, outputs};
    for (const lwc_stage *stage = program->stages; stage < program->stages + program->stage_count; stage++) {
        frame.stage = stage;
        if (pool != NULL && pool->threads > 1 && pool->threads <= stage->runs && seconds == NULL) {
            const lwc_step parts = {lwc_parts, stage->runs, stage->runs, 1, 0};
            lwc_run_step(pool, &frame, &parts);
            continue;
        }
        for (frame.run = 0; frame.run < (size_t)stage->runs; frame.run++) {
            stage->copy_in(&frame);
            lwc_clock(copies, &last);
            for (int i = 0; i < stage->step_count; i = lwc_next(&frame, stage->steps, i)) {
                lwc_run_step(pool, &frame, &stage->steps[i]);
                lwc_clock(seconds ? seconds + i : NULL, &last);
            }
            stage->copy_out(&frame);
            lwc_clock(copies, &last);
        }
        if (seconds) seconds += stage->step_count;
    }
    return 0;
}

LWC_API int LWC(run)(
    LWC_WEIGHTS_PARAMETER const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes,
    LWC(pool) *pool
) {
    return lwc_run(LWC_WEIGHTS_ARGUMENT inputs, outputs, workspace, workspace_bytes, pool, NULL);
}

LWC_API const char *LWC(target)(void) { return lwc_program_here()->target; }

LWC_API int LWC(cpu_supported)(void) { return lwc_programs[0].supported(); }

#if LWC_OS
LWC_API int LWC(step_count)(void) { return lwc_program_here()->step_count; }

LWC_API int LWC(profile)(
    LWC_WEIGHTS_PARAMETER const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes,
    LWC(pool) *pool, double *seconds
) {
    if (seconds == NULL) return LWC_ERROR_NULL;
    return lwc_run(LWC_WEIGHTS_ARGUMENT inputs, outputs, workspace, workspace_bytes, pool, seconds);
}

LWC_API int LWC(use_target)(const char *target) {
    for (int i = 0; i < LWC_PROGRAMS; i++) {
        const lwc_program *program = &lwc_programs[i];
        if (target != NULL && strcmp(program->target, target) == 0 && program->supported()) {
#if LWC_PROGRAMS > 1
            atomic_store_explicit(&lwc_chosen, program, memory_order_relaxed);
#endif
            return 1;
        }
    }
    return 0;
}
#endif

LWC_API const char *LWC(error_string)(int code) {
    switch (code) {
        case 0: return "ok";
        case LWC_ERROR_NULL: return "a pointer is NULL";
#if LWC_WEIGHTS_FILE
        case LWC_ERROR_ALIGNMENT: return "the workspace or the weights are not aligned to 64 bytes";
        case LWC_ERROR_WEIGHTS: return "the weights are damaged, or those of another library";
#else
        case LWC_ERROR_ALIGNMENT: return "the workspace is not aligned to 64 bytes";
#endif
        case LWC_ERROR_WORKSPACE: return "the workspace is too small";
        default: return "unknown error";
    }
}
