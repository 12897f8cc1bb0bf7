"""The example web service, started and asked as its README says."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_twice

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "examples" / "serving" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:sh|python)\n(.*?)```", README, re.DOTALL)
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
IDS = np.array([3, 4])
RAW = VALUES.tobytes() + IDS.tobytes()


@pytest.fixture(scope="module")
def address(twice, twice_model, tmp_path_factory):
    """Where the service runs, started by the README's command; it ends cleanly when it is told to."""
    artifact = write_twice(tmp_path_factory.mktemp("served") / "twice.lwc", twice, twice_model)
    command = next(block for block in BLOCKS if "uvicorn --app-dir" in block)
    variable, *words = shlex.split(command)
    environment = {**os.environ, variable.partition("=")[0]: str(artifact.directory)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *words, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        said = []
        for line in server.stderr:
            said.append(line)
            if "Uvicorn running" in line:
                break
        else:
            pytest.fail("".join(said))
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate()
    assert "Application shutdown complete" in rest


def ask(url, body=None):
    """Status, and the answer."""
    kind = {} if body is None or isinstance(body, bytes) else {"Content-Type": "application/json"}
    data = json.dumps(body).encode() if kind else body
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, kind)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_what_is_served(address):
    assert ask(f"{address}/health") == (200, b'{"status":"ok"}')
    assert json.loads(ask(f"{address}/model")[1]) == {
        "inputs": [
            {"name": "values", "dtype": "float32", "shape": [2, 3]},
            {"name": "ids", "dtype": "int64", "shape": [2]},
        ],
        "outputs": [
            {"name": "doubled", "dtype": "float32", "shape": [2, 3]},
            {"name": "same", "dtype": "int64", "shape": [2]},
        ],
    }


def test_json(address):
    status, answer = ask(f"{address}/predict", {"values": VALUES.tolist(), "ids": IDS.tolist()})
    assert (status, json.loads(answer)) == (200, {"doubled": (2 * VALUES).tolist(), "same": [3, 4]})


def test_raw_requests_at_the_same_time(address):
    def right(number):
        values = VALUES + number
        answer = ask(f"{address}/predict/raw", values.tobytes() + IDS.tobytes())
        return answer == (200, (2 * values).tobytes() + IDS.tobytes())

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(right, range(64)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"values": VALUES.tolist()}, "input 'ids' is missing"),
        ({"values": [1, 2], "ids": [3, 4]}, "input 'values' has shape [2]; the model was compiled for [2, 3]"),
        ({"values": [[1, 2, 3], [4]], "ids": [3, 4]}, "input 'values' is no array of float32: "),
        ({"values": VALUES.tolist(), "ids": [3, 2**70]}, "input 'ids' is no array of int64: "),
        ({"values": VALUES.tolist(), "ids": [3, 4], "idz": 1}, "the model has no input 'idz'"),
    ],
)
def test_values_that_do_not_fit(address, body, message):
    status, answer = ask(f"{address}/predict", body)
    assert status == 422
    assert message in json.loads(answer)["detail"]


@pytest.mark.parametrize(("body", "length"), [(b"", "0"), (RAW[:-1], "39"), (RAW + b"x", "more")])
def test_bodies_of_another_size(address, body, length):
    status, answer = ask(f"{address}/predict/raw", body)
    assert (status, json.loads(answer)) == (422, {"detail": f"the body has {length} bytes; the inputs have 40"})


def test_the_readmes_client(address):
    (script,) = (block for block in BLOCKS if "urllib" in block)
    names = {}
    exec(compile(script.replace("http://127.0.0.1:8000", address), "README.md", "exec"), names)
    np.testing.assert_array_equal(names["output"], np.zeros((2, 3)))
    assert len(names["answer"]) == len(RAW)
