/* A program without an operating system that runs one network in an emulator: start-up code for Cortex-M or 32-bit
 * RISC-V, and a main that reads the inputs and writes the outputs through Arm's semihosting calls (Arm IHI 0065,
 * Semihosting for AArch32 and AArch64), which RISC-V has too. It reads `inputs`, all tensors one after the other, and
 * writes `outputs`, likewise, and `measured`: two 32-bit numbers, the bytes of stack that the run used and the ticks of
 * the processor's clock that it took.
 *
 * Built with -DMODEL=<symbol>, -DLWC_INPUT_BYTES=<bytes>,... and -DLWC_OUTPUT_BYTES=<bytes>,... of each tensor; linked
 * by a script that says where memory and the end of the stack are.
 */
#include <stddef.h>
#include <stdint.h>

#define PASTE(a, b) a##_##b
#define JOIN(a, b) PASTE(a, b)
#define NET(name) JOIN(MODEL, name)
#define TEXT(x) #x
#define HEADER(name) TEXT(name.h)
#define INCLUDE(name) HEADER(name)
#include INCLUDE(MODEL)

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06 };
enum { SYS_EXIT_EXTENDED = 0x20, READ_BINARY = 1, WRITE_BINARY = 5, APPLICATION_EXIT = 0x20026 };
enum { ELEMENT = 8 /* bytes of the largest element */, WORKSPACE_ALIGNMENT = 64 };
enum { INPUTS = sizeof((size_t[]){LWC_INPUT_BYTES}) / sizeof(size_t) };
enum { OUTPUTS = sizeof((size_t[]){LWC_OUTPUT_BYTES}) / sizeof(size_t) };

static const uint32_t UNUSED = 0xa5a5a5a5;
static const size_t input_bytes[] = {LWC_INPUT_BYTES}, output_bytes[] = {LWC_OUTPUT_BYTES};

/* Of the linker script: the free memory behind the static data, its end, and the lowest address of the stack. */
extern unsigned char lwc_free[], lwc_free_end[];
extern uint32_t lwc_stack[], lwc_stack_end[];

static void finish(const char *complaint);
void lwc_main(void);

#if defined(__riscv)
#include "riscv32.h"
#else
#include "cortex_m.h"
#endif

void *memcpy(void *to, const void *from, size_t bytes) {
    unsigned char *t = to;
    const unsigned char *f = from;
    for (size_t i = 0; i < bytes; i++) t[i] = f[i];
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    unsigned char *t = to;
    for (size_t i = 0; i < bytes; i++) t[i] = (unsigned char)value;
    return to;
}

static void finish(const char *complaint) {
    if (complaint != NULL) {
        semihosting(SYS_WRITE0, complaint);
        semihosting(SYS_WRITE0, "\n");
    }
    const uintptr_t how[] = {APPLICATION_EXIT, complaint != NULL};
    semihosting(SYS_EXIT_EXTENDED, how);
    for (;;) continue;
}

static uintptr_t open_file(const char *name, uintptr_t mode) {
    uintptr_t length = 0;
    while (name[length] != 0) length++;
    const uintptr_t block[] = {(uintptr_t)name, mode, length};
    const int handle = semihosting(SYS_OPEN, block);
    if (handle == -1) finish("a file cannot be opened");
    return (uintptr_t)handle;
}

/* Reads or writes; both give the bytes that are left to do. */
static void transfer(int operation, uintptr_t handle, const void *data, size_t bytes) {
    const uintptr_t block[] = {handle, (uintptr_t)data, bytes};
    if (semihosting(operation, block) != 0) finish("a file is too short, or cannot be written");
}

static void close_file(uintptr_t handle) { semihosting(SYS_CLOSE, &handle); }

/* Memory behind the static data; there is no other use of it, and none is given back. */
static void *take(uintptr_t *next, size_t bytes, size_t alignment) {
    const uintptr_t taken = (*next + alignment - 1) / alignment * alignment, end = (uintptr_t)lwc_free_end;
    if (taken > end || bytes > end - taken) finish("the board has too little memory");
    *next = taken + bytes;
    return (void *)taken;
}

/* A function of its own: the marks begin below its frame, which does not change while it runs. */
__attribute__((noinline)) static int run(
    const void *const *inputs, void *const *outputs, void *workspace, size_t bytes, uint32_t *measured
) {
    /* What the run leaves of the marks, it did not need. */
    uintptr_t top;
    STACK_POINTER(top);
    volatile uint32_t *mark = lwc_stack;
    while ((uintptr_t)mark < top) *mark++ = UNUSED;
    start_clock();
    const int code = NET(run)(inputs, outputs, workspace, bytes, NULL);
    measured[1] = read_clock();
    for (mark = lwc_stack; *mark == UNUSED && (uintptr_t)mark < top; mark++) continue;
    measured[0] = (uint32_t)(top - (uintptr_t)mark);
    return code;
}

void lwc_main(void) {
    uintptr_t next = (uintptr_t)lwc_free + ELEMENT; /* tensors are aligned to their elements, to no more */
    const void *inputs[INPUTS];
    void *outputs[OUTPUTS];
    uint32_t measured[2];
    uintptr_t file = open_file("inputs", READ_BINARY);
    for (int i = 0; i < INPUTS; i++) {
        void *data = take(&next, input_bytes[i], ELEMENT);
        transfer(SYS_READ, file, data, input_bytes[i]);
        inputs[i] = data;
    }
    close_file(file);
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = take(&next, output_bytes[i], ELEMENT);
    const size_t bytes = NET(workspace_bytes)(1);
    void *workspace = take(&next, bytes, WORKSPACE_ALIGNMENT);
    const int code = run(inputs, outputs, workspace, bytes, measured);
    if (code != 0) finish(NET(error_string)(code));
    file = open_file("outputs", WRITE_BINARY);
    for (int i = 0; i < OUTPUTS; i++) transfer(SYS_WRITE, file, outputs[i], output_bytes[i]);
    close_file(file);
    file = open_file("measured", WRITE_BINARY);
    transfer(SYS_WRITE, file, measured, sizeof measured);
    close_file(file);
    finish(NULL);
}
