"""Sessions of ONNX Runtime: single device, quiet, and a fixed number of threads."""

from __future__ import annotations

from typing import Any

import onnx


def session_options(threads: int) -> Any:
    """Options that print nothing (errors are raised); 0 threads leaves the number to ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def open_session(proto: onnx.ModelProto, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` of `proto` on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(
        proto.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
