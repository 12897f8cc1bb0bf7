"""What LeNets take on microcontrollers: flash, RAM, stack and instructions, run in QEMU and checked.

    python -m benchmarks.microcontrollers

Weights are random and 11 of 12 are pruned, as in the paper. `dense` is lwc's code for the model with all weights,
`plain C` a program of plain loops over them (`plain_lenet5.c`), compiled with -O3. Instructions are those that QEMU
executes in a run, without what they cost on a given chip.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from onnx import numpy_helper

import lwc_compiler as lwc
from benchmarks.models import MODELS
from lwc_compiler.codegen.footprint import footprint
from lwc_compiler.codegen.link import find_compiler, make_archive
from lwc_compiler.model import load_model
from lwc_compiler.runtime.artifact import Artifact
from lwc_compiler.runtime.bare_metal import emulate, machine_for
from lwc_compiler.runtime.linkable import Linkable
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import relative_error
from lwc_compiler.targets import find_target

WeightName: TypeAlias = Literal["float32", "float16", "int8"]
TARGETS = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imafc")
SPARSITY = 11 / 12
_TIMEOUT = 600.0


def compiled(name: str, target: str, sparsity: float, folder: Path, weight_type: WeightName = "float32") -> Artifact:
    """The artifact of a network, all its layers pruned."""
    prune = lwc.PruneOptions(sparsity=sparsity, keep_first=False) if sparsity else None
    recipe = lwc.Recipe(prune=prune, lower=lwc.LowerOptions(target=target, weight_type=weight_type))
    return lwc.compile(lwc.Model(MODELS[name](), name), folder, recipe)


def plain(artifact: Artifact) -> Artifact:
    """The dense LeNet-5 artifact with the program of plain loops for a library."""
    compiler = find_compiler(find_target(artifact.manifest.target))
    tensors = {t.name: numpy_helper.to_array(t) for t in load_model(artifact.model).proto.graph.initializer}
    weights = b"".join(
        tensors[f"{layer}.{part}"].astype(np.float32).tobytes()
        for layer in ("conv1", "conv2", "fc1", "fc2")
        for part in ("weight", "bias")
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "weights.bin").write_bytes(weights)
        source = str(Path(__file__).with_name("plain_lenet5.c"))
        flags = ["-std=c99", "-O3", "-g0", "-I", str(artifact.directory.absolute()), "-c", source, "-o", "plain.o"]
        subprocess.run([*compiler.command, *flags], cwd=folder, check=True)
        artifact.archive.write_bytes(make_archive(compiler, {"plain.o": (folder / "plain.o").read_bytes()}))
    return artifact


def row(name: str, target: str, kind: str, artifact: Artifact) -> str:
    """A line of the table."""
    proto, manifest = load_model(artifact.model).proto, artifact.manifest
    inputs = random_inputs(proto, manifest.inputs, 0)
    done = emulate(Linkable.of_artifact(artifact), inputs, timeout=_TIMEOUT)
    (output,) = done.outputs.items()
    error = relative_error(output[1], reference_session(proto, 1).run([output[0]], inputs)[0])
    memory = footprint(artifact.archive.read_bytes())
    values = (
        memory.flash, memory.code, memory.static_ram, manifest.workspace_bytes, done.stack_bytes, done.instructions,
    )  # fmt: skip
    return f"| {name} | {kind} | {target} | " + " | ".join(f"{v:,}" for v in values) + f" | {error:.1e} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    targets = parser.parse_args().targets.split(",")
    print("| network | weights | target | flash | of it code | static RAM | workspace | stack | instructions | error |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for target in targets:
            for model in ("lenet300", "lenet5"):
                for weight_type in get_args(WeightName):
                    place = folder / f"{model}-{target}-{weight_type}"
                    artifact = compiled(model, target, SPARSITY, place, weight_type)
                    print(row(model, target, f"1 of 12, {weight_type}", artifact), flush=True)
        for target in targets:
            if machine_for(find_target(target)).name == "mps3-an547":  # has 512 KB for code and weights
                continue
            artifact = compiled("lenet5", target, 0, folder / f"dense-{target}")
            print(row("lenet5", target, "dense", artifact), flush=True)
            if target == "cortex-m7":
                print(row("lenet5", target, "plain C", plain(artifact)), flush=True)


if __name__ == "__main__":
    main()
