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

extern "C" __global__ void __launch_bounds__(512, 2) matvec_csr(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, uint* __restrict__ indices, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y);
extern "C" __global__ void __launch_bounds__(512, 2) matvec_csr(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, uint* __restrict__ indices, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y) {
  alignas(64) float r_ptr[4];
  alignas(64) float r_ptr_1[4];
  alignas(64) uint r_ptr_2[2];
  alignas(64) uint r_ptr_3[2];
  __shared__ alignas(64) float shared_ptr[528];
  __shared__ alignas(64) float added_ptr[64];
  int cse_v1 = (((int)threadIdx.x) / 32);
  int group = (((int)threadIdx.x) / 32);
  int cse_v2 = (((int)threadIdx.x) % 32);
  int within = (((int)threadIdx.x) % 32);
  int cse_v3 = (((int)blockIdx.x) * 16);
  int first_output = (((int)blockIdx.x) * 16);
  alignas(64) float r_ptr_4[1];
  r_ptr_4[0] = 0x0p+0f/*0.000000e+00*/;
  int cse_v7 = ((((int)blockIdx.x) * 16) + ((int)threadIdx.x));
  int result_output = ((((int)blockIdx.x) * 16) + ((int)threadIdx.x));
  alignas(64) float r_ptr_5[1];
  r_ptr_5[0] = 0x0p+0f/*0.000000e+00*/;
  if ((((int)threadIdx.x) < 16) && (((((int)blockIdx.x) * 16) + ((int)threadIdx.x)) < 24)) {
    r_ptr_5[0] = bias[((((int)blockIdx.x) * 16) + ((int)threadIdx.x))];
  }
  int cse_v8 = ((((int)blockIdx.x) * 16) + (((int)threadIdx.x) / 32));
  int output = ((((int)blockIdx.x) * 16) + (((int)threadIdx.x) / 32));
  int first = starts[((((int)blockIdx.x) * 16) + (((int)threadIdx.x) / 32))];
  int count = (starts[(((((int)blockIdx.x) * 16) + (((int)threadIdx.x) / 32)) + 1)] - first);
  int at = (((int)threadIdx.x) % 32);
  int cse_v4 = (first * 4);
  int cse_v5 = (first * 2);
  int cse_v9 = ((((int)threadIdx.x) % 32) * 4);
  int cse_v10 = ((((int)threadIdx.x) % 32) * 2);
  int cse_v13 = ((first * 4) + ((((int)threadIdx.x) % 32) * 4));
  int cse_v14 = ((first * 2) + ((((int)threadIdx.x) % 32) * 2));
  if ((((int)threadIdx.x) % 32) < count) {
    *(float4*)(r_ptr + 0) = *(float4*)(values + ((first * 4) + ((((int)threadIdx.x) % 32) * 4)));
    *(uint2*)(r_ptr_2 + 0) = *(uint2*)(indices + ((first * 2) + ((((int)threadIdx.x) % 32) * 2)));
  }
  int cse_v11 = ((((int)threadIdx.x) % 32) + 32);
  int at_1 = ((((int)threadIdx.x) % 32) + 32);
  if (((((int)threadIdx.x) % 32) + 32) < count) {
    *(float4*)(r_ptr_1 + 0) = *(float4*)(values + (((first * 4) + ((((int)threadIdx.x) % 32) * 4)) + 128));
    *(uint2*)(r_ptr_3 + 0) = *(uint2*)(indices + (((first * 2) + ((((int)threadIdx.x) % 32) * 2)) + 64));
  }
  int number = ((int)threadIdx.x);
  int cse_v6 = (((int)threadIdx.x) * 4);
  if (((int)threadIdx.x) < 6) {
    int at_2 = (((int)threadIdx.x) * 4);
    int column = (((int)threadIdx.x) * 4);
    lwc_copy_16((&(shared_ptr[(((int)threadIdx.x) * 4)])), (&(x[(((int)threadIdx.x) * 4)])), 1);
  }
  if (((int)threadIdx.x) < 1) {
    shared_ptr[24] = 0x0p+0f/*0.000000e+00*/;
  }
  lwc_commit();
  lwc_wait_0();
  __syncthreads();
  #pragma unroll 1
  for (int round = 0; round < ((count + 63) / 64); ++round) {
    int cse_v12 = ((round * 64) + (((int)threadIdx.x) % 32));
    int step = ((round * 64) + (((int)threadIdx.x) % 32));
    int at_3 = ((round * 64) + (((int)threadIdx.x) % 32));
    if (((round * 64) + (((int)threadIdx.x) % 32)) < count) {
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr[0] * shared_ptr[((int)(r_ptr_2[0] & (uint)65535))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr[1] * shared_ptr[((int)(r_ptr_2[0] >> (uint)16))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr[2] * shared_ptr[((int)(r_ptr_2[1] & (uint)65535))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr[3] * shared_ptr[((int)(r_ptr_2[1] >> (uint)16))]));
    }
    int cse_v15 = (((round * 64) + (((int)threadIdx.x) % 32)) + 32);
    int at_4 = (((round * 64) + (((int)threadIdx.x) % 32)) + 32);
    if ((((round * 64) + (((int)threadIdx.x) % 32)) + 32) < count) {
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr_1[0] * shared_ptr[((int)(r_ptr_3[0] & (uint)65535))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr_1[1] * shared_ptr[((int)(r_ptr_3[0] >> (uint)16))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr_1[2] * shared_ptr[((int)(r_ptr_3[1] & (uint)65535))]));
      r_ptr_4[0] = (r_ptr_4[0] + (r_ptr_1[3] * shared_ptr[((int)(r_ptr_3[1] >> (uint)16))]));
    }
    int cse_v16 = (((round * 64) + (((int)threadIdx.x) % 32)) + 64);
    int next = (((round * 64) + (((int)threadIdx.x) % 32)) + 64);
    int at_5 = (((round * 64) + (((int)threadIdx.x) % 32)) + 64);
    int cse_v17 = (((round * 256) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4));
    int cse_v18 = (((round * 128) + (first * 2)) + ((((int)threadIdx.x) % 32) * 2));
    if ((((round * 64) + (((int)threadIdx.x) % 32)) + 64) < count) {
      *(float4*)(r_ptr + 0) = *(float4*)(values + ((((round * 256) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)) + 256));
      *(uint2*)(r_ptr_2 + 0) = *(uint2*)(indices + ((((round * 128) + (first * 2)) + ((((int)threadIdx.x) % 32) * 2)) + 128));
    }
    int cse_v19 = (((round * 64) + (((int)threadIdx.x) % 32)) + 96);
    int at_6 = (((round * 64) + (((int)threadIdx.x) % 32)) + 96);
    if ((((round * 64) + (((int)threadIdx.x) % 32)) + 96) < count) {
      *(float4*)(r_ptr_1 + 0) = *(float4*)(values + ((((round * 256) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)) + 384));
      *(uint2*)(r_ptr_3 + 0) = *(uint2*)(indices + ((((round * 128) + (first * 2)) + ((((int)threadIdx.x) % 32) * 2)) + 192));
    }
  }
  __syncthreads();
  shared_ptr[(((((int)threadIdx.x) / 32) * 33) + (((int)threadIdx.x) % 32))] = r_ptr_4[0];
  __syncthreads();
  int number_1 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 64) {
    int cse_v20 = (((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8));
    int first_1 = (((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8));
    alignas(64) float r_ptr_6[1];
    r_ptr_6[0] = shared_ptr[(((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8))];
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 1)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 2)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 3)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 4)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 5)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 6)]);
    r_ptr_6[0] = (r_ptr_6[0] + shared_ptr[((((((int)threadIdx.x) / 4) * 33) + ((((int)threadIdx.x) % 4) * 8)) + 7)]);
    added_ptr[((int)threadIdx.x)] = r_ptr_6[0];
  }
  __syncthreads();
  if ((((int)threadIdx.x) < 16) && (((((int)blockIdx.x) * 16) + ((int)threadIdx.x)) < 24)) {
    r_ptr_5[0] = (r_ptr_5[0] + added_ptr[(((int)threadIdx.x) * 4)]);
    r_ptr_5[0] = (r_ptr_5[0] + added_ptr[((((int)threadIdx.x) * 4) + 1)]);
    r_ptr_5[0] = (r_ptr_5[0] + added_ptr[((((int)threadIdx.x) * 4) + 2)]);
    r_ptr_5[0] = (r_ptr_5[0] + added_ptr[((((int)threadIdx.x) * 4) + 3)]);
    int to = ((((int)blockIdx.x) * 16) + ((int)threadIdx.x));
    y[((((int)blockIdx.x) * 16) + ((int)threadIdx.x))] = max((r_ptr_5[0] + residual[((((int)blockIdx.x) * 16) + ((int)threadIdx.x))]), 0x0p+0f/*0.000000e+00*/);
  }
}

