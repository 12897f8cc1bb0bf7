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

extern "C" __global__ void __launch_bounds__(256, 2) taps(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, int* __restrict__ channels, ushort* __restrict__ offsets, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y);
extern "C" __global__ void __launch_bounds__(256, 2) taps(float* __restrict__ x, float* __restrict__ residual, int* __restrict__ starts, int* __restrict__ channels, ushort* __restrict__ offsets, float* __restrict__ values, float* __restrict__ bias, float* __restrict__ y) {
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
  int cse_v8 = ((((int)threadIdx.x) % 32) / 4);
  int cse_v12 = (((((int)threadIdx.x) % 32) / 4) * 12);
  int base = ((((((int)threadIdx.x) % 32) / 4) * 12) + (((int)threadIdx.x) % 4));
  __shared__ alignas(64) float window_ptr[960];
  int first_slot = (((int)threadIdx.x) / 32);
  int slot = (((int)threadIdx.x) / 32);
  int cse_v9 = ((((int)threadIdx.x) / 32) + 8);
  int slot_1 = ((((int)threadIdx.x) / 32) + 8);
  alignas(64) float r_ptr[1];
  alignas(64) float r_ptr_1[1];
  float start = bias[channels[(((int)threadIdx.x) / 32)]];
  r_ptr[0] = start;
  float start_1 = bias[channels[((((int)threadIdx.x) / 32) + 8)]];
  r_ptr_1[0] = start_1;
  int cse_v5 = (((int)threadIdx.x) % 64);
  int element = (((int)threadIdx.x) % 64);
  if ((((int)threadIdx.x) % 64) < 60) {
    int cse_v10 = ((((int)threadIdx.x) % 64) % 6);
    int i_3 = ((((int)threadIdx.x) % 64) % 6);
    int cse_v11 = ((((int)threadIdx.x) % 64) / 6);
    int i_4 = ((((int)threadIdx.x) % 64) / 6);
    int position = (((((int)threadIdx.x) % 64) / 6) - 1);
    int cse_v13 = ((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6));
    int position_1 = (((((int)blockIdx.x) * 4) + ((((int)threadIdx.x) % 64) % 6)) - 1);
    int from = (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) % 64)) - 7);
    int cse_v14 = (((((int)threadIdx.x) % 64) / 6) * 12);
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
  for (int tap = first; tap < last; ++tap) {
    int at = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)offsets[tap])) + (((int)threadIdx.x) % 4));
    float value = values[tap];
    r_ptr[0] = (r_ptr[0] + (value * window_ptr[at]));
  }
  int first_1 = starts[((((int)threadIdx.x) / 32) + 8)];
  int last_1 = starts[((((int)threadIdx.x) / 32) + 9)];
  for (int tap_1 = first_1; tap_1 < last_1; ++tap_1) {
    int at_1 = (((((((int)threadIdx.x) % 32) / 4) * 12) + ((int)offsets[tap_1])) + (((int)threadIdx.x) % 4));
    float value_1 = values[tap_1];
    r_ptr_1[0] = (r_ptr_1[0] + (value_1 * window_ptr[at_1]));
  }
  int output = channels[(((int)threadIdx.x) / 32)];
  int cse_v7 = (output * 36);
  int place = (output * 36);
  if (((((int)threadIdx.x) % 32) < 24) && (((((int)blockIdx.x) * 2) + ((((int)threadIdx.x) & 3) >> 1)) < 3)) {
    int cse_v15 = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    int to_1 = ((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4));
    y[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))] = max((r_ptr[0] + residual[((((output * 36) + (((((int)threadIdx.x) % 32) / 4) * 6)) + (((int)blockIdx.x) * 4)) + (((int)threadIdx.x) % 4))]), 0x0p+0f/*0.000000e+00*/);
  }
}

