/* The runtime of an artifact for NVIDIA GPUs: launches its kernels through the driver, which is loaded when it runs.
 *
 * `LWC(name)` adds the model's prefix. The generated text before this defines it, with `LWC_INPUTS`, `LWC_OUTPUTS`,
 * `LWC_CODES`, `LWC_KERNELS`, `LWC_LAUNCHES`, `LWC_PLACES`, `LWC_WEIGHT_BYTES`, `LWC_ARENA_BYTES` and `LWC_CUDA` (the
 * least version of the driver), and that after it the tables.
 */

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
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
enum { LWC_CU_MAJOR = 75, LWC_CU_MINOR = 76, LWC_CU_MEMORY_TYPE = 2, LWC_CU_DEVICE_MEMORY = 2,
       LWC_CU_NON_BLOCKING = 1, LWC_CU_THREAD_LOCAL = 1, LWC_CU_EXTERNAL = 1 };
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
    X(cuMemAlloc_v2, (lwc_address *, size_t)) \
    X(cuMemFree_v2, (lwc_address)) \
    X(cuMemcpyHtoDAsync_v2, (lwc_address, const void *, size_t, void *)) \
    X(cuMemcpyDtoHAsync_v2, (void *, lwc_address, size_t, void *)) \
    X(cuMemcpyDtoDAsync_v2, (lwc_address, lwc_address, size_t, void *)) \
    X(cuPointerGetAttribute, (void *, int, lwc_address)) \
    X(cuStreamCreate, (void **, unsigned)) \
    X(cuStreamDestroy_v2, (void *)) \
    X(cuStreamSynchronize, (void *)) \
    X(cuStreamBeginCapture_v2, (void *, int)) \
    X(cuStreamEndCapture, (void *, void **)) \
    X(cuEventCreate, (void **, unsigned)) \
    X(cuEventDestroy_v2, (void *)) \
    X(cuEventRecordWithFlags, (void *, void *, unsigned)) \
    X(cuEventElapsedTime, (float *, void *, void *)) \
    X(cuLaunchKernel, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, \
                       void **)) \
    X(cuGraphInstantiateWithFlags, (void **, void *, unsigned long long)) \
    X(cuGraphDestroy, (void *)) \
    X(cuGraphExecDestroy, (void *)) \
    X(cuGraphLaunch, (void *, void *))

typedef struct {
    void *library;
#define X(name, arguments) lwc_result (*name) arguments;
    LWC_DRIVER(X)
#undef X
} lwc_driver;

/* Machine code for GPUs of one compute capability, or PTX for those of a later one. */
typedef struct {
    int architecture; /* compute capability times ten */
    int ptx;
    const unsigned char *image;
} lwc_code;

/* Where an operand lies: in the weights or in the arena. */
typedef struct {
    int weights;
    size_t offset;
    size_t bytes;
} lwc_place;

typedef struct {
    int kernel;
    unsigned grid[3], block[3];
    int first, count; /* operands, of lwc_places */
} lwc_launch;

static const lwc_code lwc_codes[LWC_CODES]; /* ascending, machine code first */
static const char *const lwc_kernels[LWC_KERNELS + 1];
static const lwc_launch lwc_launches[LWC_LAUNCHES + 1];
static const lwc_place lwc_places[LWC_PLACES + 1];
static const lwc_place lwc_input_places[LWC_INPUTS + 1];
static const lwc_place lwc_output_places[LWC_OUTPUTS + 1];

struct LWC(context) {
    lwc_driver cuda;
    int device;
    void *owner; /* the device's primary context */
    void *module;
    void *functions[LWC_KERNELS + 1];
    void *stream;
    void *graph; /* of all launches; NULL until the first run */
    void *timed; /* the same with an event before each and after the last; NULL until the first profile */
    void *events[LWC_LAUNCHES + 3]; /* before the inputs are copied, those of `timed`, after the outputs are */
    lwc_address weights, arena;
    int lost; /* the error after which the device's context cannot be used; 0: none */
};

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
        if (symbol == NULL) return LWC_ERROR_OLD_DRIVER; \
        memcpy(&cuda->name, &symbol, sizeof symbol); \
    }
    LWC_DRIVER(X)
#undef X
    lwc_result result = cuda->cuInit(0);
    int version = 0;
    if (result == 0) result = cuda->cuDriverGetVersion(&version);
    if (result != 0) return lwc_code_of(result);
    return version < LWC_CUDA ? LWC_ERROR_OLD_DRIVER : 0;
}

/* The code for a compute capability: machine code runs on the same major version and no lesser minor one. */
static const lwc_code *lwc_code_for(int major, int minor) {
    const lwc_code *best = NULL;
    for (int i = 0; i < LWC_CODES; i++) {
        const lwc_code *code = &lwc_codes[i];
        const int runs = code->ptx ? best == NULL && code->architecture <= 10 * major + minor
                                   : code->architecture / 10 == major && code->architecture % 10 <= minor;
        if (runs) best = code;
    }
    return best;
}

#define LWC_TRY(call) \
    do { \
        const lwc_result result_ = (call); \
        if (result_ != 0) return lwc_code_of(result_); \
    } while (0)

/* With the device's context current. */
static int lwc_set_up(LWC(context) *c) {
    lwc_driver *cuda = &c->cuda;
    int major = 0, minor = 0;
    LWC_TRY(cuda->cuDeviceGetAttribute(&major, LWC_CU_MAJOR, c->device));
    LWC_TRY(cuda->cuDeviceGetAttribute(&minor, LWC_CU_MINOR, c->device));
    const lwc_code *code = lwc_code_for(major, minor);
    if (code == NULL) return LWC_ERROR_ARCHITECTURE;
    LWC_TRY(cuda->cuModuleLoadData(&c->module, code->image));
    for (int i = 0; i < LWC_KERNELS; i++)
        LWC_TRY(cuda->cuModuleGetFunction(&c->functions[i], c->module, lwc_kernels[i]));
    LWC_TRY(cuda->cuMemAlloc_v2(&c->weights, LWC_WEIGHT_BYTES));
    LWC_TRY(cuda->cuMemAlloc_v2(&c->arena, LWC_ARENA_BYTES));
    LWC_TRY(cuda->cuStreamCreate(&c->stream, LWC_CU_NON_BLOCKING));
    LWC_TRY(cuda->cuMemcpyHtoDAsync_v2(c->weights, LWC(weights), LWC_WEIGHT_BYTES, c->stream));
    LWC_TRY(cuda->cuStreamSynchronize(c->stream));
    return 0;
}

LWC_API void LWC(destroy)(LWC(context) *c) {
    if (c == NULL) return;
    lwc_driver *cuda = &c->cuda;
    /* Errors are of no use to anybody here; after a sticky one every call gives it again. */
    if (c->owner != NULL) {
        cuda->cuCtxPushCurrent_v2(c->owner);
        if (c->stream != NULL) cuda->cuStreamSynchronize(c->stream);
        if (c->graph != NULL) cuda->cuGraphExecDestroy(c->graph);
        if (c->timed != NULL) cuda->cuGraphExecDestroy(c->timed);
        for (int i = 0; i < LWC_LAUNCHES + 3; i++)
            if (c->events[i] != NULL) cuda->cuEventDestroy_v2(c->events[i]);
        if (c->stream != NULL) cuda->cuStreamDestroy_v2(c->stream);
        if (c->arena != 0) cuda->cuMemFree_v2(c->arena);
        if (c->weights != 0) cuda->cuMemFree_v2(c->weights);
        if (c->module != NULL) cuda->cuModuleUnload(c->module);
        cuda->cuCtxPopCurrent_v2(&c->owner);
        cuda->cuDevicePrimaryCtxRelease_v2(c->device);
    }
    if (cuda->library != NULL) dlclose(cuda->library);
    free(c);
}

static int lwc_open(LWC(context) *c, int device) {
    int count = 0, code = lwc_load_driver(&c->cuda);
    if (code != 0) return code;
    LWC_TRY(c->cuda.cuDeviceGetCount(&count));
    if (device < 0 || device >= count) return LWC_ERROR_NO_DEVICE;
    LWC_TRY(c->cuda.cuDeviceGet(&c->device, device));
    void *owner = NULL;
    LWC_TRY(c->cuda.cuDevicePrimaryCtxRetain(&owner, c->device));
    c->owner = owner;
    LWC_TRY(c->cuda.cuCtxPushCurrent_v2(owner));
    code = lwc_set_up(c);
    c->cuda.cuCtxPopCurrent_v2(&owner);
    return code;
}

LWC_API LWC(context) *LWC(create)(int device, int *error) {
    int code = LWC_ERROR_HOST_MEMORY;
    LWC(context) *c = calloc(1, sizeof *c);
    if (c != NULL) code = lwc_open(c, device);
    if (code != 0) {
        LWC(destroy)(c);
        c = NULL;
    }
    if (error != NULL) *error = code;
    return c;
}

static lwc_address lwc_at(const LWC(context) *c, const lwc_place *place) {
    return (place->weights ? c->weights : c->arena) + place->offset;
}

static int lwc_launch_all(LWC(context) *c, int timed) {
    for (int i = 0; i < LWC_LAUNCHES; i++) {
        const lwc_launch *l = &lwc_launches[i];
        lwc_address operands[LWC_OPERANDS];
        void *arguments[LWC_OPERANDS];
        for (int j = 0; j < l->count; j++) {
            operands[j] = lwc_at(c, &lwc_places[l->first + j]);
            arguments[j] = &operands[j];
        }
        if (timed) LWC_TRY(c->cuda.cuEventRecordWithFlags(c->events[i + 1], c->stream, LWC_CU_EXTERNAL));
        LWC_TRY(c->cuda.cuLaunchKernel(c->functions[l->kernel], l->grid[0], l->grid[1], l->grid[2], l->block[0],
                                       l->block[1], l->block[2], 0, c->stream, arguments, NULL));
    }
    if (timed) LWC_TRY(c->cuda.cuEventRecordWithFlags(c->events[LWC_LAUNCHES + 1], c->stream, LWC_CU_EXTERNAL));
    return 0;
}

/* Records all launches once. */
static int lwc_capture(LWC(context) *c, int timed) {
    void *graph = NULL;
    LWC_TRY(c->cuda.cuStreamBeginCapture_v2(c->stream, LWC_CU_THREAD_LOCAL));
    int code = lwc_launch_all(c, timed);
    const lwc_result ended = c->cuda.cuStreamEndCapture(c->stream, &graph);
    if (code == 0) code = lwc_code_of(ended);
    if (code == 0) code = lwc_code_of(c->cuda.cuGraphInstantiateWithFlags(timed ? &c->timed : &c->graph, graph, 0));
    if (graph != NULL) c->cuda.cuGraphDestroy(graph);
    return code;
}

static int lwc_run_all(LWC(context) *c, void *stream, int timed) {
    if (LWC_LAUNCHES == 0 && !timed) return 0;
    if ((timed ? c->timed : c->graph) == NULL) {
        const int code = lwc_capture(c, timed);
        if (code != 0) return code;
    }
    LWC_TRY(c->cuda.cuGraphLaunch(timed ? c->timed : c->graph, stream));
    return 0;
}

static int lwc_run_host(LWC(context) *c, const void *const *inputs, void *const *outputs, int timed) {
    if (timed) LWC_TRY(c->cuda.cuEventRecordWithFlags(c->events[0], c->stream, 0));
    for (int i = 0; i < LWC_INPUTS; i++) {
        const lwc_place *to = &lwc_input_places[i];
        if (to->bytes) LWC_TRY(c->cuda.cuMemcpyHtoDAsync_v2(lwc_at(c, to), inputs[i], to->bytes, c->stream));
    }
    const int code = lwc_run_all(c, c->stream, timed);
    if (code != 0) return code;
    for (int i = 0; i < LWC_OUTPUTS; i++) {
        const lwc_place *from = &lwc_output_places[i];
        if (from->bytes) LWC_TRY(c->cuda.cuMemcpyDtoHAsync_v2(outputs[i], lwc_at(c, from), from->bytes, c->stream));
    }
    if (timed) LWC_TRY(c->cuda.cuEventRecordWithFlags(c->events[LWC_LAUNCHES + 2], c->stream, 0));
    LWC_TRY(c->cuda.cuStreamSynchronize(c->stream));
    return 0;
}

/* A run with events around every launch; adds up the seconds of each, and then those of the copies. */
static int lwc_profile_host(LWC(context) *c, const void *const *inputs, void *const *outputs, double *seconds) {
    for (int i = 0; i < LWC_LAUNCHES + 3; i++)
        if (c->events[i] == NULL) LWC_TRY(c->cuda.cuEventCreate(&c->events[i], 0));
    const int code = lwc_run_host(c, inputs, outputs, 1);
    if (code != 0) return code;
    for (int i = 0; i < LWC_LAUNCHES + 2; i++) {
        const int copies = i == 0 || i == LWC_LAUNCHES + 1;
        float milliseconds = 0.0f;
        LWC_TRY(c->cuda.cuEventElapsedTime(&milliseconds, c->events[i], c->events[i + 1]));
        seconds[copies ? LWC_LAUNCHES : i - 1] += 1e-3 * milliseconds;
    }
    return 0;
}

static int lwc_check_pointer(LWC(context) *c, const void *pointer) {
    int type = 0;
    const lwc_result result = c->cuda.cuPointerGetAttribute(&type, LWC_CU_MEMORY_TYPE, (lwc_address)(uintptr_t)pointer);
    return result != 0 || type != LWC_CU_DEVICE_MEMORY ? LWC_ERROR_POINTER : 0;
}

static int lwc_run_on(LWC(context) *c, const void *const *inputs, void *const *outputs, void *stream) {
    for (int i = 0; i < LWC_INPUTS; i++)
        if (lwc_check_pointer(c, inputs[i])) return LWC_ERROR_POINTER;
    for (int i = 0; i < LWC_OUTPUTS; i++)
        if (lwc_check_pointer(c, outputs[i])) return LWC_ERROR_POINTER;
    for (int i = 0; i < LWC_INPUTS; i++) {
        const lwc_place *to = &lwc_input_places[i];
        const lwc_address from = (lwc_address)(uintptr_t)inputs[i];
        if (to->bytes) LWC_TRY(c->cuda.cuMemcpyDtoDAsync_v2(lwc_at(c, to), from, to->bytes, stream));
    }
    const int code = lwc_run_all(c, stream, 0);
    if (code != 0) return code;
    for (int i = 0; i < LWC_OUTPUTS; i++) {
        const lwc_place *from = &lwc_output_places[i];
        const lwc_address to = (lwc_address)(uintptr_t)outputs[i];
        if (from->bytes) LWC_TRY(c->cuda.cuMemcpyDtoDAsync_v2(to, lwc_at(c, from), from->bytes, stream));
    }
    return 0;
}

static int lwc_check(const LWC(context) *c, const void *const *inputs, void *const *outputs) {
    if (c == NULL || inputs == NULL || outputs == NULL) return LWC_ERROR_NULL;
    for (int i = 0; i < LWC_INPUTS; i++) if (inputs[i] == NULL) return LWC_ERROR_NULL;
    for (int i = 0; i < LWC_OUTPUTS; i++) if (outputs[i] == NULL) return LWC_ERROR_NULL;
    return c->lost;
}

/* A sticky error makes the process's context of the device useless. */
static int lwc_remember(LWC(context) *c, int code) {
    const lwc_result result = code - LWC_ERROR_CUDA;
    if ((result >= LWC_CU_FIRST_STICKY && result <= LWC_CU_LAST_STICKY) || result == LWC_CU_ECC
        || result == LWC_CU_UNKNOWN) c->lost = code;
    return code;
}

LWC_API int LWC(run)(LWC(context) *c, const void *const *inputs, void *const *outputs) {
    int code = lwc_check(c, inputs, outputs);
    if (code != 0) return code;
    void *owner = NULL;
    LWC_TRY(c->cuda.cuCtxPushCurrent_v2(c->owner));
    code = lwc_remember(c, lwc_run_host(c, inputs, outputs, 0));
    c->cuda.cuCtxPopCurrent_v2(&owner);
    return code;
}

LWC_API int LWC(step_count)(void) { return LWC_LAUNCHES; }

LWC_API int LWC(profile)(LWC(context) *c, const void *const *inputs, void *const *outputs, double *seconds) {
    int code = seconds == NULL ? LWC_ERROR_NULL : lwc_check(c, inputs, outputs);
    if (code != 0) return code;
    void *owner = NULL;
    LWC_TRY(c->cuda.cuCtxPushCurrent_v2(c->owner));
    code = lwc_profile_host(c, inputs, outputs, seconds);
    lwc_remember(c, code);
    c->cuda.cuCtxPopCurrent_v2(&owner);
    return code;
}

LWC_API int LWC(run_device)(LWC(context) *c, const void *const *inputs, void *const *outputs, void *stream) {
    int code = lwc_check(c, inputs, outputs);
    if (code != 0) return code;
    void *owner = NULL;
    LWC_TRY(c->cuda.cuCtxPushCurrent_v2(c->owner));
    code = lwc_remember(c, lwc_run_on(c, inputs, outputs, stream));
    c->cuda.cuCtxPopCurrent_v2(&owner);
    return code;
}

LWC_API size_t LWC(device_bytes)(void) { return (size_t)LWC_WEIGHT_BYTES + LWC_ARENA_BYTES; }

LWC_API const char *LWC(error_string)(int code) {
    switch (code) {
        case 0: return "ok";
        case LWC_ERROR_NULL: return "a pointer is NULL";
        case LWC_ERROR_NO_DRIVER: return "there is no NVIDIA driver: libcuda.so.1 cannot be loaded";
        case LWC_ERROR_OLD_DRIVER: return "the NVIDIA driver is too old for this library";
        case LWC_ERROR_NO_DEVICE: return "there is no such GPU";
        case LWC_ERROR_ARCHITECTURE: return "the library has no code for this GPU";
        case LWC_ERROR_DEVICE_MEMORY: return "the GPU has too little free memory";
        case LWC_ERROR_HOST_MEMORY: return "there is too little memory";
        case LWC_ERROR_POINTER: return "a pointer is not to memory of the GPU";
        case LWC_ERROR_CUDA + 700: return "a kernel read or wrote outside of its memory; the context is lost";
        case LWC_ERROR_CUDA + 719: return "a kernel failed; the context is lost";
        default: return code > LWC_ERROR_CUDA ? "the NVIDIA driver reports the error code - 1000" : "unknown error";
    }
}
