/* What `semihosting.c` needs of a 32-bit RISC-V: semihosting calls, a clock, start-up code. */
#define STACK_POINTER(into) __asm__ volatile("mv %0, sp" : "=r"(into))

static uint32_t started;

/* Three instructions that are no others of a program, uncompressed and in one page (RISC-V Semihosting, 2.1). */
__attribute__((noinline, aligned(16))) static int semihosting(int operation, const void *argument) {
    register int a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(
        ".option push\n"
        ".option norvc\n"
        ".balign 16\n"
        "slli zero, zero, 0x1f\n"
        "ebreak\n"
        "srai zero, zero, 7\n"
        ".option pop\n"
        : "+r"(a0) : "r"(a1) : "memory");
    return a0;
}

static uint32_t instructions(void) {
    uint32_t count;
    __asm__ volatile("csrr %0, minstret" : "=r"(count));
    return count;
}

static void start_clock(void) { started = instructions(); }

static uint32_t read_clock(void) { return instructions() - started; }

__attribute__((used, aligned(4))) static void lwc_fault(void) { finish("the processor met a fault"); }

/* The first instruction: gives a stack, lets the float unit be used (mstatus.FS), and says where faults go. */
__attribute__((naked, section(".vectors"), used)) void lwc_vectors(void) {
    __asm__ volatile(
        "la sp, lwc_stack_end\n"
        "li t0, 0x2000\n"
        "csrs mstatus, t0\n"
        "la t0, lwc_fault\n"
        "csrw mtvec, t0\n"
        "j lwc_main\n");
}
