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

extern "C" __global__ void __launch_bounds__(128, LWC_BLOCKS(4756)) taps(float* x, float* residual, int* starts, int* channels, uint* offsets, float* values, float* bias, float* __restrict__ y) {
  lwc_launch_next();
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
  int cse_v12 = ((((int)threadIdx.x) % 32) / 4);
  int cse_v16 = (((((int)threadIdx.x) % 32) / 4) * 12);
  int cse_v21 = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  int base = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  __shared__ alignas(64) float window_ptr[1080];
  __shared__ alignas(64) float held_ptr[64];
  __shared__ alignas(64) uint where_ptr[32];
  __shared__ alignas(64) int lists_ptr[5];
  alignas(64) int r_ptr[1];
  alignas(64) int r_ptr_1[1];
  int cse_v5 = (((int)blockIdx.y) * 4);
  int lists = (((int)blockIdx.y) * 4);
  r_ptr[0] = starts[(((int)blockIdx.y) * 4)];
  r_ptr_1[0] = starts[((((int)blockIdx.y) * 4) + 4)];
  int part = 0;
  int place = (((int)threadIdx.x) / 32);
  int cse_v13 = ((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32));
  int slot = ((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32));
  int lists_1 = (((int)blockIdx.y) * 4);
  int element = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 5) {
    lwc_copy_4((&(lists_ptr[((int)threadIdx.x)])), (&(starts[((((int)blockIdx.y) * 4) + ((int)threadIdx.x))])), 1);
  }
  int first = r_ptr[0];
  int count = (r_ptr_1[0] - first);
  int element_1 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < count) {
    int cse_v6 = (((int)threadIdx.x) * 4);
    lwc_copy_16((&(held_ptr[(((int)threadIdx.x) * 4)])), (&(values[((first * 4) + (((int)threadIdx.x) * 4))])), 1);
  }
  int element_2 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < count) {
    int cse_v7 = (((int)threadIdx.x) * 2);
    lwc_copy_8((&(where_ptr[(((int)threadIdx.x) * 2)])), (&(offsets[((first * 2) + (((int)threadIdx.x) * 2))])), 1);
  }
  int element_3 = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 120) {
    window_ptr[(((int)threadIdx.x) + 960)] = 0x0p+0f/*0.000000e+00*/;
  }
  lwc_inputs_ready();
  int cse_v8 = (((int)threadIdx.x) % 64);
  int element_4 = (((int)threadIdx.x) % 64);
  int cse_v14 = ((((int)threadIdx.x) % 64) % 6);
  int i_3 = ((((int)threadIdx.x) % 64) % 6);
  int cse_v15 = ((((int)threadIdx.x) % 64) / 6);
  int i_4 = ((((int)threadIdx.x) % 64) / 6);
  if ((((int)threadIdx.x) % 64) < 60) {
    int position = (((((int)threadIdx.x) % 64) / 6) - 1);
    int cse_v17 = ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6));
    int position_1 = (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) - 1);
    int from = (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) % 64)) - 7);
    int cse_v18 = (((((int)threadIdx.x) % 64) / 6) * 12);
    int to = ((((((int)threadIdx.x) % 64) / 6) * 12) + ((((int)threadIdx.x) % 64) % 6));
    for (int j = 0; j < 4; ++j) {
      int cse_v9 = (((int)threadIdx.x) / 64);
      int unit = ((j * 2) + (((int)threadIdx.x) / 64));
      lwc_copy_4((&(window_ptr[((((j * 240) + ((((int)threadIdx.x) / 64) * 120)) + (((((int)threadIdx.x) % 64) / 6) * 12)) + ((((int)threadIdx.x) % 64) % 6))])), (&(x[(((((j * 72) + ((((int)threadIdx.x) / 64) * 36)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 64)) - 7)])), ((int)((((6 <= (((int)threadIdx.x) % 64)) && ((((int)threadIdx.x) % 64) < 42)) && (1 <= ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)))) && (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) < 7))));
    }
  }
  lwc_commit();
  alignas(64) float r_ptr_2[1];
  float start = bias[channels[((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32))]];
  r_ptr_2[0] = start;
  int first_output = channels[((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32))];
  int cse_v10 = (first_output * 36);
  int to_1 = (first_output * 36);
  int cse_v19 = ((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1));
  int cse_v20 = (((((int)threadIdx.x) % 32) / 4) * 6);
  float condval;
  if (((((int)threadIdx.x) % 32) < 24) && (((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1)) < 3)) {
    condval = residual[((((first_output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))];
  } else {
    condval = 0x0p+0f/*0.000000e+00*/;
  }
  r_ptr_2[0] = (r_ptr_2[0] + condval);
  lwc_wait_0();
  __syncthreads();
  int first_step = lists_ptr[0];
  int here = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  int list = (((int)threadIdx.x) / 32);
  int first_1 = (lists_ptr[(((int)threadIdx.x) / 32)] - first_step);
  int last = (lists_ptr[((((int)threadIdx.x) / 32) + 1)] - first_step);
  for (int step = first_1; step < last; ++step) {
    int at = step;
    alignas(64) uint r_ptr_3[2];
    alignas(64) float r_ptr_4[4];
    *(uint2*)(r_ptr_3 + 0) = *(uint2*)(where_ptr + (step * 2));
    *(float4*)(r_ptr_4 + 0) = *(float4*)(held_ptr + (step * 4));
    int at_1 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_3[0] & (uint)65535))) + (((int)threadIdx.x) % 4));
    r_ptr_2[0] = (r_ptr_2[0] + (r_ptr_4[0] * window_ptr[at_1]));
    int at_2 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_3[0] >> (uint)16))) + (((int)threadIdx.x) % 4));
    r_ptr_2[0] = (r_ptr_2[0] + (r_ptr_4[1] * window_ptr[at_2]));
    int at_3 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_3[1] & (uint)65535))) + (((int)threadIdx.x) % 4));
    r_ptr_2[0] = (r_ptr_2[0] + (r_ptr_4[2] * window_ptr[at_3]));
    int at_4 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)(r_ptr_3[1] >> (uint)16))) + (((int)threadIdx.x) % 4));
    r_ptr_2[0] = (r_ptr_2[0] + (r_ptr_4[3] * window_ptr[at_4]));
  }
  int first_output_1 = channels[((((int)blockIdx.y) * 4) + (((int)threadIdx.x) / 32))];
  int cse_v11 = (first_output_1 * 36);
  int to_2 = (first_output_1 * 36);
  if (((((int)threadIdx.x) % 32) < 24) && (((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1)) < 3)) {
    int cse_v22 = ((((first_output_1 * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    int at_5 = ((((first_output_1 * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    y[((((first_output_1 * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))] = max(r_ptr_2[0], 0x0p+0f/*0.000000e+00*/);
  }
}

