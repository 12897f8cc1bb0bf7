/* What the CUDA C++ that lwc writes finds when it runs on a processor: see `cuda_emulator.cpp`. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <algorithm>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __restrict__

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
struct uint3 { uint x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
struct alignas(8) ushort4 { ushort x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }
using std::max;
using std::min;
#define CUDART_INF_F INFINITY

extern uint3 threadIdx, blockIdx;
#define lwc_shared (emulator::shared_memory()) /* what a launch asks for */

namespace emulator {
const char *launch(
    void (*body)(), const unsigned *grid, const unsigned *block, int cluster, bool overlaps, bool backwards, int without
);
extern int left_out; /* the line whose wait or barrier a launch goes without */

unsigned char *shared_memory();
void warp_barrier();
void wait_for_inputs(bool left_out);
void block_barrier();
void wait_for_copies(int pending);
int lane();
uint32_t shuffle(uint32_t value, int from);
void cluster_barrier();
void arrive_on_barrier(void *barrier, int block);
void wait_for_barrier(void *barrier, int parity);
void wait_for_products(int pending);

static inline float from_half(uint32_t word, int high) {
    _Float16 value;
    const uint16_t bits = (uint16_t)(high ? word >> 16 : word);
    memcpy(&value, &bits, 2);
    return (float)value;
}
static inline float from_bfloat(uint32_t word, int high) {
    return __int_as_float((int)(high ? word & 0xffff0000u : word << 16));
}
}  // namespace emulator

/* Whatever orders what threads do is there for a reason, which tests find out by leaving it out. */
#define LWC_ORDERING(call) (emulator::left_out == __LINE__ ? (void)0 : (call))
#define lwc_inputs_ready() emulator::wait_for_inputs(emulator::left_out == __LINE__)
#define __syncthreads() LWC_ORDERING(emulator::block_barrier())
#define __syncwarp() LWC_ORDERING(emulator::warp_barrier())
#define lwc_wait_0() LWC_ORDERING(emulator::wait_for_copies(0))
#define lwc_wait_1() LWC_ORDERING(emulator::wait_for_copies(1))
#define lwc_cluster_sync() LWC_ORDERING(emulator::cluster_barrier())
#define lwc_barrier_arrive(barrier, block) LWC_ORDERING(emulator::arrive_on_barrier(barrier, block))
#define lwc_barrier_wait(barrier, parity) LWC_ORDERING(emulator::wait_for_barrier(barrier, parity))
#define lwc_wgmma_wait_0() LWC_ORDERING(emulator::wait_for_products(0))
#define lwc_wgmma_wait_1() LWC_ORDERING(emulator::wait_for_products(1))

template <typename T> static T __shfl_sync(unsigned, T value, int from, int = 32) {
    uint32_t bits;
    static_assert(sizeof(T) == 4);
    memcpy(&bits, &value, 4);
    bits = emulator::shuffle(bits, from % 32);
    memcpy(&value, &bits, 4);
    return value;
}
template <typename T> static T __shfl_down_sync(unsigned mask, T value, unsigned by, int = 32) {
    const unsigned lane = emulator::lane();
    return __shfl_sync(mask, value, lane + by < 32 ? lane + by : lane);
}
static inline unsigned __activemask() { return 0xffffffffu; }

void lwc_launch_next();
void lwc_copy_4(void *to, const void *from, int exists);
void lwc_copy_8(void *to, const void *from, int exists);
void lwc_copy_16(void *to, const void *from, int exists);
void lwc_commit();
static inline void lwc_read_8(void *to, const void *from) { memcpy(to, from, 8); }
static inline void lwc_read_16(void *to, const void *from) { memcpy(to, from, 16); }

static inline float lwc_low_float16(uint word) { return emulator::from_half(word, 0); }
static inline float lwc_high_float16(uint word) { return emulator::from_half(word, 1); }
static inline float lwc_low_bfloat16(uint word) { return emulator::from_bfloat(word, 0); }
static inline float lwc_high_bfloat16(uint word) { return emulator::from_bfloat(word, 1); }
static inline uint lwc_round_tf32(float value) {
    uint bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x1000u) & 0xffffe000u;
}
static inline uint lwc_round_float16(float low, float high) {
    const _Float16 halves[] = {(_Float16)low, (_Float16)high};
    uint word;
    memcpy(&word, halves, 4);
    return word;
}
static inline uint lwc_round_bfloat16(float low, float high) {
    uint bits[2];
    memcpy(&bits[0], &low, 4);
    memcpy(&bits[1], &high, 4);
    for (uint &each : bits) each = (each + 0x7fffu + (each >> 16 & 1)) >> 16;
    return bits[0] | bits[1] << 16;
}
void lwc_mma_tf32(float *sums, const uint *a, const uint *b);
void lwc_mma_float16(float *sums, const uint *a, const uint *b);
void lwc_mma_bfloat16(float *sums, const uint *a, const uint *b);
void lwc_mma_sparse_float16(float *sums, const uint *a, const uint *b, uint places);
void lwc_mma_sparse_bfloat16(float *sums, const uint *a, const uint *b, uint places);
void lwc_mma_sparse_tf32(float *sums, const uint *a, const uint *b, uint places);

void lwc_barrier_init(void *barrier, int arrivals);
void lwc_barrier_expect(void *barrier, int bytes);
void lwc_copy_bulk(void *to, const void *from, int bytes, void *barrier);
void lwc_copy_bulk_to_all(void *to, const void *from, int bytes, void *barrier, int mask);
static inline void lwc_registers_24() {}
static inline void lwc_registers_240() {}
static inline void lwc_wgmma_begin() {}
void lwc_wgmma_commit();
static inline int lwc_now(int number) { return number; }
#define LWC_SPARSE_WGMMA(name, columns) \
    void lwc_wgmma_sparse_##name##_##columns( \
        float *sums, const void *left, const void *right, uint left_layout, uint right_layout, const uint *places);
#define LWC_WGMMA(columns, count) \
    static inline void lwc_wgmma_done_##count(float *) {} \
    void lwc_wgmma_tf32_##columns(float *sums, const void *left, const void *right, uint layout); \
    void lwc_wgmma_float16_##columns(float *sums, const void *left, const void *right, uint layout); \
    void lwc_wgmma_bfloat16_##columns(float *sums, const void *left, const void *right, uint layout); \
    LWC_SPARSE_WGMMA(float16, columns) \
    LWC_SPARSE_WGMMA(bfloat16, columns)
LWC_WGMMA(64, 32)
LWC_WGMMA(96, 48)
LWC_WGMMA(128, 64)
LWC_WGMMA(176, 88)
LWC_WGMMA(192, 96)
LWC_WGMMA(256, 128)
