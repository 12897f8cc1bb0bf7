/* What `semihosting.c` needs of a Cortex-M: semihosting calls, a clock, start-up code. */
#define STACK_POINTER(into) __asm__ volatile("mov %0, sp" : "=r"(into))

enum { MOST_TICKS = 0xffffff };

static volatile uint32_t *const systick = (volatile uint32_t *)0xe000e010; /* control, reload, current value */

static int semihosting(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory", "cc");
    return r0;
}

static void start_clock(void) {
    systick[1] = MOST_TICKS;
    systick[2] = 0;
    systick[0] = 5; /* the processor's clock, no interrupt */
}

/* Ticks since then; UINT32_MAX for more than can be counted. */
static uint32_t read_clock(void) {
    const uint32_t left = systick[2]; /* still 0 before the first tick */
    return systick[0] >> 16 & 1 ? UINT32_MAX : left == 0 ? 0 : MOST_TICKS - left;
}

static void lwc_fault(void) { finish("the processor met a fault"); }

/* Lets the float unit be used (CPACR: full access to coprocessors 10 and 11) before any compiled code runs. */
__attribute__((naked)) static void lwc_start(void) {
    __asm__ volatile(
        "ldr r0, =0xe000ed88\n"
        "ldr r1, [r0]\n"
        "orr r1, r1, #0xf00000\n"
        "str r1, [r0]\n"
        "dsb\n"
        "isb\n"
        "bl lwc_main\n");
}

__attribute__((section(".vectors"), used)) static void (*const lwc_vectors[16])(void) = {
    (void (*)(void))lwc_stack_end, lwc_start, lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault,
    lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault, lwc_fault,
};
