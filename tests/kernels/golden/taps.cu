typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000LL)
#define CUDART_NAN __longlong_as_double(0x7fffffffffffffffLL)

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

/* Of four neighbouring numbers at most two are kept in the left matrix; `places` says which. */
#define LWC_MMA_SPARSE(type) \
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, " \
        "{%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;" \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places))

static __device__ __forceinline__ void lwc_mma_sparse_float16(float *sums, const uint *a, const uint *b, uint places) {
    LWC_MMA_SPARSE("f16");
}

static __device__ __forceinline__ void lwc_mma_sparse_bfloat16(float *sums, const uint *a, const uint *b, uint places) {
    LWC_MMA_SPARSE("bf16");
}

static __device__ __forceinline__ void lwc_mma_bfloat16(float *sums, const uint *a, const uint *b) {
    LWC_MMA("m16n8k16", "bf16");
}

static __device__ __forceinline__ void lwc_mma_tf32(float *sums, const uint *a, const uint *b) {
    LWC_MMA("m16n8k8", "tf32");
}
#endif

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

extern "C" __global__ void __launch_bounds__(128, 2) taps(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, int* __restrict__ channels, uint* __restrict__ offsets, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y);
extern "C" __global__ void __launch_bounds__(128, 2) taps(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, int* __restrict__ channels, uint* __restrict__ offsets, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y) {
  int cse_v1 = (((int)threadIdx.x) % 32);
  int lane = (((int)threadIdx.x) % 32);
  int cse_v2 = (((int)threadIdx.x) / 32);
  int warp = (((int)threadIdx.x) / 32);
  int i = ((int)blockIdx.x);
  int i_1 = 0;
  int i_2 = 0;
  int cse_v3 = (((int)blockIdx.x) * 4);
  int corner = (((int)blockIdx.x) * 4);
  int cse_v4 = (((int)threadIdx.x) % 4);
  int cse_v11 = ((((int)threadIdx.x) % 32) / 4);
  int cse_v15 = (((((int)threadIdx.x) % 32) / 4) * 12);
  int cse_v18 = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  int base = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  __shared__ alignas(64) float window_ptr[1080];
  __shared__ alignas(64) float held_ptr[64];
  __shared__ alignas(64) uint where_ptr[32];
  __shared__ alignas(64) int lists_ptr[5];
  int part = 0;
  int place = (((int)threadIdx.x) / 32);
  int cse_v5 = (((int)blockIdx.y) * 4);
  int cse_v12 = ((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32));
  int slot = ((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32));
  int lists = (((int)blockIdx.y) * 4);
  int element = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 5) {
    lwc_copy_4((&(lists_ptr[((int)threadIdx.x)])), (&(starts[((((int)blockIdx.y) * 4) + ((int)threadIdx.x))])), 1);
  }
  int first = starts[(((int)blockIdx.y) * 4)];
  int count = (starts[((((int)blockIdx.y) * 4) + 4)] - first);
  int element_1 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < count) {
    int cse_v6 = (((int)threadIdx.x) * 4);
    lwc_copy_16((&(held_ptr[(((int)threadIdx.x) * 4)])), (&(values[((first * 4) + (((int)threadIdx.x) * 4))])), 1);
    int cse_v7 = (((int)threadIdx.x) * 2);
    lwc_copy_8((&(where_ptr[(((int)threadIdx.x) * 2)])), (&(offsets[((first * 2) + (((int)threadIdx.x) * 2))])), 1);
  }
  int cse_v8 = (((int)threadIdx.x) % 64);
  int element_2 = (((int)threadIdx.x) % 64);
  if ((((int)threadIdx.x) % 64) < 60) {
    int cse_v13 = ((((int)threadIdx.x) % 64) % 6);
    int i_3 = ((((int)threadIdx.x) % 64) % 6);
    int cse_v14 = ((((int)threadIdx.x) % 64) / 6);
    int i_4 = ((((int)threadIdx.x) % 64) / 6);
    int position = (((((int)threadIdx.x) % 64) / 6) - 1);
    int cse_v16 = ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6));
    int position_1 = (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) - 1);
    int from = (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) % 64)) - 7);
    int cse_v17 = (((((int)threadIdx.x) % 64) / 6) * 12);
    int to = ((((((int)threadIdx.x) % 64) / 6) * 12) + ((((int)threadIdx.x) % 64) % 6));
    for (int j = 0; j < 4; ++j) {
      int cse_v9 = (((int)threadIdx.x) / 64);
      int channel = ((j * 2) + (((int)threadIdx.x) / 64));
      lwc_copy_4((&(window_ptr[((((j * 240) + ((((int)threadIdx.x) / 64) * 120)) + (((((int)threadIdx.x) % 64) / 6) * 12)) + ((((int)threadIdx.x) % 64) % 6))])), (&(x[(((((j * 72) + ((((int)threadIdx.x) / 64) * 36)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 64)) - 7)])), ((int)((((6 <= (((int)threadIdx.x) % 64)) && ((((int)threadIdx.x) % 64) < 42)) && (1 <= ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)))) && (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) < 7))));
    }
  }
  lwc_commit();
  int element_3 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 120) {
    window_ptr[(((int)threadIdx.x) + 960)] = 0x0p+0f/*0.000000e+00*/;
  }
  alignas(64) float r_ptr[1];
  float start = bias[channels[((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32))]];
  r_ptr[0] = start;
  lwc_wait_0();
  __syncthreads();
  int here = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  int first_step = lists_ptr[0];
  int list = (((int)threadIdx.x) / 32);
  int first_1 = (lists_ptr[(((int)threadIdx.x) / 32)] - first_step);
  int last = (lists_ptr[((((int)threadIdx.x) / 32) + 1)] - first_step);
  for (int step = first_1; step < last; ++step) {
    int at = step;
    alignas(64) uint r_ptr_1[2];
    alignas(64) float r_ptr_2[4];
    *(uint2*)(r_ptr_1 + 0) = *(uint2*)(where_ptr + (step * 2));
    *(float4*)(r_ptr_2 + 0) = *(float4*)(held_ptr + (step * 4));
    int at_1 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_1[0] & (uint)65535))) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_2[0] * window_ptr[at_1]));
    int at_2 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_1[0] >> (uint)16))) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_2[1] * window_ptr[at_2]));
    int at_3 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_1[1] & (uint)65535))) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_2[2] * window_ptr[at_3]));
    int at_4 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_1[1] >> (uint)16))) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_2[3] * window_ptr[at_4]));
  }
  int output = channels[((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32))];
  int cse_v10 = (output * 36);
  int to_1 = (output * 36);
  if (((((int)threadIdx.x) % 32) < 24) && (((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1)) < 3)) {
    int cse_v19 = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    int result = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    y[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))] = max((r_ptr[0] + residual[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))]), 0x0p+0f/*0.000000e+00*/);
  }
}

