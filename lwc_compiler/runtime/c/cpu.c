/* What the processor has, by the names of the targets' features. */

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

#elif defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>

/* Bits of AT_HWCAP, from the kernel's headers <asm/hwcap.h>. */
static int lwc_cpu_has(int bit) { return (int)(getauxval(AT_HWCAP) >> bit & 1); }

#if defined(__aarch64__)
#define LWC_HAS_asimd lwc_cpu_has(1)
#define LWC_HAS_atomics lwc_cpu_has(8)
#define LWC_HAS_asimdhp lwc_cpu_has(10)
#define LWC_HAS_asimddp lwc_cpu_has(20)
#define LWC_HAS_sve lwc_cpu_has(22)
/* Bytes of a vector: PR_SVE_GET_VL, of which the low 16 bits are the length. */
#define LWC_HAS_sve256 ((prctl(51) & 0xffff) >= 256 / 8)
#elif defined(__arm__)
#define LWC_HAS_neon lwc_cpu_has(12)
#define LWC_HAS_vfpv4 lwc_cpu_has(16)
#elif defined(__riscv)
#define LWC_HAS_v lwc_cpu_has('v' - 'a')
#endif
#endif
