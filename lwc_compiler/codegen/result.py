"""What lowering a model gives: one library, its header, and the decision taken for every layer."""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.codegen.footprint import Footprint
from lwc_compiler.codegen.stack import StackUse
from lwc_compiler.kernels.kernel import Trial


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output.

    Attributes:
        name: as in the user's model.
        dtype: NumPy name of the element type, e.g. `float32`.
        shape: static, elements per dimension; () is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerDecision:
    """How one site was lowered, and why.

    Attributes:
        site: the weight's initializer name.
        node: the ONNX node that uses it (one decision a node; a shared weight has several).
        op: ONNX operator type.
        shape: the weight's shape.
        density: kept / all weights.
        format: how the weights are stored: `dense`, `csr`, `block4`, ...
        kernel: name of the kernel in the registry.
        bytes: bytes of the packed weights (values, indices, bias).
        dense_bytes: bytes of the dense float32 weight and bias.
        flops: multiply-adds x 2 over the stored weights, one inference at the lowered batch.
        dense_flops: the same for the dense layer.
        why: one phrase: what the choice rests on.
        trials: the ways to compute the layer that were compared, the one that was taken first.
        weight_type: how a weight is stored: `float32`, `float16` or `int8`.
        float32_bytes: what `bytes` would be with weights in float32; None where they are.
    """

    site: str
    node: str
    op: str
    shape: tuple[int, ...]
    density: float
    format: str
    kernel: str
    bytes: int
    dense_bytes: int
    flops: int
    dense_flops: int
    why: str
    trials: tuple[Trial, ...] = ()
    weight_type: str = "float32"
    float32_bytes: int | None = None

    @property
    def storage(self) -> str:
        """Format, and type where it is not float32: `csr int8`."""
        return self.format if self.weight_type == "float32" else f"{self.format} {self.weight_type}"


@dataclass(frozen=True)
class StepInfo:
    """One step of a program.

    Attributes:
        node: the ONNX node of the linear layer it belongs to; empty for any other step.
        kernel: name of the kernel.
        format: how the layer's weights are stored; empty for a step without weights.
        further: the nodes of further linear layers that it computes.
    """

    node: str
    kernel: str
    format: str
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProgramInfo:
    """What a library runs on one target.

    Attributes:
        target: name of the target.
        steps: in the order they run, as `<symbol>_profile` times them.
    """

    target: str
    steps: tuple[StepInfo, ...]


@dataclass(frozen=True)
class Lowered:
    """A lowered model, in memory.

    Attributes:
        name: model name, also of the files.
        symbol: prefix of every C symbol; a valid C identifier.
        library: the shared library; None for a target without an operating system.
        archive: the static library; None for the target `c`.
        header: the C header that declares it.
        inputs: in the order `<symbol>_run` takes them.
        outputs: in the order `<symbol>_run` takes them.
        workspace_bytes: bytes of 64-byte-aligned memory the caller hands to `<symbol>_run`.
        least_workspace_bytes: the same for one thread.
        weight_bytes: bytes of the constants.
        weights: what `<symbol>_run` takes as its first argument; None: the library holds the constants.
        source: the C source, for the target `c`; None: there are libraries.
        layers: one decision for each node that uses a site; for the most capable processor the library has code for.
        programs: what runs on each processor the library has code for, the most capable last.
        target: name of the target.
        threads: threads to use when the caller does not say.
        compiler: the C compiler and its version, as it describes itself; empty where none was asked.
        footprint: what the static library takes of flash and RAM; None for a target with an operating system.
        stack: what a run takes of the stack; None for a target with an operating system, and where there is no bound.
        precision: what the factors of linear layers are rounded to.
    """

    name: str
    symbol: str
    library: bytes | None
    archive: bytes | None
    header: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    workspace_bytes: int
    least_workspace_bytes: int
    weight_bytes: int
    layers: tuple[LayerDecision, ...]
    programs: tuple[ProgramInfo, ...]
    target: str
    threads: int
    compiler: str
    weights: bytes | None = None
    source: str | None = None
    footprint: Footprint | None = None
    stack: StackUse | None = None
    precision: str = "float32"
