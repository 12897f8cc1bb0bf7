/* Errors of an artifact for NVIDIA GPUs, and what it uses of the driver, which is loaded when it runs. `LWC_CUDA`, the
 * driver's least version, is defined before this.
 */

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    LWC_ERROR_NULL = 1,
    LWC_ERROR_NO_DRIVER = 2,
    LWC_ERROR_OLD_DRIVER = 3,
    LWC_ERROR_NO_DEVICE = 4,
    LWC_ERROR_ARCHITECTURE = 5,
    LWC_ERROR_DEVICE_MEMORY = 6,
    LWC_ERROR_HOST_MEMORY = 7,
    LWC_ERROR_POINTER = 8,
    LWC_ERROR_CUDA = 1000 /* and the driver's own code */
};

/* What is used of the driver's interface (cuda.h), which keeps its functions under these names for good. */
typedef int lwc_result;
typedef unsigned long long lwc_address;
enum { LWC_CU_OUT_OF_MEMORY = 2, LWC_CU_NO_DEVICE = 100, LWC_CU_BAD_DEVICE = 101, LWC_CU_NO_BINARY = 209,
       LWC_CU_PTX_VERSION = 222, LWC_CU_ECC = 214, LWC_CU_FIRST_STICKY = 700, LWC_CU_LAST_STICKY = 720,
       LWC_CU_UNKNOWN = 999 };
enum { LWC_CU_MAJOR = 75, LWC_CU_MINOR = 76, LWC_CU_MEMORY_TYPE = 2, LWC_CU_DEVICE_MEMORY = 2, LWC_CU_ORDINAL = 9,
       LWC_CU_NON_BLOCKING = 1, LWC_CU_PROGRAMMATIC = 1, LWC_CU_MOST_SHARED_BYTES = 8 };
/* CUDA_KERNEL_NODE_PARAMS_v2 and CUgraphEdgeData. */
typedef struct {
    void *function;
    unsigned grid[3], block[3], shared_bytes;
    void **arguments, **extra;
    void *kernel, *context;
} lwc_node;
typedef struct { unsigned char from_port, to_port, type, reserved[5]; } lwc_edge;
#define LWC_DRIVER(X) \
    X(cuInit, (unsigned)) \
    X(cuDriverGetVersion, (int *)) \
    X(cuDeviceGetCount, (int *)) \
    X(cuDeviceGet, (int *, int)) \
    X(cuDeviceGetAttribute, (int *, int, int)) \
    X(cuDevicePrimaryCtxRetain, (void **, int)) \
    X(cuDevicePrimaryCtxRelease_v2, (int)) \
    X(cuCtxPushCurrent_v2, (void *)) \
    X(cuCtxPopCurrent_v2, (void **)) \
    X(cuModuleLoadData, (void **, const void *)) \
    X(cuModuleUnload, (void *)) \
    X(cuModuleGetFunction, (void **, void *, const char *)) \
    X(cuFuncSetAttribute, (void *, int, int)) \
    X(cuMemAlloc_v2, (lwc_address *, size_t)) \
    X(cuMemFree_v2, (lwc_address)) \
    X(cuMemcpyHtoDAsync_v2, (lwc_address, const void *, size_t, void *)) \
    X(cuMemcpyDtoHAsync_v2, (void *, lwc_address, size_t, void *)) \
    X(cuMemcpyDtoDAsync_v2, (lwc_address, lwc_address, size_t, void *)) \
    X(cuPointerGetAttribute, (void *, int, lwc_address)) \
    X(cuStreamCreate, (void **, unsigned)) \
    X(cuStreamDestroy_v2, (void *)) \
    X(cuStreamSynchronize, (void *)) \
    X(cuEventCreate, (void **, unsigned)) \
    X(cuEventDestroy_v2, (void *)) \
    X(cuEventRecord, (void *, void *)) \
    X(cuEventElapsedTime, (float *, void *, void *)) \
    X(cuGraphCreate, (void **, unsigned)) \
    X(cuGraphAddKernelNode_v2, (void **, void *, void *const *, size_t, const lwc_node *)) \
    X(cuGraphAddEventRecordNode, (void **, void *, void *const *, size_t, void *)) \
    X(cuGraphInstantiateWithFlags, (void **, void *, unsigned long long)) \
    X(cuGraphExecKernelNodeSetParams_v2, (void *, void *, const lwc_node *)) \
    X(cuGraphDestroy, (void *)) \
    X(cuGraphExecDestroy, (void *)) \
    X(cuGraphLaunch, (void *, void *))
/* What drivers before CUDA 12.3 do not have. */
#define LWC_LATER_DRIVER(X) \
    X(cuGraphAddDependencies_v2, (void *, void *const *, void *const *, const lwc_edge *, size_t))

typedef struct {
    void *library;
#define X(name, arguments) lwc_result (*name) arguments;
    LWC_DRIVER(X)
    LWC_LATER_DRIVER(X)
#undef X
} lwc_driver;

static int lwc_code_of(lwc_result result) {
    switch (result) {
        case 0: return 0;
        case LWC_CU_OUT_OF_MEMORY: return LWC_ERROR_DEVICE_MEMORY;
        case LWC_CU_NO_DEVICE: case LWC_CU_BAD_DEVICE: return LWC_ERROR_NO_DEVICE;
        case LWC_CU_NO_BINARY: return LWC_ERROR_ARCHITECTURE;
        case LWC_CU_PTX_VERSION: return LWC_ERROR_OLD_DRIVER;
        default: return LWC_ERROR_CUDA + result;
    }
}

static int lwc_load_driver(lwc_driver *cuda) {
    cuda->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cuda->library == NULL) return LWC_ERROR_NO_DRIVER;
    /* ISO C has no conversion from a pointer to an object to one to a function. */
#define X(name, arguments) \
    { \
        void *symbol = dlsym(cuda->library, #name); \
        memcpy(&cuda->name, &symbol, sizeof symbol); \
    }
    LWC_DRIVER(X)
    LWC_LATER_DRIVER(X)
#undef X
#define X(name, arguments) \
    if (cuda->name == NULL) return LWC_ERROR_OLD_DRIVER;
    LWC_DRIVER(X)
#undef X
    lwc_result result = cuda->cuInit(0);
    int version = 0;
    if (result == 0) result = cuda->cuDriverGetVersion(&version);
    if (result != 0) return lwc_code_of(result);
    return version < LWC_CUDA ? LWC_ERROR_OLD_DRIVER : 0;
}

#define LWC_TRY(call) \
    do { \
        const lwc_result result_ = (call); \
        if (result_ != 0) return lwc_code_of(result_); \
    } while (0)
