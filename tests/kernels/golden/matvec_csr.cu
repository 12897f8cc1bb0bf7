typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef __CUDACC_RTC__ /* nvcc has these */
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#endif
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000LL)
#define CUDART_NAN __longlong_as_double(0x7fffffffffffffffLL)

#if __CUDA_ARCH__ == 750
#define LWC_BLOCK_KILOBYTES 64
#endif
#if __CUDA_ARCH__ == 800
#define LWC_BLOCK_KILOBYTES 163
#endif
#if __CUDA_ARCH__ == 860
#define LWC_BLOCK_KILOBYTES 99
#endif
#if __CUDA_ARCH__ == 870
#define LWC_BLOCK_KILOBYTES 163
#endif
#if __CUDA_ARCH__ == 890
#define LWC_BLOCK_KILOBYTES 99
#endif
#if __CUDA_ARCH__ == 900
#define LWC_BLOCK_KILOBYTES 227
#endif
#if __CUDA_ARCH__ == 1000
#define LWC_BLOCK_KILOBYTES 227
#endif
#if __CUDA_ARCH__ == 1200
#define LWC_BLOCK_KILOBYTES 99
#endif
#define LWC_BLOCKS(bytes) (2 * ((bytes) + 1024) <= 1024 * (LWC_BLOCK_KILOBYTES + 1) ? 2 : 1)
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
/* Launches that overlap (PTX ISA, griddepcontrol): from Hopper on, kernel N + 1 of a network may be launched while kernel N
 * still runs, once every block of N has called lwc_launch_next, and lwc_inputs_ready waits until all blocks of N have ended
 * and what they wrote can be read. Every thread of every kernel waits before it reads or writes what others write or read,
 * and so N can only have ended after N - 1 had: with N, all before have ended. That also makes memory safe which N + 1
 * writes and a kernel before N read. Constants are never written while a network runs, and may be read before.
 */
#if __CUDA_ARCH__ >= 900
static __device__ __forceinline__ void lwc_launch_next() { asm volatile("griddepcontrol.launch_dependents;"); }

static __device__ __forceinline__ void lwc_inputs_ready() { asm volatile("griddepcontrol.wait;" : : : "memory"); }
#else
static __device__ __forceinline__ void lwc_launch_next() {}

static __device__ __forceinline__ void lwc_inputs_ready() {}
#endif

extern "C" __global__ void __launch_bounds__(512, LWC_BLOCKS(2368)) matvec_csr(float* x, float* residual, int* starts, uint* indices, float* values, float* bias, float* __restrict__ y) {
  lwc_launch_next();
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
    lwc_read_16((&(r_ptr[0])), (&(values[((first * 4) + ((((int)threadIdx.x) % 32) * 4))])));
    lwc_read_8((&(r_ptr_2[0])), (&(indices[((first * 2) + ((((int)threadIdx.x) % 32) * 2))])));
  }
  int cse_v11 = ((((int)threadIdx.x) % 32) + 32);
  int at_1 = ((((int)threadIdx.x) % 32) + 32);
  if (((((int)threadIdx.x) % 32) + 32) < count) {
    lwc_read_16((&(r_ptr_1[0])), (&(values[(((first * 4) + ((((int)threadIdx.x) % 32) * 4)) + 128)])));
    lwc_read_8((&(r_ptr_3[0])), (&(indices[(((first * 2) + ((((int)threadIdx.x) % 32) * 2)) + 64)])));
  }
  lwc_inputs_ready();
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
      lwc_read_16((&(r_ptr[0])), (&(values[((((round * 256) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)) + 256)])));
      lwc_read_8((&(r_ptr_2[0])), (&(indices[((((round * 128) + (first * 2)) + ((((int)threadIdx.x) % 32) * 2)) + 128)])));
    }
    int cse_v19 = (((round * 64) + (((int)threadIdx.x) % 32)) + 96);
    int at_6 = (((round * 64) + (((int)threadIdx.x) % 32)) + 96);
    if ((((round * 64) + (((int)threadIdx.x) % 32)) + 96) < count) {
      lwc_read_16((&(r_ptr_1[0])), (&(values[((((round * 256) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)) + 384)])));
      lwc_read_8((&(r_ptr_3[0])), (&(indices[((((round * 128) + (first * 2)) + ((((int)threadIdx.x) % 32) * 2)) + 192)])));
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

