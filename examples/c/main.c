/* Runs any network that lwc compiled: reads its inputs from files of raw little-endian numbers, writes the outputs.
 *
 *   main INPUT... OUTPUT...     one file for each input, then one for each output, in the order of the header
 *
 * Built with -DMODEL=<name>, the prefix of the library's functions (manifest.json: symbol); see README.md.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PASTE(a, b) a##_##b
#define JOIN(a, b) PASTE(a, b)
#define NET(name) JOIN(MODEL, name)
#define TEXT(x) #x
#define HEADER(name) TEXT(name.h)
#define INCLUDE(name) HEADER(name)
#include INCLUDE(MODEL)

static size_t tensor_bytes(const NET(tensor) *tensor) {
    /* A dtype is NumPy's name of it: bool, or a kind and its bits. */
    const char *digits = tensor->dtype + strcspn(tensor->dtype, "0123456789");
    size_t bytes = *digits ? (size_t)atoi(digits) / 8 : 1;
    for (int i = 0; i < tensor->rank; i++) bytes *= (size_t)tensor->dims[i];
    return bytes;
}

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

static int transfer(const char *path, void *data, size_t bytes, int reading) {
    FILE *file = fopen(path, reading ? "rb" : "wb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t done = reading ? fread(data, 1, bytes, file) : fwrite(data, 1, bytes, file);
    if (fclose(file) != 0 || done != bytes) {
        fprintf(stderr, "%s: %zu of %zu bytes\n", path, done, bytes);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    const int inputs = NET(input_count)(), outputs = NET(output_count)();
    if (argc != 1 + inputs + outputs) {
        fprintf(stderr, "usage: %s INPUT... OUTPUT... (%d and %d files)\n", argv[0], inputs, outputs);
        return 2;
    }
    if (!NET(cpu_supported)()) {
        fputs("this processor lacks instructions that the library uses\n", stderr);
        return 1;
    }
    /* All memory is taken once, before the first run; a run takes none. */
    const void **in = allocate((size_t)inputs * sizeof *in);
    void **out = allocate((size_t)outputs * sizeof *out);
    const size_t workspace_bytes = NET(workspace_bytes)(1);
    void *workspace = allocate(workspace_bytes);
    for (int i = 0; i < inputs; i++) {
        const size_t bytes = tensor_bytes(&NET(inputs)()[i]);
        void *data = allocate(bytes);
        if (transfer(argv[1 + i], data, bytes, 1)) return 1;
        in[i] = data;
    }
    for (int i = 0; i < outputs; i++) out[i] = allocate(tensor_bytes(&NET(outputs)()[i]));

    const int code = NET(run)(in, out, workspace, workspace_bytes, NULL);
    if (code != 0) {
        fprintf(stderr, "%s\n", NET(error_string)(code));
        return 1;
    }
    for (int i = 0; i < outputs; i++)
        if (transfer(argv[1 + inputs + i], out[i], tensor_bytes(&NET(outputs)()[i]), 0)) return 1;
    return 0; /* the process ends: its memory goes with it */
}
