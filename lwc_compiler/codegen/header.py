"""The public C header of an artifact."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lwc_compiler.codegen.c_text import c_string
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES
from lwc_compiler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lwc_compiler.codegen.emit import Emitted
    from lwc_compiler.codegen.result import TensorSpec

_HEADER = """\
/* {name}: a neural network as a library. Made by lwc {version}.
 *
 * Inputs:
{inputs}
 * Outputs:
{outputs}
 *
{about}
 */
#ifndef {guard}
#define {guard}

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_VERSION "{version}"
{constants}

typedef struct {{
    const char *name;
    const char *dtype; /* NumPy's name of the element type */
    int rank;
    const int64_t *dims; /* row-major */
}} {symbol}_tensor;

{body}int {symbol}_input_count(void);
int {symbol}_output_count(void);
const {symbol}_tensor *{symbol}_inputs(void);
const {symbol}_tensor *{symbol}_outputs(void);

#ifdef __cplusplus
}}
#endif

#endif
"""

_ABOUT = """\
 * {symbol}_run computes the outputs from the inputs. It allocates nothing and keeps no state between calls: calls with
 * different workspaces and pools may run at the same time."""
_BODY = """\
/* What {symbol}_run returns; 0: the outputs are computed. */
#define {upper}_ERROR_NULL 1
#define {upper}_ERROR_ALIGNMENT 2
#define {upper}_ERROR_WORKSPACE 3 /* it is too small */
#define {upper}_ERROR_WEIGHTS 4 /* they are damaged, or those of another library */

typedef struct {symbol}_pool {symbol}_pool;
{pool}
/* Bytes of the workspace a run on so many threads needs. */
size_t {symbol}_workspace_bytes(int threads);
{weights}
/* Runs the network: one pointer for each input and output, in the order above, tensors dense and row-major{where}. The
 * workspace is the caller's, workspace_bytes long, aligned to {alignment} bytes; its contents need not survive between
 * calls. A NULL pool means one thread. Returns 0, or a code for {symbol}_error_string; nothing is written then. */
int {symbol}_run(
    {argument}const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes,
    {symbol}_pool *pool);

const char *{symbol}_error_string(int code);
const char *{symbol}_version(void);
const char *{symbol}_target(void); /* whose code runs here */
int {symbol}_cpu_supported(void); /* 1 when this processor can run the library */

{profile}"""

_POOL = """\

/* Threads that share the work of a run. Creating one is the only allocation in this library. */
{symbol}_pool *{symbol}_pool_create(int threads); /* NULL when there is no memory, or threads is not 1 to 256 */
void {symbol}_pool_destroy({symbol}_pool *pool);
"""
_WHERE = ", aligned as\n * their elements are, and apart from each other: they are used where they lie"
_PROFILE = """\
/* A library may hold code for several targets and takes the most capable that this processor can run. use_target makes
 * later runs of the process take another; 1, or 0 when there is no code for it that this processor can run. */
int {symbol}_use_target(const char *target);

/* Runs the network as {symbol}_run does, and adds to `seconds` the time of each step, in the order of manifest.json,
 * and then of the copies of inputs and outputs: step_count + 1 numbers. */
int {symbol}_step_count(void);
int {symbol}_profile(
    {argument}const void *const *inputs, void *const *outputs, void *workspace, size_t workspace_bytes,
    {symbol}_pool *pool, double *seconds);

"""
_WEIGHTS = """\

/* The weights are a file of their own, {name}.weights. Mapped, or copied to memory that is aligned to {alignment}
 * bytes, it is the first argument of a run, which looks at its first bytes alone. check_weights reads all of it, for
 * example once at the start: 0, or a code for {symbol}_error_string when it is damaged or another library's. */
#define {upper}_WEIGHTS_BYTES {bytes}
#define {upper}_WEIGHTS_ALIGNMENT {alignment}
#define {upper}_WEIGHTS_ID "{identity}"
int {symbol}_check_weights(const void *weights, size_t bytes);
"""

_DEVICE_ABOUT = """\
 * {symbol}_run computes the outputs from the inputs on an NVIDIA GPU. The library needs the driver, libcuda.so.1, when
 * it runs, and nothing of CUDA before. Contexts are independent of each other; one is used by one thread at a time."""
_DEVICE_BODY = """\
/* The network on a GPU: its code, weights and memory there. */
typedef struct {symbol}_context {symbol}_context;

/* Loads the driver, and the network on to GPU number `device` of the process, of whose memory it takes
 * {symbol}_device_bytes(). NULL when that is not possible; *error is then a code for {symbol}_error_string, and 0
 * otherwise; the pointer may be NULL. */
{symbol}_context *{symbol}_create(int device, int *error);
void {symbol}_destroy({symbol}_context *context);
size_t {symbol}_device_bytes(void);

/* Runs the network: one pointer for each input and output, in the order above, tensors dense and row-major, in the
 * memory of the processor. Returns when the outputs are there: 0, or a code for {symbol}_error_string. After an error
 * that the GPU does not recover from every run gives the same code; the context can be destroyed. */
int {symbol}_run({symbol}_context *context, const void *const *inputs, void *const *outputs);

/* The same with tensors in the memory of the GPU. Only starts the work, on a stream of the caller (a CUstream or
 * cudaStream_t; NULL: the default one); the next run of the context has to be on the same stream, or after it. */
int {symbol}_run_device({symbol}_context *context, const void *const *inputs, void *const *outputs, void *stream);

/* Runs the network as {symbol}_run does, with events of the GPU between its launches, and adds to `seconds` the time of
 * each step, in the order of manifest.json, and then of the copies of inputs and outputs: step_count + 1 numbers. */
int {symbol}_step_count(void);
int {symbol}_profile({symbol}_context *context, const void *const *inputs, void *const *outputs, double *seconds);

const char *{symbol}_error_string(int code);
const char *{symbol}_version(void);
const char *{symbol}_target(void);

"""


def emit_header(
    name: str,
    symbol: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    emitted: Emitted,
    *,
    threads: bool,
) -> str:
    """The header.

    Args:
        name: model name, for the first line.
        symbol: prefix of all symbols.
        inputs: graph inputs in order.
        outputs: graph outputs in order.
        emitted: the library's source and weights.
        threads: the target has an operating system: threads, and a clock to time steps with.
    """
    upper = symbol.upper()
    weights, argument = "", ""
    if emitted.identity:
        argument = "const void *weights, "
        weights = _WEIGHTS.format(
            name=name, symbol=symbol, upper=upper, alignment=ALIGNMENT_BYTES, bytes=len(emitted.weights),
            identity=emitted.identity,
        )  # fmt: skip
    body = _BODY.format(
        symbol=symbol, upper=upper, alignment=ALIGNMENT_BYTES, weights=weights, argument=argument,
        pool=_POOL.format(symbol=symbol) if threads else "",
        profile=_PROFILE.format(symbol=symbol, argument=argument) if threads else "",
        where="" if threads else _WHERE,
    )  # fmt: skip
    defines = [
        f"#define {upper}_WORKSPACE_ALIGNMENT {ALIGNMENT_BYTES}",
        f"#define {upper}_WORKSPACE_BYTES {emitted.least_workspace_bytes} /* for one thread */",
    ]
    return _header(name, symbol, inputs, outputs, _ABOUT.format(symbol=symbol), defines, body)


def emit_device_header(name: str, symbol: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The header of a library for GPUs; the arguments are those of `emit_header`."""
    about, body = _DEVICE_ABOUT.format(symbol=symbol), _DEVICE_BODY.format(symbol=symbol)
    return _header(name, symbol, inputs, outputs, about, [], body)


def _header(
    name: str,
    symbol: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    about: str,
    defines: list[str],
    body: str,
) -> str:
    upper = symbol.upper()
    constants = [*defines, *_constants(f"{upper}_INPUT", inputs), *_constants(f"{upper}_OUTPUT", outputs)]
    return _HEADER.format(
        name=name.replace("*/", "* /"), symbol=symbol, guard=f"{upper}_H", upper=upper, version=__version__,
        about=about, inputs=_describe(inputs), outputs=_describe(outputs), constants="\n".join(constants), body=body,
    )  # fmt: skip


def _constants(prefix: str, specs: Sequence[TensorSpec]) -> list[str]:
    lines = [f"#define {prefix}_COUNT {len(specs)}"]
    for i, spec in enumerate(specs):
        elements = math.prod(spec.shape)
        lines += [
            f"#define {prefix}_{i}_NAME {c_string(spec.name)}",
            f"#define {prefix}_{i}_RANK {len(spec.shape)}",
            f"#define {prefix}_{i}_DIMS {{{', '.join(map(str, spec.shape or (1,)))}}}",
            f"#define {prefix}_{i}_ELEMENTS {elements}",
            f"#define {prefix}_{i}_BYTES {elements * np.dtype(spec.dtype).itemsize}",
        ]
    return lines


def _describe(specs: Iterable[TensorSpec]) -> str:
    def clean(name: str) -> str:
        return name.replace("*/", "* /").replace("\\", "/")

    return "\n".join(f" *   {clean(s.name)}: {s.dtype}[{', '.join(map(str, s.shape))}]" for s in specs)
