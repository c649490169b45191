"""The FastAPI application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import vlkit
from vlkit.cli.show import one_line
from vlkit.errors import UserError
from vlkit.serving.api.guard import Guard, Limits, problem
from vlkit.serving.api.inputs import EmbeddingRequest, SearchRequest, Service, encoded
from vlkit.serving.api.metrics import Metrics


def make_app(service: Service, limits: Limits | None = None, keys: Sequence[str] = ()) -> Guard:
    """An ASGI application.

    ``POST /v1/embeddings`` and ``GET /v1/models`` as OpenAI has them, ``POST /search``, ``GET /healthz``,
    ``GET /metrics``, and the schema at ``/openapi.json``.

    Args:
        service: model and index.
        limits: of requests.
        keys: accepted API keys; empty = anyone may ask.

    Raises:
        UserError: ``prometheus_client`` is not installed.
    """
    limits, metrics = limits or Limits(), Metrics()
    app = FastAPI(title="vlkit", version=vlkit.__version__, docs_url=None, redoc_url=None)
    guard = Guard(app, limits, keys, metrics)
    name = service.pipeline.name
    # More threads than the model needs: while it is busy, the inputs of all waiting calls gather for its next batch.
    threads = anyio.CapacityLimiter(limits.threads)

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> JSONResponse:
        inputs = [request.input] if isinstance(request.input, str) else request.input
        if not 0 < len(inputs) <= limits.inputs:
            raise UserError(f"input: has {len(inputs)} entries; give 1 to {limits.inputs}")
        if request.model not in ("", name):
            raise HTTPException(404, f"model {request.model!r} is not served here; {name!r} is")
        vectors, tokens = await run_sync(service.embed, inputs, limiter=threads)
        images = sum(not isinstance(item, str) and item.image is not None for item in inputs)
        metrics.inputs(len(inputs) - images, images)
        form = request.encoding_format
        data = [{"object": "embedding", "index": i, "embedding": encoded(v, form)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vlkit"}]}

    @app.post("/search")
    async def search(request: SearchRequest) -> dict[str, Any]:
        results = await run_sync(service.search, request, limiter=threads)
        metrics.inputs(int(request.text is not None), int(request.image is not None))
        return {"model": name, "results": results}

    @app.get("/healthz")
    async def health() -> JSONResponse:
        state = {"status": "draining" if guard.draining else "ok", "model": service.pipeline.identity}
        return JSONResponse(state, 503 if guard.draining else 200)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.page(), media_type=metrics.content_type)

    _explain_errors(app)
    return guard


def _explain_errors(app: FastAPI) -> None:
    """Answer every error in one form, with one line and no traceback."""

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> JSONResponse:
        return problem(400, one_line(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Of a union's errors the one that got furthest is about what the client meant.
        found = max(error.errors(), key=lambda each: len(each["loc"]))
        return problem(400, one_line(f"{'.'.join(map(str, found['loc'][1:])) or 'body'}: {found['msg']}"))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(RecursionError)
    async def nested(_: Request, error: RecursionError) -> JSONResponse:
        return problem(400, "body: the nesting is too deep")
