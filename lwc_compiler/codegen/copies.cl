/* The copies of copies.cuh in OpenCL C: they are done at once. */
#define LWC_COPY(bytes, type) \
    static inline void lwc_copy_##bytes(__local void *to, __global const void *from, int exists) { \
        *(__local type *)to = exists ? *(__global const type *)from : (type)(0); \
    }
LWC_COPY(4, uint)
LWC_COPY(8, uint2)
LWC_COPY(16, uint4)
#define lwc_commit()
#define lwc_wait_0()
#define lwc_wait_1()
static inline void lwc_read_8(void *to, __global const void *from) {
    vstore2(*(__global const uint2 *)from, 0, (uint *)to);
}
static inline void lwc_read_16(void *to, __global const void *from) {
    vstore4(*(__global const uint4 *)from, 0, (uint *)to);
}
