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

extern "C" __global__ void __launch_bounds__(256, 2) taps(float* x, float* residual, int* starts, int* channels, ushort* offsets, float* values, float* bias, float* __restrict__ y);
extern "C" __global__ void __launch_bounds__(256, 2) taps(float* x, float* residual, int* starts, int* channels, ushort* offsets, float* values, float* bias, float* __restrict__ y) {
  lwc_launch_next();
  lwc_inputs_ready();
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
  int cse_v10 = ((((int)threadIdx.x) % 32) / 4);
  int cse_v14 = (((((int)threadIdx.x) % 32) / 4) * 12);
  int base = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  __shared__ alignas(64) float window_ptr[1080];
  int part = 0;
  int first_slot = (((int)threadIdx.x) / 32);
  int slot = (((int)threadIdx.x) / 32);
  int cse_v11 = ((((int)threadIdx.x) / 32) + 8);
  int slot_1 = ((((int)threadIdx.x) / 32) + 8);
  alignas(64) float r_ptr[1];
  alignas(64) float r_ptr_1[1];
  float start = bias[channels[(((int)threadIdx.x) / 32)]];
  r_ptr[0] = start;
  float start_1 = bias[channels[((((int)threadIdx.x) / 32) + 8)]];
  r_ptr_1[0] = start_1;
  int element = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 120) {
    window_ptr[(((int)threadIdx.x) + 960)] = 0x0p+0f/*0.000000e+00*/;
  }
  int cse_v5 = (((int)threadIdx.x) % 64);
  int element_1 = (((int)threadIdx.x) % 64);
  if ((((int)threadIdx.x) % 64) < 60) {
    int cse_v12 = ((((int)threadIdx.x) % 64) % 6);
    int i_3 = ((((int)threadIdx.x) % 64) % 6);
    int cse_v13 = ((((int)threadIdx.x) % 64) / 6);
    int i_4 = ((((int)threadIdx.x) % 64) / 6);
    int position = (((((int)threadIdx.x) % 64) / 6) - 1);
    int cse_v15 = ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6));
    int position_1 = (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) - 1);
    int from = (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) % 64)) - 7);
    int cse_v16 = (((((int)threadIdx.x) % 64) / 6) * 12);
    int to = ((((((int)threadIdx.x) % 64) / 6) * 12) + ((((int)threadIdx.x) % 64) % 6));
    for (int j = 0; j < 2; ++j) {
      int cse_v6 = (((int)threadIdx.x) / 64);
      int channel = ((j * 4) + (((int)threadIdx.x) / 64));
      float condval;
      if ((((6 <= (((int)threadIdx.x) % 64)) && ((((int)threadIdx.x) % 64) < 42)) && (1 <= ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)))) && (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) < 7)) {
        condval = x[(((((j * 144) + ((((int)threadIdx.x) / 64) * 36)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 64)) - 7)];
      } else {
        condval = 0x0p+0f/*0.000000e+00*/;
      }
      window_ptr[((((j * 480) + ((((int)threadIdx.x) / 64) * 120)) + (((((int)threadIdx.x) % 64) / 6) * 12)) + ((((int)threadIdx.x) % 64) % 6))] = condval;
    }
  }
  __syncthreads();
  int list_at = 0;
  int first = starts[(((int)threadIdx.x) / 32)];
  int last = starts[((((int)threadIdx.x) / 32) + 1)];
  for (int step = first; step < last; ++step) {
    alignas(64) ushort r_ptr_2[4];
    alignas(64) float r_ptr_3[4];
    int cse_v7 = (step * 4);
    *(ushort4*)(r_ptr_2 + 0) = *(ushort4*)(offsets + (step * 4));
    *(float4*)(r_ptr_3 + 0) = *(float4*)(values + (step * 4));
    int at = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_2[0])) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_3[0] * window_ptr[at]));
    int at_1 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_2[1])) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_3[1] * window_ptr[at_1]));
    int at_2 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_2[2])) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_3[2] * window_ptr[at_2]));
    int at_3 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_2[3])) + (((int)threadIdx.x) % 4));
    r_ptr[0] = (r_ptr[0] + (r_ptr_3[3] * window_ptr[at_3]));
  }
  int first_1 = starts[((((int)threadIdx.x) / 32) + 8)];
  int last_1 = starts[((((int)threadIdx.x) / 32) + 9)];
  for (int step_1 = first_1; step_1 < last_1; ++step_1) {
    alignas(64) ushort r_ptr_4[4];
    alignas(64) float r_ptr_5[4];
    int cse_v8 = (step_1 * 4);
    *(ushort4*)(r_ptr_4 + 0) = *(ushort4*)(offsets + (step_1 * 4));
    *(float4*)(r_ptr_5 + 0) = *(float4*)(values + (step_1 * 4));
    int at_4 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_4[0])) + (((int)threadIdx.x) % 4));
    r_ptr_1[0] = (r_ptr_1[0] + (r_ptr_5[0] * window_ptr[at_4]));
    int at_5 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_4[1])) + (((int)threadIdx.x) % 4));
    r_ptr_1[0] = (r_ptr_1[0] + (r_ptr_5[1] * window_ptr[at_5]));
    int at_6 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_4[2])) + (((int)threadIdx.x) % 4));
    r_ptr_1[0] = (r_ptr_1[0] + (r_ptr_5[2] * window_ptr[at_6]));
    int at_7 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)r_ptr_4[3])) + (((int)threadIdx.x) % 4));
    r_ptr_1[0] = (r_ptr_1[0] + (r_ptr_5[3] * window_ptr[at_7]));
  }
  int output = channels[(((int)threadIdx.x) / 32)];
  int cse_v9 = (output * 36);
  int place = (output * 36);
  if (((((int)threadIdx.x) % 32) < 24) && (((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1)) < 3)) {
    int cse_v17 = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    int to_1 = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    y[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))] = max((r_ptr[0] + residual[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))]), 0x0p+0f/*0.000000e+00*/);
  }
}

