"""The child process: `python -m lwc_compiler.training.worker DIRECTORY`.

It speaks JSON lines on what was its standard output: {"progress": {...}}, and at the end {"done": true} or
{"error": class name, "message": text}. Everything else that writes to standard output lands on standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lwc_compiler.errors import LwcError
from lwc_compiler.training.progress import Progress


def main(directory: Path) -> int:
    """Trains the job in `directory`; 0 when it is done, 1 after an error that was reported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(line: dict[str, Any]) -> None:
        try:
            channel.write(json.dumps(line) + "\n")
        except BrokenPipeError:  # the parent is gone
            os._exit(1)

    def report(progress: Progress) -> None:
        send({"progress": dataclasses.asdict(progress)})

    try:
        from lwc_compiler.training.job import read_job
        from lwc_compiler.training.loop import train

        train(read_job(directory), report)
    except LwcError as error:
        send({"error": type(error).__name__, "message": str(error)})
        return 1
    except MemoryError:
        send({"error": "TrainingError", "message": "training ran out of memory; a smaller batch size needs less"})
        return 1
    send({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
