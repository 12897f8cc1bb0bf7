/* A driver without a GPU: keeps memory on the processor, runs no kernel, writes a line for every call to $FAKE_LOG.
 *
 * $FAKE_FAIL = "function number code" makes the call with that number (from 1) fail. $FAKE_VERSION, $FAKE_CAPABILITY
 * and $FAKE_DEVICES say what the driver and the GPU are. All are read with every call.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { MOST = 512 };
static struct { char *start; size_t bytes; } blocks[MOST];
static struct { char name[64]; int count; char fail[96]; } calls[MOST];
static int capturing, launches;

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
    *(int *)value = 2;
    return 0;
}
int cuStreamCreate(void **stream, unsigned flags) { CALL("%u", flags); *stream = (void *)9; return 0; }
int cuStreamDestroy_v2(void *stream) { CALL("%p", stream); return 0; }
int cuStreamSynchronize(void *stream) { CALL("%p", stream); return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { CALL("%p %d", stream, mode); capturing = 1, launches = 0; return 0; }
int cuStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    CALL("%p", stream);
    *graph = (void *)10;
    return 0;
}
int cuLaunchKernel(
    void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    void *stream, void **arguments, void **extra
) {
    (void)extra;
    CALL("%s %ux%ux%u %ux%ux%u %u %p", (const char *)function, gx, gy, gz, bx, by, bz, shared, stream);
    if (!capturing || block_of(*(address *)arguments[0], 1) < 0) return 700;
    launches++;
    return 0;
}
#ifndef OLD
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    CALL("%p %llu", graph, flags);
    *executable = (void *)11;
    return 0;
}
#endif
int cuEventCreate(void **event, unsigned flags) {
    CALL("%u", flags);
    static uintptr_t events = 100;
    *event = (void *)events++;
    return 0;
}
int cuEventDestroy_v2(void *event) { CALL("%p", event); return 0; }
int cuEventRecordWithFlags(void *event, void *stream, unsigned flags) { CALL("%p %u", stream, flags); (void)event; return 0; }
/* A millisecond for every event that was made from one to the other. */
int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    CALL("%s", "");
    *milliseconds = (float)((uintptr_t)to - (uintptr_t)from);
    return 0;
}
int cuGraphDestroy(void *graph) { CALL("%p", graph); return 0; }
int cuGraphExecDestroy(void *executable) { CALL("%p", executable); return 0; }
int cuGraphLaunch(void *executable, void *stream) { CALL("%p %p", executable, stream); return 0; }
