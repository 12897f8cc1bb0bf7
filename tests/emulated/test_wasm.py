"""Networks as WebAssembly modules, run by wasmtime."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import lwc_compiler as lwc
from benchmarks.models import MODELS
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.model import load_model
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import TOLERANCE, relative_error
from lwc_compiler.targets import find_target

wasmtime = pytest.importorskip("wasmtime")

MAIN = Path(__file__).with_name("wasm_main.c")


@pytest.mark.parametrize("name", ["lenet5", "lenet300"])
def test_networks_run_as_webassembly(tmp_path, name):
    recipe = lwc.Recipe(prune=lwc.PruneOptions(sparsity=0.9), lower=lwc.LowerOptions(target="wasm32"))
    artifact = lwc.compile(lwc.Model(MODELS[name](), "net"), tmp_path / "net.lwc", recipe)
    command = [*find_compiler(find_target("wasm32")).command, "-O2", "-Wall", f"-I{artifact.directory}"]
    module = tmp_path / "net.wasm"
    subprocess.run([*command, MAIN, artifact.archive, "-lm", "-o", module], check=True)
    proto, manifest = load_model(artifact.model).proto, artifact.manifest
    inputs = random_inputs(proto, manifest.inputs, seed=0)
    (tmp_path / "inputs").write_bytes(b"".join(inputs[spec.name].tobytes() for spec in manifest.inputs))
    assert run_module(module, tmp_path) == 0
    (expected,) = reference_session(proto, 1).run(None, inputs)
    actual = np.fromfile(tmp_path / "outputs", np.float32).reshape(expected.shape)
    assert relative_error(actual, expected) <= TOLERANCE


def run_module(module, folder):
    """Runs a module with `folder` as its working directory; its exit code."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    linker.define_wasi()
    wasi = wasmtime.WasiConfig()
    wasi.preopen_dir(str(folder), ".")
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, str(module)))
    try:
        instance.exports(store)["_start"](store)
    except wasmtime.ExitTrap as end:
        return end.code
    return 0
