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

extern "C" __global__ void __launch_bounds__(256, 2) matvec_csr(float* x, float* residual, int* __restrict__ starts, ushort* __restrict__ indices, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y);
extern "C" __global__ void __launch_bounds__(256, 2) matvec_csr(float* x, float* residual, int* __restrict__ starts, ushort* __restrict__ indices, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y) {
  lwc_launch_next();
  lwc_inputs_ready();
  int cse_v1 = (((int)threadIdx.x) % 32);
  int lane = (((int)threadIdx.x) % 32);
  int cse_v2 = (((int)threadIdx.x) / 32);
  int warp = (((int)threadIdx.x) / 32);
  __shared__ alignas(64) float inputs_ptr[28];
  __shared__ alignas(64) float partials_ptr[264];
  int cse_v3 = (((int)blockIdx.x) * 8);
  int first_output = (((int)blockIdx.x) * 8);
  alignas(64) float r_ptr[1];
  r_ptr[0] = 0x0p+0f/*0.000000e+00*/;
  int element = ((int)threadIdx.x);
  if (((int)threadIdx.x) < 28) {
    int at = ((int)threadIdx.x);
    int column = ((int)threadIdx.x);
    float condval;
    if ((((int)threadIdx.x) < 24) && (((int)threadIdx.x) < 24)) {
      condval = x[((int)threadIdx.x)];
    } else {
      condval = 0x0p+0f/*0.000000e+00*/;
    }
    inputs_ptr[((int)threadIdx.x)] = condval;
  }
  __syncthreads();
  int cse_v5 = ((((int)blockIdx.x) * 8) + (((int)threadIdx.x) / 32));
  int output = ((((int)blockIdx.x) * 8) + (((int)threadIdx.x) / 32));
  int first = starts[((((int)blockIdx.x) * 8) + (((int)threadIdx.x) / 32))];
  int count = (starts[(((((int)blockIdx.x) * 8) + (((int)threadIdx.x) / 32)) + 1)] - first);
  for (int round = 0; round < ((count + 31) / 32); ++round) {
    int cse_v6 = ((round * 32) + (((int)threadIdx.x) % 32));
    int step = ((round * 32) + (((int)threadIdx.x) % 32));
    if (((round * 32) + (((int)threadIdx.x) % 32)) < count) {
      alignas(64) float r_ptr_1[4];
      int cse_v8 = (((round * 128) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4));
      *(float4*)(r_ptr_1 + 0) = *(float4*)(values + (((round * 128) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)));
      alignas(64) ushort r_ptr_2[4];
      *(ushort4*)(r_ptr_2 + 0) = *(ushort4*)(indices + (((round * 128) + (first * 4)) + ((((int)threadIdx.x) % 32) * 4)));
      int at_1 = ((int)r_ptr_2[0]);
      r_ptr[0] = (r_ptr[0] + (r_ptr_1[0] * inputs_ptr[at_1]));
      int at_2 = ((int)r_ptr_2[1]);
      r_ptr[0] = (r_ptr[0] + (r_ptr_1[1] * inputs_ptr[at_2]));
      int at_3 = ((int)r_ptr_2[2]);
      r_ptr[0] = (r_ptr[0] + (r_ptr_1[2] * inputs_ptr[at_3]));
      int at_4 = ((int)r_ptr_2[3]);
      r_ptr[0] = (r_ptr[0] + (r_ptr_1[3] * inputs_ptr[at_4]));
    }
  }
  partials_ptr[(((((int)threadIdx.x) / 32) * 33) + (((int)threadIdx.x) % 32))] = r_ptr[0];
  __syncthreads();
  int result = ((int)threadIdx.x);
  int cse_v7 = ((((int)blockIdx.x) * 8) + ((int)threadIdx.x));
  int output_1 = ((((int)blockIdx.x) * 8) + ((int)threadIdx.x));
  if ((((int)threadIdx.x) < 8) && (((((int)blockIdx.x) * 8) + ((int)threadIdx.x)) < 24)) {
    alignas(64) float r_ptr_3[1];
    r_ptr_3[0] = bias[((((int)blockIdx.x) * 8) + ((int)threadIdx.x))];
    int cse_v4 = (((int)threadIdx.x) * 33);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[(((int)threadIdx.x) * 33)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 1)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 2)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 3)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 4)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 5)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 6)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 7)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 8)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 9)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 10)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 11)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 12)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 13)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 14)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 15)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 16)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 17)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 18)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 19)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 20)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 21)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 22)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 23)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 24)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 25)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 26)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 27)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 28)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 29)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 30)]);
    r_ptr_3[0] = (r_ptr_3[0] + partials_ptr[((((int)threadIdx.x) * 33) + 31)]);
    int to = ((((int)blockIdx.x) * 8) + ((int)threadIdx.x));
    y[((((int)blockIdx.x) * 8) + ((int)threadIdx.x))] = max((r_ptr_3[0] + residual[((((int)blockIdx.x) * 8) + ((int)threadIdx.x))]), 0x0p+0f/*0.000000e+00*/);
  }
}

