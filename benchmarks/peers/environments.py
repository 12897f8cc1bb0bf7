"""Environments of the peers: each has its own below `.cache/peers`, so none can disturb another, or lwc.

An environment is made once; delete its folder to get newer versions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"


class UnavailableError(Exception):
    """An engine cannot be used here; the message says why."""


@dataclass(frozen=True)
class Environment:
    """Packages that are installed together.

    Attributes:
        name: its folder.
        package: the package whose version is reported.
        requirements: what pip is told to install.
        python: the version it needs, such as "3.10"; empty: the one that runs this.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    python: str = ""


ONNXRUNTIME = Environment("onnxruntime", "onnxruntime", ("onnxruntime",))
# DeepSparse is licensed for evaluation only: it may be measured here, and must never become something lwc depends on.
DEEPSPARSE = Environment(
    "deepsparse", "deepsparse", ("deepsparse==1.8.0", "numpy<2", "onnx==1.14.1", "protobuf<4"), "3.10"
)
OPENVINO = Environment("openvino", "openvino", ("openvino",))
MNN = Environment("mnn", "MNN", ("MNN", "numpy"))
NCNN = Environment("ncnn", "ncnn", ("ncnn", "pnnx", "numpy"))


def install(environment: Environment) -> Path:
    """The Python of an environment, which is made first where it is not there.

    Raises:
        UnavailableError: its Python is not on PATH, or pip failed.
    """
    folder = CACHE / "environments" / environment.name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join([*environment.requirements, ""])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {environment.name}", flush=True)
    _call([_interpreter(environment.python), "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _call([*pip, *environment.requirements])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def version(environment: Environment) -> str:
    """The installed version of an environment's package."""
    code = f"from importlib.metadata import version; print(version({environment.package!r}))"
    return _call([str(install(environment)), "-c", code]).strip()


def _interpreter(wanted: str) -> str:
    if wanted in ("", "{}.{}".format(*sys.version_info)):
        return sys.executable
    for folder in os.get_exec_path():
        python = shutil.which(f"python{wanted}", path=folder)
        # Version managers put commands on PATH that only say which versions have them.
        if python and subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    raise UnavailableError(f"needs Python {wanted}, and there is no python{wanted} on PATH that runs")


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UnavailableError(f"{' '.join(command[1:4])} ... failed: {''.join(last)}")
    return done.stdout
