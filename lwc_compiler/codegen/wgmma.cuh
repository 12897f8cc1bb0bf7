/* What matrix products on Hopper's tensor cores call by name (kernels/gpu/wgmma.py): copies of whole slices to shared memory,
 * the barriers on which they arrive, in a cluster of blocks too, and products of a warpgroup, which are asynchronous. These
 * instructions are those of compute capability 9.0 alone (sm_90a).
 */
static __device__ __forceinline__ uint lwc_shared_address(const void *of) { return (uint)__cvta_generic_to_shared(of); }

static __device__ __forceinline__ void lwc_barrier_init(void *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(lwc_shared_address(barrier)), "r"(arrivals));
}

/* All threads of the cluster; what they wrote to barriers, all see then. */
static __device__ __forceinline__ void lwc_cluster_sync() {
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" : : : "memory");
}

/* Arrives, and says how many bytes will. */
static __device__ __forceinline__ void lwc_barrier_expect(void *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 : : "r"(lwc_shared_address(barrier)), "r"(bytes) : "memory");
}

/* Arrives on the barrier at the same place in the shared memory of a block of the cluster. What the thread stored, others do
 * not see for it: it says that the thread has read what was copied, and waiting for other stores takes long.
 */
static __device__ __forceinline__ void lwc_barrier_arrive(void *barrier, int block) {
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
                 "mbarrier.arrive.shared::cluster.b64 _, [there]; }"
                 : : "r"(lwc_shared_address(barrier)), "r"(block) : "memory");
}

/* Waits for the end of the phase of this parity: of the one before the first, if that is 1. */
static __device__ __forceinline__ void lwc_barrier_wait(void *barrier, int parity) {
    uint done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(lwc_shared_address(barrier)), "r"(parity) : "memory");
    } while (!done);
}

/* Starts to copy bytes, a multiple of 16; they arrive on the barrier. */
static __device__ __forceinline__ void lwc_copy_bulk(void *to, const void *from, int bytes, void *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 : : "r"(lwc_shared_address(to)), "l"(from), "r"(bytes), "r"(lwc_shared_address(barrier)) : "memory");
}

/* The same, to the same place in each block of the cluster that has its bit in the mask. */
static __device__ __forceinline__ void lwc_copy_bulk_to_all(
    void *to, const void *from, int bytes, void *barrier, int mask
) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;"
                 : : "r"(lwc_shared_address(to)), "l"(from), "r"(bytes), "r"(lwc_shared_address(barrier)),
                     "h"((ushort)mask) : "memory");
}

/* All threads of a warpgroup give registers back, or get more: so many they have then. */
#define LWC_REGISTERS(change, number) \
    static __device__ __forceinline__ void lwc_registers_##number() { \
        asm volatile("setmaxnreg." #change ".sync.aligned.u32 " #number ";"); \
    }
LWC_REGISTERS(dec, 24)
LWC_REGISTERS(inc, 240)

static __device__ __forceinline__ void lwc_wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }

static __device__ __forceinline__ void lwc_wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

/* Waits for all groups of the warpgroup's products but the last. */
static __device__ __forceinline__ void lwc_wgmma_wait_1() {
    asm volatile("wgmma.wait_group.sync.aligned 1;" : : : "memory");
}

static __device__ __forceinline__ void lwc_wgmma_wait_0() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
}

/* The descriptor of a matrix in shared memory (PTX ISA, Asynchronous warpgroup-level matrix shared memory layout): `layout`
 * is its high half. The offset in the low half is of no use to layouts that are swizzled.
 */
static __device__ __forceinline__ unsigned long long lwc_wgmma_matrix(const void *from, uint layout) {
    return (unsigned long long)layout << 32 | 1u << 16 | (lwc_shared_address(from) & 0x3ffffu) >> 4;
}

/* The same number, which the compiler cannot compute, or what depends on it, before this. */
static __device__ __forceinline__ int lwc_now(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

#define LWC_SUMS_8(s, i) \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), "+f"(s[i + 7])
#define LWC_SUMS_32(s, i) LWC_SUMS_8(s, i), LWC_SUMS_8(s, i + 8), LWC_SUMS_8(s, i + 16), LWC_SUMS_8(s, i + 24)
#define LWC_SUMS_48(s, i) LWC_SUMS_32(s, i), LWC_SUMS_8(s, i + 32), LWC_SUMS_8(s, i + 40)
#define LWC_SUMS_64(s, i) LWC_SUMS_32(s, i), LWC_SUMS_32(s, i + 32)
#define LWC_SUMS_88(s, i) LWC_SUMS_48(s, i), LWC_SUMS_32(s, i + 48), LWC_SUMS_8(s, i + 80)
#define LWC_SUMS_96(s, i) LWC_SUMS_64(s, i), LWC_SUMS_32(s, i + 64)
#define LWC_SUMS_128(s, i) LWC_SUMS_64(s, i), LWC_SUMS_64(s, i + 64)

#define LWC_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LWC_NAMES_48 \
    LWC_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LWC_NAMES_64 \
    LWC_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LWC_NAMES_88 \
    LWC_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87"
#define LWC_NAMES_96 LWC_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define LWC_NAMES_128 \
    LWC_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* Sums are read and written by products that were begun: nothing may touch them until they are waited for, and nothing that
 * reads them then may be moved before.
 */
#define LWC_WGMMA_DONE(count) \
    static __device__ __forceinline__ void lwc_wgmma_done_##count(float *s) { \
        asm volatile("" : LWC_SUMS_##count(s, 0) : : "memory"); \
    }

/* 64 rows of the left matrix times as many columns of the right one as there are sums of 2: `k` is of one instruction. Both
 * matrices have the neighbours of a sum's products side by side.
 */
#define LWC_WGMMA(type, name, k, further, columns, count, a, b) \
    static __device__ __forceinline__ void lwc_wgmma_##name##_##columns( \
        float *s, const void *left, const void *right, uint layout \
    ) { \
        asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; " \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k" #k ".f32." type "." type " {" LWC_NAMES_##count "}, %" \
                     #a ", %" #b ", add, 1, 1" further "; }" \
                     : LWC_SUMS_##count(s, 0) \
                     : "l"(lwc_wgmma_matrix(left, layout)), "l"(lwc_wgmma_matrix(right, layout))); \
    }

/* The same in 16 bits, where of four neighbouring numbers of the left matrix two are there. `places` is a register that says
 * which, and may not change until the product is waited for: of row r of a warp's 16 lane 4 r has those of columns 0 to 15,
 * lane 4 r + 1 of 16 to 31, 4 bits for each four; the high half is of row r + 8.
 */
#define LWC_WGMMA_SPARSE(type, name, columns, count, a, b, c) \
    static __device__ __forceinline__ void lwc_wgmma_sparse_##name##_##columns( \
        float *s, const void *left, const void *right, uint left_layout, uint right_layout, const uint *places \
    ) { \
        asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; " \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #columns "k32.f32." type "." type " {" LWC_NAMES_##count "}, %" \
                     #a ", %" #b ", %" #c ", 0, add, 1, 1, 0, 0; }" \
                     : LWC_SUMS_##count(s, 0) \
                     : "l"(lwc_wgmma_matrix(left, left_layout)), "l"(lwc_wgmma_matrix(right, right_layout)), "r"(*places)); \
    }

#define LWC_WGMMA_OF(columns, count, a, b, c) \
    LWC_WGMMA_DONE(count) \
    LWC_WGMMA("tf32", tf32, 8, "", columns, count, a, b) \
    LWC_WGMMA("f16", float16, 16, ", 0, 0", columns, count, a, b) \
    LWC_WGMMA("bf16", bfloat16, 16, ", 0, 0", columns, count, a, b) \
    LWC_WGMMA_SPARSE("f16", float16, columns, count, a, b, c) \
    LWC_WGMMA_SPARSE("bf16", bfloat16, columns, count, a, b, c)
LWC_WGMMA_OF(64, 32, 32, 33, 34)
LWC_WGMMA_OF(96, 48, 48, 49, 50)
LWC_WGMMA_OF(128, 64, 64, 65, 66)
LWC_WGMMA_OF(176, 88, 88, 89, 90)
LWC_WGMMA_OF(192, 96, 96, 97, 98)
LWC_WGMMA_OF(256, 128, 128, 129, 130)
