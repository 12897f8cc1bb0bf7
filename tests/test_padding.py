"""Padding of windows, against values computed by hand from the text of the ONNX operators."""

import pytest

from lwc_compiler.padding import window_pads

# attributes, input sizes, kernel sizes -> padding before, after
WINDOWS = {
    "defaults": ({}, [5, 7], [3, 2], [0, 0], [0, 0]),
    "explicit": ({"auto_pad": "NOTSET", "pads": [1, 2, 3, 4]}, [5, 7], [3, 2], [1, 2], [3, 4]),
    "valid": ({"auto_pad": "VALID", "strides": [2, 2]}, [5, 7], [3, 2], [0, 0], [0, 0]),
    # 5 outputs whose windows of 3 cover 7 elements
    "odd kernel": ({"auto_pad": "SAME_UPPER"}, [5], [3], [1], [1]),
    # 5 outputs whose windows of 4 cover 8 elements
    "even kernel, upper": ({"auto_pad": "SAME_UPPER"}, [5], [4], [1], [2]),
    "even kernel, lower": ({"auto_pad": "SAME_LOWER"}, [5], [4], [2], [1]),
    # 3 outputs, 2 apart: 4 + 3 = 7 of 6 elements; 4 outputs, 2 apart: 6 + 3 = 9 of 7 elements
    "strides, upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [6, 7], [3, 3], [0, 1], [1, 1]),
    "strides, lower": ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [6, 7], [3, 3], [1, 1], [0, 1]),
    # 2 outputs, 3 apart, of 1 element each: less than the 5 there are
    "stride beyond the kernel": ({"auto_pad": "SAME_UPPER", "strides": [3]}, [5], [1], [0], [0]),
    # windows of 5 and of 4 over 6 elements with a stride of 1
    "dilations": ({"auto_pad": "SAME_LOWER", "dilations": [2, 3]}, [6, 6], [3, 2], [2, 2], [2, 1]),
    # 4 outputs, 2 apart, of windows of 7: 13 of 8 elements
    "strides and dilations": ({"auto_pad": "SAME_UPPER", "strides": [2], "dilations": [3]}, [8], [3], [2], [3]),
}

# The input of 3 elements, 2 apart, reaches 4 + 3 = 7 outputs with a kernel of 3, and 8 with one of 4.
TRANSPOSED = {
    "defaults": ({"strides": [2]}, [3], [3], [0], [0]),
    "explicit": ({"strides": [2], "pads": [2, 1]}, [3], [3], [2], [1]),
    "valid": ({"auto_pad": "VALID", "strides": [2]}, [3], [3], [0], [0]),
    # 6 outputs
    "same, upper": ({"auto_pad": "SAME_UPPER", "strides": [2]}, [3], [3], [0], [1]),
    "same, lower": ({"auto_pad": "SAME_LOWER", "strides": [2]}, [3], [3], [1], [0]),
    "even kernel": ({"auto_pad": "SAME_UPPER", "strides": [2]}, [3], [4], [1], [1]),
    "output padding": ({"auto_pad": "SAME_UPPER", "strides": [2], "output_padding": [1]}, [3], [4], [1], [2]),
    # reaches 4 + 5 = 9
    "dilation": ({"auto_pad": "SAME_LOWER", "strides": [2], "dilations": [2]}, [3], [3], [2], [1]),
    # reaches 5, and stays at that
    "stride beyond the kernel": ({"auto_pad": "SAME_LOWER", "strides": [2]}, [3], [1], [0], [0]),
    "output shape": ({"strides": [2, 2], "output_shape": [4, 7]}, [3, 3], [3, 4], [2, 1], [1, 0]),
    "output shape, upper": (
        {"auto_pad": "SAME_UPPER", "strides": [2, 2], "output_shape": [4, 7]}, [3, 3], [3, 4], [1, 0], [2, 1],
    ),
    "output shape before valid": ({"auto_pad": "VALID", "strides": [2], "output_shape": [6]}, [3], [3], [1], [0]),
    "output shape before pads": ({"pads": [5, 5], "strides": [2], "output_shape": [6]}, [3], [3], [1], [0]),
    # 7 - 5 elements too many
    "output shape with batch and channels": ({"strides": [2], "output_shape": [1, 8, 5]}, [3], [3], [1], [1]),
    # 11 of the 6 + 3 that are reached
    "output shape beyond the input": ({"strides": [3], "output_shape": [11]}, [3], [3], [0], [-2]),
    "output shape beyond the input, upper": (
        {"auto_pad": "SAME_UPPER", "strides": [3], "output_shape": [11]}, [3], [3], [0], [-2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_that_read(case: str) -> None:
    attributes, sizes, kernel, before, after = WINDOWS[case]
    assert window_pads(attributes, sizes, kernel) == (before, after)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_windows_that_write(case: str) -> None:
    attributes, sizes, kernel, before, after = TRANSPOSED[case]
    assert window_pads(attributes, sizes, kernel, transposed=True) == (before, after)
