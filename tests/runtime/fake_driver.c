/* A driver without a GPU: keeps memory on the processor, writes a line for every call to $FAKE_LOG. A kernel of a graph copies
 * the first 16 bytes of its first operand to its last one, of $FAKE_OPERANDS, if $FAKE_KERNEL is in its name; others do
 * nothing.
 *
 * $FAKE_FAIL = "function number code" makes the call with that number (from 1) fail. $FAKE_VERSION, $FAKE_CAPABILITY,
 * $FAKE_DEVICES and $FAKE_OWNER say what the driver and the GPU are, and on which GPU memory is. All are read with every call.
 *
 * $FAKE_TIMES is a file with times of kernels: lines "grid block milliseconds", as the log has grid and block; a negative one
 * is not launched, and others take a millisecond. Then events have the time at which they are recorded; else each is a
 * millisecond after the one that was made before it.
 *
 * $FAKE_RESULTS is a file with what kernels compute: lines "grid block first further", the first number of what is copied
 * from the GPU after a launch, and how much more it is with every launch of any kernel.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { MOST = 512 };
static struct { char *start; size_t bytes; } blocks[MOST];
static struct { char name[64]; int count; char fail[96]; } calls[MOST];
static int capturing;
static double now, captured, events[MOST]; /* milliseconds */
static float result; /* of the last launch */

/* A graph is its nodes in order, each of which has to come after the one before, or what was captured. */
typedef struct { address from, to; int waits; } node;
typedef struct { node *nodes[MOST]; int count, executables, destroyed; double milliseconds; } graph;
typedef struct { graph *made_of; address from[MOST], to[MOST]; } executable;

static int number(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }

/* Logs a call; the code it is to fail with, or 0. */
static int call(const char *name, const char *details) {
    FILE *log = fopen(getenv("FAKE_LOG"), "a");
    fprintf(log, "%s%s%s\n", name, *details ? " " : "", details);
    fclose(log);
    const char *fail = getenv("FAKE_FAIL") ? getenv("FAKE_FAIL") : "";
    int i = 0, at = 0, code = 0;
    char failing[64] = "";
    while (calls[i].name[0] && strcmp(calls[i].name, name)) i++;
    strcpy(calls[i].name, name);
    if (strcmp(calls[i].fail, fail)) calls[i].count = 0; /* counted from when it was asked for */
    strcpy(calls[i].fail, fail);
    calls[i].count++;
    if (sscanf(fail, "%63s %d %d", failing, &at, &code) == 3 && !strcmp(failing, name) && calls[i].count == at) return code;
    return 0;
}

#define CALL(...) \
    do { \
        char details[128]; \
        snprintf(details, sizeof details, __VA_ARGS__); \
        const int code = call(__func__, details); \
        if (code) return code; \
    } while (0)

int cuGetErrorString(int code, const char **text) {
    static char said[32];
    snprintf(said, sizeof said, "error %d of the fake", code);
    *text = said;
    return 0;
}
int cuInit(unsigned flags) { CALL("%u", flags); return 0; }
int cuDriverGetVersion(int *version) { CALL("%s", ""); *version = number("FAKE_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *count) { CALL("%s", ""); *count = number("FAKE_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { CALL("%d", ordinal); *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    CALL("%d", device);
    snprintf(name, (size_t)length, "Fake GPU");
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL("%d %d", attribute, device);
    const int capability = number("FAKE_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { CALL("%d", device); *context = (void *)7; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { CALL("%d", device); return 0; }
int cuCtxPushCurrent_v2(void *context) { CALL("%p", context); return 0; }
int cuCtxPopCurrent_v2(void **context) { CALL("%s", ""); *context = (void *)7; return 0; }
/* Of machine code, the word of the file that says for which architecture it is. */
int cuModuleLoadData(void **module, const void *image) {
    uint32_t flags;
    memcpy(&flags, (const char *)image + 48, sizeof flags);
    if (memcmp(image, "\177ELF", 4)) CALL("ptx");
    else CALL("%u", flags);
    *module = (void *)8;
    return 0;
}
int cuModuleUnload(void *module) { CALL("%p", module); return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    CALL("%p %s", module, name);
    *function = strdup(name);
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    CALL("%s %d %d", (const char *)function, attribute, value);
    return 0;
}
int cuMemAlloc_v2(address *start, size_t bytes) {
    CALL("%zu", bytes);
    int i = 0;
    while (blocks[i].start) i++;
    blocks[i].start = calloc(1, bytes), blocks[i].bytes = bytes;
    *start = (address)(uintptr_t)blocks[i].start;
    return 0;
}
/* The block that a piece of memory lies in, from 0, or -1. */
static int block_of(address start, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        const address first = (address)(uintptr_t)blocks[i].start;
        if (first && start >= first && start + bytes <= first + blocks[i].bytes) return i;
    }
    return -1;
}
int cuMemFree_v2(address start) {
    const int block = block_of(start, 0);
    CALL("%zu", blocks[block].bytes);
    free(blocks[block].start);
    blocks[block].start = NULL;
    return 0;
}
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    CALL("%zu %p", bytes, stream);
    if (block_of(to, bytes) < 0) return 700;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) {
    CALL("%zu %p", bytes, stream);
    if (block_of(from, bytes) < 0) return 700;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    if (getenv("FAKE_RESULTS")) memcpy(to, &result, sizeof result);
    return 0;
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *stream) {
    CALL("%zu %p", bytes, stream);
    if (block_of(to, bytes) < 0 || block_of(from, bytes) < 0) return 700;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return 0;
}
int cuPointerGetAttribute(void *value, int attribute, address pointer) {
    CALL("%d", attribute);
    if (block_of(pointer, 1) < 0) return 1;
    *(int *)value = attribute == 2 ? 2 : number("FAKE_OWNER", 0);
    return 0;
}
int cuStreamCreate(void **stream, unsigned flags) { CALL("%u", flags); *stream = (void *)9; return 0; }
int cuStreamDestroy_v2(void *stream) { CALL("%p", stream); return 0; }
int cuStreamSynchronize(void *stream) { CALL("%p", stream); return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) {
    CALL("%p %d", stream, mode);
    capturing = 1, captured = 0;
    return 0;
}
/* The graph of what was captured takes time, and does nothing. */
int cuStreamEndCapture(void *stream, void **made) {
    capturing = 0;
    CALL("%p", stream);
    graph *new = *made = calloc(1, sizeof(graph));
    new->milliseconds = captured;
    return 0;
}
static double time_of(const char *shape) {
    FILE *times = getenv("FAKE_TIMES") ? fopen(getenv("FAKE_TIMES"), "r") : NULL;
    char grid[40], block[40], both[84];
    double milliseconds = 0, found = 1;
    while (times && fscanf(times, "%39s %39s %lf", grid, block, &milliseconds) == 3) {
        snprintf(both, sizeof both, "%s %s", grid, block);
        if (!strcmp(both, shape)) found = milliseconds;
    }
    if (times) fclose(times);
    return found;
}
static void take_result_of(const char *shape) {
    FILE *results = getenv("FAKE_RESULTS") ? fopen(getenv("FAKE_RESULTS"), "r") : NULL;
    char grid[40], block[40], both[84];
    float first, further;
    static int launches;
    launches++;
    result = 0;
    while (results && fscanf(results, "%39s %39s %f %f", grid, block, &first, &further) == 4) {
        snprintf(both, sizeof both, "%s %s", grid, block);
        if (!strcmp(both, shape)) result = first + (float)launches * further;
    }
    if (results) fclose(results);
}
typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
    const int *attributes;
    unsigned count;
} configuration;
int cuLaunchKernelEx(const configuration *c, void *function, void **arguments, void **extra) {
    (void)extra;
    const unsigned *g = c->grid, *b = c->block;
    const int overlaps = c->count == 1 && c->attributes[0] == 6 && c->attributes[2] == 1;
    char shape[84];
    snprintf(shape, sizeof shape, "%ux%ux%u %ux%ux%u", g[0], g[1], g[2], b[0], b[1], b[2]);
    CALL("%s %s %u %d", (const char *)function, shape, c->shared, overlaps);
    if (block_of(*(address *)arguments[0], 1) < 0) return 700;
    take_result_of(shape);
    const double milliseconds = time_of(shape);
    if (milliseconds < 0) return 701;
    *(capturing ? &captured : &now) += milliseconds;
    return 0;
}
/* Of CUDA 13's cuda.h. */
typedef struct {
    void *func;
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams, **extra;
    void *kern, *ctx;
} CUDA_KERNEL_NODE_PARAMS_v2;
typedef struct { unsigned char from_port, to_port, type, reserved[5]; } CUgraphEdgeData;
_Static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS_v2) == 72, "as in cuda.h");
_Static_assert(sizeof(CUgraphEdgeData) == 8, "as in cuda.h");

int cuGraphCreate(void **made, unsigned flags) { CALL("%u", flags); *made = calloc(1, sizeof(graph)); return 0; }
static void free_graph(graph *of) {
    if (of->executables || !of->destroyed) return;
    for (int i = 0; i < of->count; i++) free(of->nodes[i]);
    free(of);
}
int cuGraphDestroy(void *of) { CALL("%s", ""); ((graph *)of)->destroyed = 1; free_graph(of); return 0; }
static int add_node(void **added, graph *to, void *const *after, size_t count, address from, address result) {
    node *new = calloc(1, sizeof *new);
    *new = (node){from, result, count > 0};
    if (count > 1 || (count == 1 && *after != to->nodes[to->count - 1])) return 1;
    to->nodes[to->count++] = *added = new;
    return 0;
}
static int operands(const CUDA_KERNEL_NODE_PARAMS_v2 *of, address *from, address *to) {
    const char *only = getenv("FAKE_KERNEL");
    *from = *to = 0;
    if (only != NULL && strstr((const char *)of->func, only) == NULL) return 0;
    if (of->extra || of->kern || of->ctx || of->sharedMemBytes) return 1;
    *from = *(address *)of->kernelParams[0], *to = *(address *)of->kernelParams[number("FAKE_OPERANDS", 1) - 1];
    return block_of(*from, 16) < 0 || block_of(*to, 16) < 0 ? 700 : 0;
}
int cuGraphAddKernelNode_v2(void **added, void *to, void *const *after, size_t count, const CUDA_KERNEL_NODE_PARAMS_v2 *of) {
    CALL("%s %ux%ux%u %ux%ux%u after %zu", (const char *)of->func, of->gridDimX, of->gridDimY, of->gridDimZ, of->blockDimX,
         of->blockDimY, of->blockDimZ, count);
    address from, result;
    const int wrong = operands(of, &from, &result);
    return wrong ? wrong : add_node(added, to, after, count, from, result);
}
int cuGraphAddEventRecordNode(void **added, void *to, void *const *after, size_t count, void *event) {
    (void)event;
    CALL("after %zu", count);
    return add_node(added, to, after, count, 0, 0);
}
#ifndef BEFORE_12_3
int cuGraphAddDependencies_v2(void *in, void *const *from, void *const *to, const CUgraphEdgeData *edge, size_t count) {
    const graph *of = in;
    CALL("port %d to %d type %d", edge->from_port, edge->to_port, edge->type);
    const int last = of->count - 1;
    for (int i = 0; i < 5; i++) if (edge->reserved[i]) return 1;
    if (count != 1 || last < 1 || *from != of->nodes[last - 1] || *to != of->nodes[last] || of->nodes[last]->waits) return 1;
    of->nodes[last]->waits = 1;
    return 0;
}
#endif
#ifndef OLD
int cuGraphInstantiateWithFlags(void **made, void *of, unsigned long long flags) {
    CALL("%llu", flags);
    executable *new = calloc(1, sizeof *new);
    new->made_of = of;
    new->made_of->executables++;
    for (int i = 0; i < new->made_of->count; i++) {
        if (new->made_of->nodes[i]->waits != (i > 0)) return 1; /* a launch comes after no other, or an edge is missing */
        new->from[i] = new->made_of->nodes[i]->from, new->to[i] = new->made_of->nodes[i]->to;
    }
    *made = new;
    return 0;
}
#endif
int cuGraphExecKernelNodeSetParams_v2(void *in, void *which, const CUDA_KERNEL_NODE_PARAMS_v2 *of) {
    executable *changed = in;
    CALL("%s", (const char *)of->func);
    for (int i = 0; i < changed->made_of->count; i++)
        if (changed->made_of->nodes[i] == which) return operands(of, &changed->from[i], &changed->to[i]);
    return 1;
}
int cuGraphExecDestroy(void *of) {
    CALL("%s", "");
    ((executable *)of)->made_of->executables--;
    free_graph(((executable *)of)->made_of);
    free(of);
    return 0;
}
int cuGraphLaunch(void *of, void *stream) {
    const executable *launched = of;
    CALL("%p", stream);
    for (int i = 0; i < launched->made_of->count; i++)
        if (launched->from[i]) memmove((void *)(uintptr_t)launched->to[i], (void *)(uintptr_t)launched->from[i], 16);
    now += launched->made_of->milliseconds;
    return 0;
}
int cuEventCreate(void **event, unsigned flags) {
    CALL("%u", flags);
    static uintptr_t made = 100;
    *event = (void *)made++;
    return 0;
}
int cuEventDestroy_v2(void *event) { CALL("%p", event); return 0; }
int cuEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    CALL("%p %u", stream, flags);
    events[(uintptr_t)event % MOST] = now;
    return 0;
}
int cuEventRecord(void *event, void *stream) { CALL("%p", stream); (void)event; return 0; }
int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    CALL("%s", "");
    const uintptr_t first = (uintptr_t)from, last = (uintptr_t)to;
    *milliseconds = (float)(getenv("FAKE_TIMES") ? events[last % MOST] - events[first % MOST] : (double)(last - first));
    return 0;
}
