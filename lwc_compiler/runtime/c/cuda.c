/* The runtime of an artifact for NVIDIA GPUs: launches its kernels through the driver, whose part, `cuda_driver.c`, is before
 * this.
 *
 * `LWC(name)` adds the model's prefix. The generated text before this defines it, with `LWC_INPUTS`, `LWC_OUTPUTS`,
 * `LWC_CODES`, `LWC_KERNELS`, `LWC_LAUNCHES`, `LWC_PLACES`, `LWC_OPERANDS`, `LWC_LOAD_BYTES`, `LWC_WEIGHT_BYTES` and
 * `LWC_ARENA_BYTES`, and that after it the tables.
 */

#include <stdlib.h>

/* Machine code for GPUs of one compute capability, or PTX for those of a later one. */
typedef struct {
    int architecture; /* compute capability times ten */
    int ptx;
    const unsigned char *image;
} lwc_code;

/* Where an operand lies: in the weights, in the arena, or, LWC_TENSOR + n, where the caller has input or output n (outputs
 * count on from inputs), for which there is room in the arena, too. */
enum { LWC_WEIGHTS, LWC_ARENA, LWC_TENSOR, LWC_TENSORS = LWC_INPUTS + LWC_OUTPUTS };
typedef struct {
    int base;
    size_t offset;
    size_t bytes;
} lwc_place;

typedef struct {
    int kernel;
    unsigned grid[3], block[3];
    unsigned shared_bytes; /* of shared memory, beside what the kernel declares */
    int overlaps;          /* it may begin before the one before it has ended */
    int first, count; /* operands, of lwc_places */
} lwc_launch;

static const lwc_code lwc_codes[LWC_CODES]; /* ascending, machine code first */
static const char *const lwc_kernels[LWC_KERNELS + 1];
static const lwc_launch lwc_launches[LWC_LAUNCHES + 1];
static const lwc_place lwc_places[LWC_PLACES + 1];
static const lwc_place lwc_tensor_places[LWC_TENSORS + 1]; /* of inputs, and then of outputs */

/* All launches, and where they have the caller's tensors; `graph` is NULL until the first run. */
typedef struct {
    void *graph, *executable;
    void *nodes[LWC_LAUNCHES + 1];
    lwc_address tensors[LWC_TENSORS + 1];
} lwc_graph;

struct LWC(context) {
    lwc_driver cuda;
    int ordinal, device; /* its number, and what the driver calls it */
    void *owner; /* the device's primary context */
    void *module;
    void *functions[LWC_KERNELS + 1];
    void *stream;
    int overlapping; /* a launch may begin before the one before it has ended (codegen/launches.cuh) */
    lwc_graph launches;
    lwc_graph timed; /* the same, none overlapping, with an event before each and after the last */
    void *events[LWC_LAUNCHES + 3]; /* before the inputs are copied, those of `timed`, after the outputs are */
    lwc_address weights, arena;
    int lost; /* the error after which the device's context cannot be used; 0: none */
};

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

/* With the device's context current. */
static int lwc_set_up(LWC(context) *c) {
    lwc_driver *cuda = &c->cuda;
    int major = 0, minor = 0;
    LWC_TRY(cuda->cuDeviceGetAttribute(&major, LWC_CU_MAJOR, c->device));
    LWC_TRY(cuda->cuDeviceGetAttribute(&minor, LWC_CU_MINOR, c->device));
    const lwc_code *code = lwc_code_for(major, minor);
    if (code == NULL) return LWC_ERROR_ARCHITECTURE;
    c->overlapping = code->architecture >= 90 && cuda->cuGraphAddDependencies_v2 != NULL;
    LWC_TRY(cuda->cuModuleLoadData(&c->module, code->image));
    for (int i = 0; i < LWC_KERNELS; i++)
        LWC_TRY(cuda->cuModuleGetFunction(&c->functions[i], c->module, lwc_kernels[i]));
    for (int i = 0; i < LWC_LAUNCHES; i++) {
        const lwc_launch *l = &lwc_launches[i];
        if (l->shared_bytes != 0)
            LWC_TRY(cuda->cuFuncSetAttribute(c->functions[l->kernel], LWC_CU_MOST_SHARED_BYTES, (int)l->shared_bytes));
    }
    LWC_TRY(cuda->cuMemAlloc_v2(&c->weights, LWC_WEIGHT_BYTES));
    LWC_TRY(cuda->cuMemAlloc_v2(&c->arena, LWC_ARENA_BYTES));
    LWC_TRY(cuda->cuStreamCreate(&c->stream, LWC_CU_NON_BLOCKING));
    LWC_TRY(cuda->cuMemcpyHtoDAsync_v2(c->weights, LWC(weights), LWC_WEIGHT_BYTES, c->stream));
    LWC_TRY(cuda->cuStreamSynchronize(c->stream));
    return 0;
}

static void lwc_discard(lwc_driver *cuda, lwc_graph *g) {
    if (g->executable != NULL) cuda->cuGraphExecDestroy(g->executable);
    if (g->graph != NULL) cuda->cuGraphDestroy(g->graph);
    g->graph = g->executable = NULL;
}

LWC_API void LWC(destroy)(LWC(context) *c) {
    if (c == NULL) return;
    lwc_driver *cuda = &c->cuda;
    /* Errors are of no use to anybody here; after a sticky one every call gives it again. */
    if (c->owner != NULL) {
        cuda->cuCtxPushCurrent_v2(c->owner);
        if (c->stream != NULL) cuda->cuStreamSynchronize(c->stream);
        lwc_discard(cuda, &c->launches);
        lwc_discard(cuda, &c->timed);
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
    c->ordinal = device;
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

static lwc_address lwc_at(const LWC(context) *c, const lwc_address *tensors, const lwc_place *place) {
    if (place->base >= LWC_TENSOR) {
        const int tensor = place->base - LWC_TENSOR;
        return tensors[tensor] + (place->offset - lwc_tensor_places[tensor].offset);
    }
    return (place->base == LWC_WEIGHTS ? c->weights : c->arena) + place->offset;
}

/* What the driver is told of a launch, with memory for its operands. */
typedef struct {
    lwc_node node;
    lwc_address operands[LWC_OPERANDS];
    void *arguments[LWC_OPERANDS];
} lwc_described;

static void lwc_describe(const LWC(context) *c, const lwc_launch *l, const lwc_address *tensors, lwc_described *to) {
    memset(&to->node, 0, sizeof to->node);
    to->node.function = c->functions[l->kernel];
    memcpy(to->node.grid, l->grid, sizeof l->grid);
    memcpy(to->node.block, l->block, sizeof l->block);
    to->node.shared_bytes = l->shared_bytes;
    for (int i = 0; i < l->count; i++) {
        to->operands[i] = lwc_at(c, tensors, &lwc_places[l->first + i]);
        to->arguments[i] = &to->operands[i];
    }
    to->node.arguments = to->arguments;
}

/* Adds the launches to a graph, each after the one before it. The first depends on nothing in the graph, and so on all that
 * the stream did before, like every graph. */
static int lwc_add_launches(LWC(context) *c, lwc_graph *g, int timed) {
    const lwc_edge programmatic = {.from_port = LWC_CU_PROGRAMMATIC, .type = LWC_CU_PROGRAMMATIC};
    void *last = NULL, *event;
    for (int i = 0; i < LWC_LAUNCHES; i++) {
        const int overlaps = c->overlapping && !timed && i > 0 && lwc_launches[i].overlaps;
        lwc_described launch;
        lwc_describe(c, &lwc_launches[i], g->tensors, &launch);
        if (timed) {
            LWC_TRY(c->cuda.cuGraphAddEventRecordNode(&event, g->graph, &last, last != NULL, c->events[i + 1]));
            last = event;
        }
        LWC_TRY(c->cuda.cuGraphAddKernelNode_v2(&g->nodes[i], g->graph, &last, last != NULL && !overlaps, &launch.node));
        if (overlaps) LWC_TRY(c->cuda.cuGraphAddDependencies_v2(g->graph, &last, &g->nodes[i], &programmatic, 1));
        last = g->nodes[i];
    }
    if (timed)
        LWC_TRY(c->cuda.cuGraphAddEventRecordNode(&event, g->graph, &last, last != NULL, c->events[LWC_LAUNCHES + 1]));
    return 0;
}

static int lwc_make_graph(LWC(context) *c, lwc_graph *g, int timed) {
    LWC_TRY(c->cuda.cuGraphCreate(&g->graph, 0));
    const int code = lwc_add_launches(c, g, timed);
    return code != 0 ? code : lwc_code_of(c->cuda.cuGraphInstantiateWithFlags(&g->executable, g->graph, 0));
}

/* Whether the caller has an operand of a launch at another place than before. */
static int lwc_moved(const lwc_launch *l, const lwc_address *before, const lwc_address *now) {
    for (int i = l->first; i < l->first + l->count; i++) {
        const int tensor = lwc_places[i].base - LWC_TENSOR;
        if (tensor >= 0 && before[tensor] != now[tensor]) return 1;
    }
    return 0;
}

static int lwc_move(LWC(context) *c, lwc_graph *g, const lwc_address *tensors) {
    for (int i = 0; i < LWC_LAUNCHES; i++) {
        lwc_described launch;
        if (!lwc_moved(&lwc_launches[i], g->tensors, tensors)) continue;
        lwc_describe(c, &lwc_launches[i], tensors, &launch);
        LWC_TRY(c->cuda.cuGraphExecKernelNodeSetParams_v2(g->executable, g->nodes[i], &launch.node));
    }
    return 0;
}

/* Runs all launches, with the tensors at these places. */
static int lwc_launch_all(LWC(context) *c, const lwc_address *tensors, void *stream, int timed) {
    lwc_graph *g = timed ? &c->timed : &c->launches;
    if (LWC_LAUNCHES == 0 && !timed) return 0;
    int code = g->graph == NULL ? 0 : lwc_move(c, g, tensors);
    memcpy(g->tensors, tensors, sizeof g->tensors);
    if (g->graph == NULL) code = lwc_make_graph(c, g, timed);
    if (code != 0) lwc_discard(&c->cuda, g); /* some of its launches may have got the new places */
    return code != 0 ? code : lwc_code_of(c->cuda.cuGraphLaunch(g->executable, stream));
}

/* The room for the caller's tensors in the arena. */
static void lwc_place_in_arena(const LWC(context) *c, lwc_address *tensors) {
    for (int i = 0; i < LWC_TENSORS; i++) tensors[i] = c->arena + lwc_tensor_places[i].offset;
}

static int lwc_run_host(LWC(context) *c, const void *const *inputs, void *const *outputs, int timed) {
    lwc_address tensors[LWC_TENSORS + 1];
    lwc_place_in_arena(c, tensors);
    if (timed) LWC_TRY(c->cuda.cuEventRecord(c->events[0], c->stream));
    for (int i = 0; i < LWC_INPUTS; i++) {
        const lwc_place *to = &lwc_tensor_places[i];
        if (to->bytes) LWC_TRY(c->cuda.cuMemcpyHtoDAsync_v2(lwc_at(c, tensors, to), inputs[i], to->bytes, c->stream));
    }
    const int code = lwc_launch_all(c, tensors, c->stream, timed);
    if (code != 0) return code;
    for (int i = 0; i < LWC_OUTPUTS; i++) {
        const lwc_place *from = &lwc_tensor_places[LWC_INPUTS + i];
        if (from->bytes)
            LWC_TRY(c->cuda.cuMemcpyDtoHAsync_v2(outputs[i], lwc_at(c, tensors, from), from->bytes, c->stream));
    }
    if (timed) LWC_TRY(c->cuda.cuEventRecord(c->events[LWC_LAUNCHES + 2], c->stream));
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

/* The number of the GPU whose memory a pointer is to. */
static int lwc_find_device(LWC(context) *c, lwc_address pointer, int *ordinal) {
    int type = 0;
    lwc_result result = c->cuda.cuPointerGetAttribute(&type, LWC_CU_MEMORY_TYPE, pointer);
    if (result != 0 || type != LWC_CU_DEVICE_MEMORY) return LWC_ERROR_POINTER;
    result = c->cuda.cuPointerGetAttribute(ordinal, LWC_CU_ORDINAL, pointer);
    return result != 0 ? LWC_ERROR_POINTER : 0;
}

/* Whether an output shares memory with another tensor. */
static int lwc_overlap(const lwc_address *given) {
    for (int i = LWC_INPUTS; i < LWC_TENSORS; i++)
        for (int j = 0; j < i; j++)
            if (given[i] < given[j] + lwc_tensor_places[j].bytes && given[j] < given[i] + lwc_tensor_places[i].bytes)
                return 1;
    return 0;
}

/* Launches have the caller's tensors where they are, or, where kernels cannot, in the arena, from and to which they are
 * copied: at addresses that are no multiples of a load's bytes, in the memory of another GPU, and all where one that is
 * written overlaps another. */
static int lwc_run_on(LWC(context) *c, const void *const *inputs, void *const *outputs, void *stream) {
    lwc_address given[LWC_TENSORS + 1], tensors[LWC_TENSORS + 1];
    int ordinals[LWC_TENSORS + 1];
    for (int i = 0; i < LWC_TENSORS; i++) {
        given[i] = (lwc_address)(uintptr_t)(i < LWC_INPUTS ? inputs[i] : outputs[i - LWC_INPUTS]);
        const int code = lwc_find_device(c, given[i], &ordinals[i]);
        if (code != 0) return code;
    }
    lwc_place_in_arena(c, tensors);
    if (!lwc_overlap(given))
        for (int i = 0; i < LWC_TENSORS; i++)
            if (given[i] % LWC_LOAD_BYTES == 0 && ordinals[i] == c->ordinal) tensors[i] = given[i];
    for (int i = 0; i < LWC_INPUTS; i++) {
        const lwc_place *place = &lwc_tensor_places[i];
        const lwc_address to = lwc_at(c, tensors, place);
        if (place->bytes && to != given[i]) LWC_TRY(c->cuda.cuMemcpyDtoDAsync_v2(to, given[i], place->bytes, stream));
    }
    const int code = lwc_launch_all(c, tensors, stream, 0);
    if (code != 0) return code;
    for (int i = LWC_INPUTS; i < LWC_TENSORS; i++) {
        const lwc_place *place = &lwc_tensor_places[i];
        const lwc_address from = lwc_at(c, tensors, place);
        if (place->bytes && from != given[i])
            LWC_TRY(c->cuda.cuMemcpyDtoDAsync_v2(given[i], from, place->bytes, stream));
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
        case LWC_ERROR_OLD_DRIVER: return "the NVIDIA driver is too old: this library needs one for CUDA " LWC_CUDA_NAME " or later";
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
