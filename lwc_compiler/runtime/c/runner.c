/* Runs any network that lwc compiled: reads its inputs from files of raw little-endian numbers, writes the outputs.
 *
 *   runner [-t THREADS] [-s SECONDS] [-p] [-l SECONDS] [WEIGHTS] INPUT... OUTPUT...
 *
 * The file of weights where the library does not hold them, one file for each input, then one for each output, in the
 * order of the header.
 *   -t THREADS   threads of a run; 1 when it is not given
 *   -s SECONDS   then times runs for so long, after a warm-up, and prints the seconds of each as JSON
 *   -p           with -s: times every step of some more runs
 *   -l SECONDS   ends itself by SIGALRM when it is still at work after so long
 *
 * Built with -DMODEL=<name>, the prefix of the library's functions (manifest.json: symbol), and -DWEIGHTS=<bytes> of a
 * file of weights; needs POSIX. It ends with 0 or a code of <sysexits.h>.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#define PASTE(a, b) a##_##b
#define JOIN(a, b) PASTE(a, b)
#define NET(name) JOIN(MODEL, name)
#define TEXT(x) #x
#define HEADER(name) TEXT(name.h)
#define INCLUDE(name) HEADER(name)
#include INCLUDE(MODEL)

enum { RUNS_AT_LEAST = 5, RUNS_AT_MOST = 100000, PROFILES_AT_MOST = 1000 };
static const double WARM_UP_SECONDS = 0.3;

static size_t tensor_bytes(const NET(tensor) *tensor) {
    /* A dtype is NumPy's name of it: bool, or a kind and its bits. */
    const char *digits = tensor->dtype + strcspn(tensor->dtype, "0123456789");
    size_t bytes = *digits ? (size_t)atoi(digits) / 8 : 1;
    for (int i = 0; i < tensor->rank; i++) bytes *= (size_t)tensor->dims[i];
    return bytes;
}

static void fail(int code, const char *what) {
    fprintf(stderr, "runner: %s\n", what);
    exit(code);
}

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (memory == NULL) fail(EX_OSERR, "out of memory");
    return memory;
}

static void transfer(const char *path, void *data, size_t bytes, int reading) {
    FILE *file = fopen(path, reading ? "rb" : "wb");
    if (file == NULL) {
        perror(path);
        exit(EX_IOERR);
    }
    size_t done = reading ? fread(data, 1, bytes, file) : fwrite(data, 1, bytes, file);
    if (fclose(file) != 0 || done != bytes) {
        fprintf(stderr, "%s: %zu of %zu bytes\n", path, done, bytes);
        exit(EX_IOERR);
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* All memory is taken once, before the first run; a run takes none. */
static const void **in;
static void **out;
static void *workspace;
static size_t workspace_bytes;
static NET(pool) *pool;

#ifdef WEIGHTS
enum { OWN_FILES = 1 };
static void *weights;
#define CALL(function, ...) NET(function)(weights, __VA_ARGS__)
#else
enum { OWN_FILES = 0 };
#define CALL(function, ...) NET(function)(__VA_ARGS__)
#endif

static void run(double *steps) {
    const int code = steps ? CALL(profile, in, out, workspace, workspace_bytes, pool, steps)
                           : CALL(run, in, out, workspace, workspace_bytes, pool);
    if (code != 0) fail(EX_SOFTWARE, NET(error_string)(code));
}

static void print_seconds(const double *seconds, int count) {
    putchar('[');
    for (int i = 0; i < count; i++) printf("%s%.9g", i ? ", " : "", seconds[i]);
    putchar(']');
}

static void time_runs(double seconds, int profiled) {
    double *runs = allocate(RUNS_AT_MOST * sizeof *runs);
    double start = now();
    while (now() - start < WARM_UP_SECONDS) run(NULL);
    int count = 0;
    for (start = now(); count < RUNS_AT_LEAST || (count < RUNS_AT_MOST && now() - start < seconds); count++) {
        const double begin = now();
        run(NULL);
        runs[count] = now() - begin;
    }
    printf("{\"target\": \"%s\", \"runs\": ", NET(target)());
    print_seconds(runs, count);
    printf(", \"steps\": [");
    const int numbers = NET(step_count)() + 1;
    double *steps = allocate((size_t)numbers * sizeof *steps);
    start = now();
    for (int i = 0; profiled && (i < RUNS_AT_LEAST || (i < PROFILES_AT_MOST && now() - start < seconds)); i++) {
        memset(steps, 0, (size_t)numbers * sizeof *steps);
        run(steps);
        if (i) printf(", ");
        print_seconds(steps, numbers);
    }
    printf("]}\n");
}

int main(int argc, char **argv) {
    const int inputs = NET(input_count)(), outputs = NET(output_count)();
    int threads = 1, profiled = 0, option;
    double seconds = -1;
    while ((option = getopt(argc, argv, "t:s:pl:")) != -1) {
        if (option == 't') threads = atoi(optarg);
        else if (option == 's') seconds = atof(optarg);
        else if (option == 'p') profiled = 1;
        else if (option == 'l') alarm((unsigned)atoi(optarg));
        else return EX_USAGE;
    }
    argv += optind;
    if (argc - optind != OWN_FILES + inputs + outputs) {
        fprintf(stderr, "runner: %d files are given; it takes %d of weights, %d inputs and %d outputs\n", argc - optind,
                OWN_FILES, inputs, outputs);
        return EX_USAGE;
    }
    if (!NET(cpu_supported)()) fail(EX_UNAVAILABLE, "this processor lacks instructions that the library uses");
    in = allocate((size_t)inputs * sizeof *in);
    out = allocate((size_t)outputs * sizeof *out);
    workspace_bytes = NET(workspace_bytes)(threads);
    workspace = allocate(workspace_bytes);
#ifdef WEIGHTS
    weights = allocate(WEIGHTS);
    transfer(*argv++, weights, WEIGHTS, 1);
#endif
    for (int i = 0; i < inputs; i++) {
        const size_t bytes = tensor_bytes(&NET(inputs)()[i]);
        void *data = allocate(bytes);
        transfer(argv[i], data, bytes, 1);
        in[i] = data;
    }
    for (int i = 0; i < outputs; i++) out[i] = allocate(tensor_bytes(&NET(outputs)()[i]));
    if (threads != 1 && (pool = NET(pool_create)(threads)) == NULL) fail(EX_OSERR, "these threads cannot be started");

    run(NULL);
    for (int i = 0; i < outputs; i++) transfer(argv[inputs + i], out[i], tensor_bytes(&NET(outputs)()[i]), 0);
    if (seconds >= 0) time_runs(seconds, profiled);
    return 0; /* the process ends: its memory goes with it */
}
