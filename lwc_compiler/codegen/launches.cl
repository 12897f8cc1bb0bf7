/* In OpenCL kernels run one after the other. */
#define lwc_inputs_ready()

