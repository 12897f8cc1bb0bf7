/* The runtime that ships in every artifact: chooses the program for the processor and runs its steps.
 *
 * `LWC(name)` adds the model's prefix. The generated text before this defines it, with `LWC_INPUTS` and `LWC_OUTPUTS`,
 * and that after it the programs. A library holds one program for each target it has code for, the least demanding
 * first.
 */

/* One way to compute the network. */
struct lwc_program {
    const char *target;
    int (*supported)(void); /* the processor has the instructions */
    const lwc_step *steps;
    int step_count;
    int32_t images; /* the steps compute one image; a run computes so many */
    size_t shared_bytes; /* of the workspace; the rest of it is the threads' own */
    size_t thread_bytes;
    void (*copy_in)(const lwc_frame *frame, const void *const *inputs, size_t image);
    void (*copy_out)(const lwc_frame *frame, void *const *outputs, size_t image);
};

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

/* Images t0 to t1 - 1, on this thread alone and in a workspace of its own. */
static void lwc_images(const lwc_frame *frame, int32_t t0, int32_t t1, int32_t thread) {
    const lwc_program *program = frame->program;
    const lwc_frame own = {frame->workspace + (size_t)thread * (program->shared_bytes + program->thread_bytes), program,
                           frame->inputs, frame->outputs};
    for (int32_t image = t0; image < t1; image++) {
        program->copy_in(&own, frame->inputs, (size_t)image);
        for (int i = 0; i < program->step_count; i++) program->steps[i].call(&own, 0, program->steps[i].tiles, 0);
        program->copy_out(&own, frame->outputs, (size_t)image);
    }
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
    const lwc_frame frame = {workspace, program, inputs, outputs};
    if (pool != NULL && pool->threads > 1 && pool->threads <= program->images && seconds == NULL) {
        const lwc_step images = {lwc_images, program->images, program->images};
        lwc_run_step(pool, &frame, &images);
        return 0;
    }
    double last = seconds ? lwc_seconds() : 0, now;
    for (int32_t image = 0; image < program->images; image++) {
        program->copy_in(&frame, inputs, (size_t)image);
        if (seconds) now = lwc_seconds(), seconds[program->step_count] += now - last, last = now;
        for (int i = 0; i < program->step_count; i++) {
            lwc_run_step(pool, &frame, &program->steps[i]);
            if (seconds) now = lwc_seconds(), seconds[i] += now - last, last = now;
        }
        program->copy_out(&frame, outputs, (size_t)image);
        if (seconds) now = lwc_seconds(), seconds[program->step_count] += now - last, last = now;
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
    size_t most = 0;
    for (int i = 0; i < LWC(program_count); i++) {
        const lwc_program *program = &LWC(programs)[i];
        size_t count = (size_t)(threads < 1 ? 1 : threads), images = (size_t)program->images;
        size_t bytes = program->shared_bytes + count * program->thread_bytes;
        if (bytes > most) most = bytes;
        bytes = (count < images ? count : images) * (program->shared_bytes + program->thread_bytes);
        if (images > 1 && bytes > most) most = bytes;
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
