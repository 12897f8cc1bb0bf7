"""A web service that runs an artifact.

LWC_ARTIFACT=demo-output/lenet_300_100.lwc uvicorn --app-dir examples/serving --factory app:create_app
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import Body, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

import lwc_compiler as lwc


def create_app() -> FastAPI:
    """The service for the artifact in $LWC_ARTIFACT, which is loaded when the server starts: once in each process.

    GET /health             the network is loaded
    GET /model              name, dtype and shape of every input and output
    POST /predict           {"input name": nested lists} gives {"output name": nested lists}
    POST /predict/raw       bytes of the inputs, one after the other in the order of /model, give those of the outputs
    """
    app = FastAPI(title="lwc", lifespan=_loaded)
    app.add_exception_handler(lwc.DataError, _refuse)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/model")
    async def model(request: Request) -> dict[str, list[dict[str, Any]]]:
        session = request.app.state.session
        return {side: [vars(spec) for spec in getattr(session, side)] for side in ("inputs", "outputs")}

    # Without `async` it runs in one of the server's threads: while they are in the network, the others answer.
    @app.post("/predict")
    def predict(request: Request, values: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
        session = request.app.state.session
        dtypes = {spec.name: spec.dtype for spec in session.inputs}
        outputs = session.run({name: _array(name, value, dtypes.get(name)) for name, value in values.items()})
        return {name: array.tolist() for name, array in outputs.items()}

    @app.post("/predict/raw")
    async def predict_raw(request: Request) -> Response:
        session = request.app.state.session
        inputs = _split(await _body(request, sum(map(_size, session.inputs))), session.inputs)
        outputs = await run_in_threadpool(session.run, inputs)
        return Response(b"".join(array.data for array in outputs.values()), media_type="application/octet-stream")

    return app


@asynccontextmanager
async def _loaded(app: FastAPI) -> AsyncIterator[None]:
    with lwc.load(os.environ["LWC_ARTIFACT"]) as session:
        app.state.session = session
        yield


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


def _array(name: str, value: Any, dtype: str | None) -> np.ndarray:
    try:
        return np.array(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise lwc.DataError(f"input '{name}' is no array of {dtype}: {error}") from error


async def _body(request: Request, size: int) -> bytearray:
    """The request's body, which has `size` bytes; of a longer one no more is read."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > size:
            break
    if len(body) != size:
        length = "more" if len(body) > size else f"{len(body)}"
        raise lwc.DataError(f"the body has {length} bytes; the inputs have {size}")
    return body


def _split(body: bytearray, specs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Views of the body: nothing is copied."""
    inputs, start = {}, 0
    for spec in specs:
        inputs[spec.name] = np.frombuffer(body, spec.dtype, math.prod(spec.shape), start).reshape(spec.shape)
        start += _size(spec)
    return inputs


def _size(spec: Any) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
