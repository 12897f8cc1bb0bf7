/* Runs a network with one input and one output of float32, from the file `inputs` to the file `outputs`. */
#include <stdio.h>
#include "net.h"

static float input[NET_INPUT_0_ELEMENTS], output[NET_OUTPUT_0_ELEMENTS];
static _Alignas(NET_WORKSPACE_ALIGNMENT) unsigned char workspace[NET_WORKSPACE_BYTES];

int main(void) {
    FILE *from = fopen("inputs", "rb"), *to = fopen("outputs", "wb");
    const void *inputs[] = {input};
    void *outputs[] = {output};
    if (from == NULL || to == NULL || fread(input, sizeof input, 1, from) != 1) return 10;
    const int code = net_run(inputs, outputs, workspace, sizeof workspace, NULL);
    if (code == 0 && fwrite(output, sizeof output, 1, to) != 1) return 11;
    return fclose(to) == 0 ? code : 12;
}
