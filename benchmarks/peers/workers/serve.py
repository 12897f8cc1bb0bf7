"""What every worker does: it holds one model in one engine and times it when it is told to.

A worker runs in the environment of its engine, so it knows nothing of lwc and runs on Python 3.10. It is started with
one JSON object: `model`, a path; `input`, a .npy file; `threads`; and `answers`, the file descriptor it answers on, for
engines print what they like to standard output. It says "ready" when the model is loaded. Then it answers lines of
JSON, one each: `{"run": seconds}` with the seconds of every run, `{"output": path}` with null once the output is in
that .npy file. In between it waits for input.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

RUNS_AT_MOST = 2000  # in one block


def serve(load: Callable[[str, np.ndarray, int], tuple[Callable[[], Any], Callable[[], Any]]]) -> None:
    """Answers until its input ends.

    Args:
        load: takes the model's path, the input and the number of threads, and returns two functions: one that runs the
            model once, which is what is timed, and one that gives the output of the last run.
    """
    job = json.loads(sys.argv[1])
    answers = os.fdopen(job["answers"], "w")

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        run, output = load(job["model"], np.load(job["input"]), job["threads"])
        run()
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        raise
    gc.disable()
    answer("ready")
    for line in sys.stdin:
        question = json.loads(line)
        if "run" in question:
            answer(block(run, question["run"]))
        else:
            run()
            np.save(question["output"], np.asarray(output(), np.float32))
            answer(None)


def block(run: Callable[[], Any], seconds: float) -> list[float]:
    """The seconds of every run in about `seconds`; before them one that fills the caches and is not counted.

    Where a run takes as long as the whole block, caches matter little, and the first one is counted.
    """
    start = time.perf_counter()
    run()
    begin = time.perf_counter()
    if begin - start >= seconds:
        return [begin - start]
    times: list[float] = []
    while (start := time.perf_counter()) - begin < seconds and len(times) < RUNS_AT_MOST:
        run()
        times.append(time.perf_counter() - start)
    return times
