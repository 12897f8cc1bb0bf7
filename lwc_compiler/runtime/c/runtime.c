/* The runtime that ships in every artifact: chooses the program for the processor and runs its steps.
 *
 * `LWC(name)` adds the model's prefix. The generated text before this defines it, with `LWC_INPUTS` and `LWC_OUTPUTS`,
 * and that after it the programs. A library holds one program for each target it has code for, the least demanding
 * first.
 */

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

extern const lwc_program LWC(programs)[];
extern const int LWC(program_count);

/* What runs here; NULL until the processor was asked, which gives the same answer every time. */
static _Atomic(const lwc_program *) lwc_chosen;

static const lwc_program *lwc_program_here(void) {
    const lwc_program *program = atomic_load_explicit(&lwc_chosen, memory_order_relaxed);
    if (program == NULL) {
        int i = LWC(program_count) - 1;
        while (i > 0 && !LWC(programs)[i].supported()) i--;
        program = &LWC(programs)[i];
        atomic_store_explicit(&lwc_chosen, program, memory_order_relaxed);
    }
    return program;
}

/* Parts t0 to t1 - 1 of the batch, on this thread alone and in a workspace of its own. */
static void lwc_parts(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread) {
    const lwc_stage *stage = frame->stage;
    lwc_frame own = *frame;
    own.workspace += (size_t)thread * stage->thread_bytes;
    for (int32_t part = t0; part < t1; part++) {
        own.run = (size_t)part;
        stage->copy_in(&own);
        for (int i = 0; i < stage->step_count; i++) stage->steps[i].call(&own, 0, stage->steps[i].tiles, 0);
        stage->copy_out(&own);
    }
}

/* Adds the time since `*last` to `*seconds`, if there is one. */
static inline void lwc_clock(double *seconds, double *last) {
    if (seconds == NULL) return;
    const double now = lwc_seconds();
    *seconds += now - *last;
    *last = now;
}

/* Runs the network; adds the seconds of every step, and then of the copies of inputs and outputs, to `seconds`. */
static inline int lwc_run(
    const void *const *inputs, void *const *outputs, void *workspace, LWC(pool) *pool, double *seconds
) {
    if (inputs == NULL || outputs == NULL || workspace == NULL) return LWC_ERROR_NULL;
    if ((uintptr_t)workspace % LWC_ALIGNMENT != 0) return LWC_ERROR_ALIGNMENT;
    for (int i = 0; i < LWC_INPUTS; i++) if (inputs[i] == NULL) return LWC_ERROR_NULL;
    for (int i = 0; i < LWC_OUTPUTS; i++) if (outputs[i] == NULL) return LWC_ERROR_NULL;
    const lwc_program *program = lwc_program_here();
    double *copies = seconds ? seconds + program->step_count : NULL, last = seconds ? lwc_seconds() : 0;
    lwc_frame frame = {(unsigned char *)workspace + program->between_bytes, workspace, 0, NULL, inputs, outputs};
    for (const lwc_stage *stage = program->stages; stage < program->stages + program->stage_count; stage++) {
        frame.stage = stage;
        if (pool != NULL && pool->threads > 1 && pool->threads <= stage->runs && seconds == NULL) {
            const lwc_step parts = {lwc_parts, stage->runs, stage->runs};
            lwc_run_step(pool, &frame, &parts);
            continue;
        }
        for (frame.run = 0; frame.run < (size_t)stage->runs; frame.run++) {
            stage->copy_in(&frame);
            lwc_clock(copies, &last);
            for (int i = 0; i < stage->step_count; i++) {
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

LWC_API int LWC(run)(const void *const *inputs, void *const *outputs, void *workspace, LWC(pool) *pool) {
    return lwc_run(inputs, outputs, workspace, pool, NULL);
}

LWC_API int LWC(step_count)(void) { return lwc_program_here()->step_count; }

LWC_API int LWC(profile)(
    const void *const *inputs, void *const *outputs, void *workspace, LWC(pool) *pool, double *seconds
) {
    return seconds == NULL ? LWC_ERROR_NULL : lwc_run(inputs, outputs, workspace, pool, seconds);
}

LWC_API size_t LWC(workspace_bytes)(int threads) {
    size_t most = 0, count = (size_t)(threads < 1 ? 1 : threads);
    for (int i = 0; i < LWC(program_count); i++) {
        const lwc_program *program = &LWC(programs)[i];
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

LWC_API int LWC(cpu_supported)(void) { return LWC(programs)[0].supported(); }

LWC_API const char *LWC(target)(void) { return lwc_program_here()->target; }

LWC_API int LWC(use_target)(const char *target) {
    for (int i = 0; i < LWC(program_count); i++) {
        const lwc_program *program = &LWC(programs)[i];
        if (target != NULL && strcmp(program->target, target) == 0 && program->supported()) {
            atomic_store_explicit(&lwc_chosen, program, memory_order_relaxed);
            return 1;
        }
    }
    return 0;
}

LWC_API const char *LWC(error_string)(int code) {
    switch (code) {
        case 0: return "ok";
        case LWC_ERROR_NULL: return "a pointer is NULL";
        case LWC_ERROR_ALIGNMENT: return "the workspace is not aligned to 64 bytes";
        default: return "unknown error";
    }
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
