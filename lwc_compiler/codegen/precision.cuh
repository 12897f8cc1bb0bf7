/* What kernels in less than float32 call by name (kernels/gpu/mma.py, matvec.py): the halves of a word as float32,
 * rounding to a word, and one instruction of a warp on tensor cores.
 *
 * A fragment of the left matrix is 16 rows x 8 words, of the right one 8 words x 8 columns, in the registers of the lanes
 * as the PTX ISA says for mma.m16n8k8 (tf32) and mma.m16n8k16 (float16, bfloat16).
 */
#define LWC_MMA(shape, type) \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
        "{%0, %1, %2, %3};" \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

static __device__ __forceinline__ float lwc_low_float16(uint word) {
    float value;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(word));
    return value;
}

static __device__ __forceinline__ float lwc_high_float16(uint word) {
    float value;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(word));
    return value;
}

static __device__ __forceinline__ float lwc_low_bfloat16(uint word) { return __uint_as_float(word << 16); }

static __device__ __forceinline__ float lwc_high_bfloat16(uint word) { return __uint_as_float(word & 0xffff0000u); }

static __device__ __forceinline__ uint lwc_round_float16(float low, float high) {
    uint word;
    asm("{ .reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
        : "=r"(word) : "f"(low), "f"(high));
    return word;
}

static __device__ __forceinline__ void lwc_mma_float16(float *sums, const uint *a, const uint *b) {
#if __CUDA_ARCH__ >= 800
    LWC_MMA("m16n8k16", "f16");
#else /* Turing multiplies half as many at a time */
    for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

#if __CUDA_ARCH__ >= 800
static __device__ __forceinline__ uint lwc_round_bfloat16(float low, float high) {
    uint word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

static __device__ __forceinline__ uint lwc_round_tf32(float value) {
    uint word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
    return word;
}

/* Of four neighbouring numbers at most two are kept in the left matrix, in tf32 one of two; `places` says which. */
#define LWC_MMA_SPARSE(shape, type) \
    asm("mma.sp::ordered_metadata.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, " \
        "{%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;" \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places))

static __device__ __forceinline__ void lwc_mma_sparse_float16(float *sums, const uint *a, const uint *b, uint places) {
    LWC_MMA_SPARSE("m16n8k32", "f16");
}

static __device__ __forceinline__ void lwc_mma_sparse_bfloat16(float *sums, const uint *a, const uint *b, uint places) {
    LWC_MMA_SPARSE("m16n8k32", "bf16");
}

static __device__ __forceinline__ void lwc_mma_sparse_tf32(float *sums, const uint *a, const uint *b, uint places) {
    LWC_MMA_SPARSE("m16n8k16", "tf32");
}

static __device__ __forceinline__ void lwc_mma_bfloat16(float *sums, const uint *a, const uint *b) {
    LWC_MMA("m16n8k16", "bf16");
}

static __device__ __forceinline__ void lwc_mma_tf32(float *sums, const uint *a, const uint *b) {
    LWC_MMA("m16n8k8", "tf32");
}
#endif

