/* Uses the library of lenet5 in every way that its header describes; returns the line of the first surprise.
 *
 * All memory is from malloc and exactly as large as the header says, so that a sanitizer or valgrind sees what is beyond.
 * Where the weights are a file, it is the first argument.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lenet5.h"
#include "test_vector.h"

#define EXPECT(condition) \
    do { \
        if (!(condition)) return __LINE__; \
    } while (0)

enum { RUNS = 20, BYTES = LENET5_OUTPUT_0_BYTES };

#ifdef LENET5_WEIGHTS_BYTES
static void *weights;
#define WEIGHTS weights,
#else
#define WEIGHTS
#endif

static int close_enough(const float *actual) {
    for (int i = 0; i < LENET5_OUTPUT_0_ELEMENTS; i++) {
        const double difference = (double)actual[i] - (double)test_expected_0[i];
        if (!(difference <= TEST_TOLERANCE_0 && -difference <= TEST_TOLERANCE_0)) return 0;
    }
    return 1;
}

/* An instance: a workspace, and a pool when there are several threads. */
static int instance(int threads) {
    const size_t bytes = lenet5_workspace_bytes(threads);
    lenet5_pool *pool = threads > 1 ? lenet5_pool_create(threads) : NULL;
    float *input = malloc(sizeof test_input_0), *output = malloc(BYTES);
    void *workspace = NULL;
    EXPECT(threads == 1 || pool != NULL);
    EXPECT(input != NULL && output != NULL);
    EXPECT(posix_memalign(&workspace, LENET5_WORKSPACE_ALIGNMENT, bytes) == 0);
    memcpy(input, test_input_0, sizeof test_input_0);
    memset(workspace, 0xa5, bytes);
    const void *inputs[] = {input};
    void *outputs[] = {output};
    for (int run = 0; run < RUNS; run++) {
        memset(output, 0, BYTES);
        EXPECT(lenet5_run(WEIGHTS inputs, outputs, workspace, bytes, pool) == 0);
        EXPECT(close_enough(output));
    }
    double *seconds = calloc((size_t)lenet5_step_count() + 1, sizeof *seconds);
    EXPECT(seconds != NULL);
    EXPECT(lenet5_profile(WEIGHTS inputs, outputs, workspace, bytes, pool, seconds) == 0);
    EXPECT(close_enough(output));
    free(seconds);
    lenet5_pool_destroy(pool);
    free(workspace);
    free(input);
    free(output);
    return 0;
}

static void *thread_main(void *failed) {
    *(int *)failed = instance(1);
    return NULL;
}

/* What is not as it should be is an error code, and nothing is written. */
static int misuse(void) {
    const size_t bytes = LENET5_WORKSPACE_BYTES;
    float output[LENET5_OUTPUT_0_ELEMENTS], untouched[LENET5_OUTPUT_0_ELEMENTS];
    void *workspace = NULL;
    const void *inputs[] = {test_input_0}, *missing[] = {NULL};
    void *outputs[] = {output};
    EXPECT(bytes == lenet5_workspace_bytes(1));
    EXPECT(posix_memalign(&workspace, LENET5_WORKSPACE_ALIGNMENT, bytes + 1) == 0);
    memset(output, 0x5a, sizeof output);
    memcpy(untouched, output, sizeof output);
    EXPECT(lenet5_run(WEIGHTS inputs, outputs, workspace, bytes - 1, NULL) == LENET5_ERROR_WORKSPACE);
    EXPECT(lenet5_run(WEIGHTS inputs, outputs, (char *)workspace + 1, bytes, NULL) == LENET5_ERROR_ALIGNMENT);
    EXPECT(lenet5_run(WEIGHTS inputs, outputs, NULL, bytes, NULL) == LENET5_ERROR_NULL);
    EXPECT(lenet5_run(WEIGHTS missing, outputs, workspace, bytes, NULL) == LENET5_ERROR_NULL);
    EXPECT(lenet5_run(WEIGHTS inputs, NULL, workspace, bytes, NULL) == LENET5_ERROR_NULL);
    EXPECT(memcmp(output, untouched, sizeof output) == 0);
    EXPECT(lenet5_pool_create(0) == NULL);
    EXPECT(lenet5_run(WEIGHTS inputs, outputs, workspace, bytes, NULL) == 0);
    EXPECT(close_enough(output));
    free(workspace);
    return 0;
}

/* The interface describes the network. */
static int description(void) {
    static const int64_t dims[] = LENET5_INPUT_0_DIMS;
    const lenet5_tensor *input = lenet5_inputs(), *output = lenet5_outputs();
    EXPECT(lenet5_input_count() == LENET5_INPUT_COUNT && lenet5_output_count() == LENET5_OUTPUT_COUNT);
    EXPECT(strcmp(input->name, LENET5_INPUT_0_NAME) == 0 && strcmp(output->name, LENET5_OUTPUT_0_NAME) == 0);
    EXPECT(input->rank == LENET5_INPUT_0_RANK && memcmp(input->dims, dims, sizeof dims) == 0);
    EXPECT(strcmp(input->dtype, "float32") == 0 && sizeof test_input_0 == LENET5_INPUT_0_BYTES);
    EXPECT(strcmp(lenet5_version(), LENET5_VERSION) == 0);
    EXPECT(strcmp(lenet5_error_string(LENET5_ERROR_WORKSPACE), lenet5_error_string(LENET5_ERROR_NULL)) != 0);
    return 0;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    int failed[2] = {0, 0}, line;
#ifdef LENET5_WEIGHTS_BYTES
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    EXPECT(file != NULL);
    EXPECT(posix_memalign(&weights, LENET5_WEIGHTS_ALIGNMENT, LENET5_WEIGHTS_BYTES) == 0);
    EXPECT(fread(weights, 1, LENET5_WEIGHTS_BYTES, file) == LENET5_WEIGHTS_BYTES);
    fclose(file);
    EXPECT(lenet5_check_weights(weights, LENET5_WEIGHTS_BYTES) == 0);
    EXPECT(lenet5_check_weights(weights, LENET5_WEIGHTS_BYTES - 1) == LENET5_ERROR_WEIGHTS);
#else
    (void)argc;
    (void)argv;
#endif
    EXPECT(lenet5_cpu_supported());
    if ((line = description()) != 0 || (line = misuse()) != 0) return line;
    if ((line = instance(1)) != 0 || (line = instance(3)) != 0) return line;
    for (int i = 0; i < 2; i++) EXPECT(pthread_create(&threads[i], NULL, thread_main, &failed[i]) == 0);
    for (int i = 0; i < 2; i++) EXPECT(pthread_join(threads[i], NULL) == 0);
    if (failed[0] != 0 || failed[1] != 0) return failed[0] != 0 ? failed[0] : failed[1];
#ifdef LENET5_WEIGHTS_BYTES
    free(weights);
#endif
    puts("as described");
    return 0;
}
