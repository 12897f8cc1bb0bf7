/* LeNet-5 as one would write it down: plain loops over all weights, with the interface of an artifact.
 *
 * The weights are float32, in the order conv1, conv2, fc1, fc2, each followed by its biases. */
#include "lenet5.h"

extern const float plain_weights[];
__asm__(".section .rodata\n.balign 64\nplain_weights:\n.incbin \"weights.bin\"\n.text\n");

static void conv(const float *x, int channels, int size, const float *w, int outputs, float *y) {
    const int out = size - 4;
    const float *bias = w + outputs * channels * 25;
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < out; r++)
            for (int c = 0; c < out; c++) {
                float sum = bias[o];
                for (int i = 0; i < channels; i++)
                    for (int j = 0; j < 5; j++)
                        for (int k = 0; k < 5; k++)
                            sum += w[((o * channels + i) * 5 + j) * 5 + k] * x[(i * size + r + j) * size + c + k];
                y[(o * out + r) * out + c] = sum;
            }
}

static void pool(const float *x, int channels, int size, float *y) {
    const int out = size / 2;
    for (int i = 0; i < channels; i++)
        for (int r = 0; r < out; r++)
            for (int c = 0; c < out; c++) {
                const float *p = x + (i * size + 2 * r) * size + 2 * c;
                float most = p[0];
                if (p[1] > most) most = p[1];
                if (p[size] > most) most = p[size];
                if (p[size + 1] > most) most = p[size + 1];
                y[(i * out + r) * out + c] = most;
            }
}

static void connect(const float *x, int inputs, const float *w, int outputs, int relu, float *y) {
    const float *bias = w + outputs * inputs;
    for (int o = 0; o < outputs; o++) {
        float sum = bias[o];
        for (int i = 0; i < inputs; i++) sum += w[o * inputs + i] * x[i];
        y[o] = relu && sum < 0 ? 0 : sum;
    }
}

size_t lenet5_workspace_bytes(int threads) { return (void)threads, (11520 + 2880) * sizeof(float); }

const char *lenet5_error_string(int code) { return (void)code, "failed"; }

int lenet5_run(
    const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes, lenet5_pool *threads
) {
    (void)workspace_bytes, (void)threads;
    float *large = workspace, *small = large + 11520;
    const float *conv1 = plain_weights, *conv2 = conv1 + 520, *fc1 = conv2 + 25050, *fc2 = fc1 + 400500;
    conv(inputs[0], 1, 28, conv1, 20, large);
    pool(large, 20, 24, small);
    conv(small, 20, 12, conv2, 50, large);
    pool(large, 50, 8, small);
    connect(small, 800, fc1, 500, 1, large);
    connect(large, 500, fc2, 10, 0, outputs[0]);
    return 0;
}
