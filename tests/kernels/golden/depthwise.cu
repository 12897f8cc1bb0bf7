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

extern "C" __global__ void __launch_bounds__(128, LWC_BLOCKS(0)) depthwise(float* x, float* residual, float* weights, float* bias, float* __restrict__ y) {
  lwc_launch_next();
  int number = ((int)threadIdx.x);
  int existing = ((int)threadIdx.x);
  int cse_v1 = (((int)threadIdx.x) % 4);
  int i = (((int)threadIdx.x) % 4);
  int i_1 = (((int)threadIdx.x) / 4);
  int cse_v3 = ((((int)threadIdx.x) % 16) / 4);
  int i_2 = ((((int)threadIdx.x) % 16) / 4);
  int cse_v2 = (((int)threadIdx.x) / 16);
  int i_3 = (((int)threadIdx.x) / 16);
  int first_row = ((((int)threadIdx.x) % 16) / 4);
  int cse_v4 = ((((int)threadIdx.x) / 16) * 9);
  int first = ((((int)threadIdx.x) / 16) * 9);
  alignas(64) float r_ptr[1];
  alignas(64) float r_ptr_1[1];
  alignas(64) float r_ptr_2[1];
  alignas(64) float r_ptr_3[1];
  alignas(64) float r_ptr_4[1];
  alignas(64) float r_ptr_5[1];
  alignas(64) float r_ptr_6[1];
  alignas(64) float r_ptr_7[1];
  alignas(64) float r_ptr_8[1];
  r_ptr[0] = weights[((((int)threadIdx.x) / 16) * 9)];
  r_ptr_1[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 1)];
  r_ptr_2[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 2)];
  r_ptr_3[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 3)];
  r_ptr_4[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 4)];
  r_ptr_5[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 5)];
  r_ptr_6[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 6)];
  r_ptr_7[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 7)];
  r_ptr_8[0] = weights[(((((int)threadIdx.x) / 16) * 9) + 8)];
  alignas(64) float r_ptr_9[1];
  r_ptr_9[0] = bias[(((int)threadIdx.x) / 16)];
  lwc_inputs_ready();
  int channel = (((int)threadIdx.x) / 16);
  int corner = ((((int)threadIdx.x) % 16) / 4);
  int corner_1 = (((int)threadIdx.x) % 4);
  int cse_v5 = ((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4));
  int base = ((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4));
  float value = x[((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4))];
  r_ptr_9[0] = (r_ptr_9[0] + (value * r_ptr[0]));
  float value_1 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 1)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_1 * r_ptr_1[0]));
  float value_2 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 2)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_2 * r_ptr_2[0]));
  float value_3 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 6)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_3 * r_ptr_3[0]));
  float value_4 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 7)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_4 * r_ptr_4[0]));
  float value_5 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 8)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_5 * r_ptr_5[0]));
  float value_6 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 12)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_6 * r_ptr_6[0]));
  float value_7 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 13)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_7 * r_ptr_7[0]));
  float value_8 = x[(((((((int)threadIdx.x) / 16) * 36) + (((((int)threadIdx.x) % 16) / 4) * 6)) + (((int)threadIdx.x) % 4)) + 14)];
  r_ptr_9[0] = (r_ptr_9[0] + (value_8 * r_ptr_8[0]));
  int to = ((int)threadIdx.x);
  y[((int)threadIdx.x)] = max((r_ptr_9[0] + residual[((int)threadIdx.x)]), 0x0p+0f/*0.000000e+00*/);
}

