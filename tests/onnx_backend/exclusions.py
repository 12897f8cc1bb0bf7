"""The tests of the ONNX project that lwc does not run, and why: pattern of the test's name -> reason."""

from __future__ import annotations

import re

_TYPES = "element types of 8 bits and fewer other than int8, uint8 and bool are not handled"
_STRINGS = "strings are not handled"
_SEQUENCES = "sequences and optional values are not handled"
_CONTROL = "control flow that depends on the inputs is not handled"
_OUTPUT_SHAPE = "the shape of the output depends on the input's values"
_QUANTIZED = "integer arithmetic of quantized networks is not handled"
_TRAINING = "training is not lowered"
_RANDOM = "random numbers are not handled"
_EMPTY = "a tensor without elements is refused"
_RARE = "the operator is not handled"
_ALIGN = "the corners of the rounded output size are aligned, as in ONNX Runtime, not those of scale x size"
_REAL = "tests/test_zoo.py compiles these models, with random weights"

EXCLUDED: dict[str, str] = {
    r"^test_(bvlc_alexnet|densenet121|inception_v[12]|resnet50|shufflenet|squeezenet|vgg19|zfnet512)": _REAL,
    r"^test_cast(like)?_.*(FLOAT8|FLOAT4|INT4|INT2)": _TYPES,
    r"^test_cast(like)?_(e8m0|no_saturate)": _TYPES,
    r"^test_(de)?quantizelinear_(e4m3fn|e5m2|u?int[24]|float4e2m1)": _TYPES,
    r"^test_(string|strnorm|regex|equal_string|tfidf)|^test_cast(like)?_.*STRING": _STRINGS,
    r"^test_ai_onnx_ml_label_encoder": _STRINGS,
    r"sequence_(map|insert|model)|split_to_sequence|^test_identity_(sequence|opt)": _SEQUENCES,
    r"^test_optional_(get|has)_element_(optional|sequence|tensor|empty_optional)": _SEQUENCES,
    r"^test_(if|loop|scan)\d*(_|$)": _CONTROL,
    r"^test_linear_attention": _CONTROL,
    r"^test_range_.*_expanded": _CONTROL,
    r"^test_(nonmaxsuppression|nonzero|unique|compress)": _OUTPUT_SHAPE,
    r"quantizelinear|^test_q?linear(conv|matmul)|^test_(convinteger|matmulinteger)": _QUANTIZED,
    r"^test_(adagrad|adam|momentum|nesterov|gradient)|^test_(batchnorm_.*_training|training_dropout)": _TRAINING,
    r"^test_bernoulli": _RANDOM,
    r"^test_(reshape_allowzero_reordered|slice_start_out_of_bounds|split_zero_size|tri[ul]_zero)": _EMPTY,
    r"^test_reduce_sum_empty_set_non_reduced_axis_zero": _EMPTY,
    r"^test_(constantofshape_int_shape_zero|shape_start_greater_than_end)": _EMPTY,
    r"^test_causal_conv_with_state_kernel_size_one": _EMPTY,
    r"^test_(ai_onnx_ml_|basic_deform|deform_conv|col2im|det_|dft|stft|image_decoder|maxunpool|roialign|tensorscatter)":
        _RARE,
    r"^test_melweightmatrix": _RARE,
    r"^test_resize_downsample_scales_(linear|cubic)_align_corners": _ALIGN,
}  # fmt: skip


def reason(name: str) -> str | None:
    """Why test `name` is left out; None when it runs."""
    return next((why for pattern, why in EXCLUDED.items() if re.search(pattern, name)), None)
