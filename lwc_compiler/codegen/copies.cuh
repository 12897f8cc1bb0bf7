/* Copies of 4, 8 or 16 bytes from the GPU's memory to shared memory (DeviceBuilder.copy): zeros where the source does not
 * exist. From Ampere on they are asynchronous (PTX ISA, cp.async): lwc_commit ends a group of them, and lwc_wait_N waits
 * until all but the last N groups of the thread are there.
 */
#if __CUDA_ARCH__ >= 800
#define LWC_COPY(bytes, cache) \
    static __device__ __forceinline__ void lwc_copy_##bytes(void *to, const void *from, int exists) { \
        asm volatile("cp.async." cache ".shared.global [%0], [%1], " #bytes ", %2;" \
                     : \
                     : "r"((uint)__cvta_generic_to_shared(to)), "l"(from), "r"(exists ? bytes : 0)); \
    }
LWC_COPY(4, "ca")
LWC_COPY(8, "ca")
LWC_COPY(16, "cg")

static __device__ __forceinline__ void lwc_commit() { asm volatile("cp.async.commit_group;"); }

static __device__ __forceinline__ void lwc_wait_0() { asm volatile("cp.async.wait_group 0;" : : : "memory"); }

static __device__ __forceinline__ void lwc_wait_1() { asm volatile("cp.async.wait_group 1;" : : : "memory"); }
#else
static __device__ __forceinline__ void lwc_copy_4(void *to, const void *from, int exists) {
    *(uint *)to = exists ? *(const uint *)from : 0u;
}

static __device__ __forceinline__ void lwc_copy_8(void *to, const void *from, int exists) {
    *(uint2 *)to = exists ? *(const uint2 *)from : make_uint2(0u, 0u);
}

static __device__ __forceinline__ void lwc_copy_16(void *to, const void *from, int exists) {
    *(uint4 *)to = exists ? *(const uint4 *)from : make_uint4(0u, 0u, 0u, 0u);
}

static __device__ __forceinline__ void lwc_commit() {}

static __device__ __forceinline__ void lwc_wait_0() {}

static __device__ __forceinline__ void lwc_wait_1() {}
#endif

/* Reads of 8 or 16 bytes of constants to registers (DeviceBuilder.read) that stay before a wait for the inputs which
 * follows them: others, and those that are marked as of constants (ld.global.nc), the compiler moves behind it.
 */
static __device__ __forceinline__ void lwc_read_8(void *to, const void *from) {
    uint *words = (uint *)to;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
}

static __device__ __forceinline__ void lwc_read_16(void *to, const void *from) {
    uint *words = (uint *)to;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(from));
}
