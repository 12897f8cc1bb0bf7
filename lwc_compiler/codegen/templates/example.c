/* Runs @name@ on a test vector and compares with what ONNX Runtime computed. Made by lwc @version@.
 *
@if printing
 * Returns 0 when the outputs are right, and says so.
@else
 * Returns 0 when the outputs are right, 1 when they are not, and 1 + the code of an error.
@end
@if vector_file
 * The vector is in test_vector.bin, or in the file that argument 1 names.
@end
@if mapped_file
 * The weights are in @name@.weights, or in the file that argument @weights_argument_number@ names.
@end
 */
@if mapped_file
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
@end
#include <stddef.h>
#include <stdint.h>
@if printing
#include <stdio.h>
@end
@if mapped_file
#include <sys/mman.h>
#include <unistd.h>
@end

#include "@name@.h"
#include "test_vector.h"
@if weights_address

/* Where the weights are in the memory of the board: compile with -DWEIGHTS_ADDRESS=0x90000000 or the like. */
#ifndef WEIGHTS_ADDRESS
#error "define WEIGHTS_ADDRESS, the address that @name@.weights was written to"
#endif
@end

/* All memory that a run needs is the program's: here static, with room to align it. */
static unsigned char memory[@upper@_WORKSPACE_BYTES + @upper@_WORKSPACE_ALIGNMENT];
@outputs@

static unsigned char *aligned(unsigned char *start) {
    const uintptr_t over = (uintptr_t)start % @upper@_WORKSPACE_ALIGNMENT;
    return over == 0 ? start : start + (@upper@_WORKSPACE_ALIGNMENT - over);
}

@comparisons@
@if vector_file

static int load(FILE *file, void *data, size_t bytes) { return fread(data, 1, bytes, file) == bytes; }
@end
@if mapped_file

static const void *map(const char *path) {
    const int file = open(path, O_RDONLY);
    const off_t bytes = file < 0 ? 0 : lseek(file, 0, SEEK_END);
    /* The check of the weights wants all of them; what is missing of a shorter file must not be read. */
    void *data = bytes < @upper@_WEIGHTS_BYTES ? MAP_FAILED
                                               : mmap(NULL, @upper@_WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    if (file >= 0) close(file);
    return data == MAP_FAILED ? NULL : data;
}
@end

@if arguments
int main(int argc, char **argv) {
@else
int main(void) {
@end
    const void *inputs[] = {@input_names@};
    void *outputs[] = {@output_names@};
    size_t wrong = 0;
    int code;

    if (!@symbol@_cpu_supported()) {
@if printing
        puts("this processor lacks instructions that the library uses");
@end
        return 1;
    }
@if vector_file
    FILE *file = fopen(argc > 1 ? argv[1] : "test_vector.bin", "rb");
    if (file == NULL@loads@) {
        puts("the test vector cannot be read: name its file");
        return 1;
    }
    fclose(file);
@end
@if mapped_file
    const void *weights = map(argc > @weights_argument_number@ ? argv[@weights_argument_number@] : "@name@.weights");
@end
@if weights_address
    const void *weights = (const void *)(uintptr_t)(WEIGHTS_ADDRESS);
@end
@if weights
    code = @symbol@_check_weights(weights, @upper@_WEIGHTS_BYTES);
@if printing
    if (code != 0) {
        printf("weights: %s\n", @symbol@_error_string(code));
        return 1;
    }
@else
    if (code != 0) return 1 + code;
@end
@end
    code = @symbol@_run(@weights_argument@inputs, outputs, aligned(memory), @upper@_WORKSPACE_BYTES, NULL);
    if (code != 0) {
@if printing
        puts(@symbol@_error_string(code));
        return 1;
@else
        return 1 + code;
@end
    }
@checks@
@if printing
    printf("%s: %lu of @elements@ numbers differ from ONNX Runtime's\n", wrong == 0 ? "right" : "wrong", (unsigned long)wrong);
@end
    return wrong != 0;
}
