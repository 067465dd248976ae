"""The Service Provider's HTTP API, and the page that shows it live.

Every call needs the token, but for the three files of the page, which say nothing of any service.
What is wrong is answered as `{"error": LINE}`.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from snake_jax.errors import UserError
from snake_jax.services import messages, results, store
from snake_jax.services.guard import Guard
from snake_jax.services.messages import Refusal
from snake_jax.services.provider import Provider
from snake_jax.services.terms import NotThere, WrongState

_HERE = Path(__file__).parent
_VERSION = "1"  # of the API
_LINES = "application/x-ndjson"
_SCRIPTS = ("page_api.js", "page_drawing.js", "page.js")  # the last one starts
_OPEN_PATHS = ("/", "/page.css", "/page.js")
_LOOK_S = 0.2
_LONGEST_WAIT_S = 3600.0
# Answers that operations may have, as the OpenAPI document tells.
_ALWAYS: dict[int | str, dict[str, Any]] = {
    code: {"model": Refusal} for code in (400, 401, 413, 422)
}
_ABOUT_ONE = _ALWAYS | {404: {"model": Refusal}}
_BY_STATE = _ABOUT_ONE | {409: {"model": Refusal}}

Number = Annotated[int, InPath(ge=1, le=2**53, description="of the service")]
First = Annotated[int, Query(ge=0, le=2**53, description="the line to begin with, from 0")]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=_LONGEST_WAIT_S,
        description="seconds that the answer goes on with new lines, while the service is not over",
    ),
]


def make_app(provider: Provider, token: str) -> FastAPI:
    """The application.

    Args:
      provider: what it speaks for.
      token: that every call needs.
    """
    app = FastAPI(
        title="snake-jax Service Provider",
        version=_VERSION,
        description="Registers, watches and ends training services.",
        # Those pages of FastAPI's load scripts from the network; `/` shows the document itself.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, token=token, open_paths=_OPEN_PATHS)
    for router in (_services(provider), _progress(provider), _files(provider)):
        # The guard checks the token; this has the document say that there is one.
        app.include_router(router, dependencies=[Depends(HTTPBearer(auto_error=False))])
    app.include_router(_page())
    _answer_errors(app)
    return app


def _services(provider: Provider) -> APIRouter:
    """Registering, listing, inspecting, ending."""
    router = APIRouter(tags=["services"])

    def shown(service: store.Service) -> messages.ServiceShown:
        return messages.service_shown(service, provider.progress(service.number))

    @router.post("/services", status_code=201, responses=_ALWAYS | {409: {"model": Refusal}})
    def register(registration: messages.Registration) -> messages.ServiceShown:
        """Registers a service. It waits until it has its slots."""
        return shown(provider.register(registration.asked()))

    @router.get("/services", responses=_ALWAYS)
    def every() -> messages.Services:
        """Lists all services."""
        services = provider.services()
        in_use = 0
        for service in services:
            if service.state in (store.RUNNING, store.ENDING):
                in_use += service.slots
        listed = [shown(service) for service in services]
        return messages.Services(slots=provider.offer.slots, slots_in_use=in_use, services=listed)

    @router.get("/nodes", responses=_ALWAYS)
    def pool() -> messages.PoolShown:
        """The nodes that services share: who has which, who waits, what came and went."""
        return messages.pool_shown(provider.pool())

    @router.get("/services/{number}", responses=_ABOUT_ONE)
    def one(number: Number) -> messages.ServiceShown:
        """Shows a service."""
        return shown(provider.find(number))

    @router.post("/services/{number}/cancel", status_code=202, responses=_BY_STATE)
    def cancel(number: Number) -> messages.ServiceShown:
        """Cancels a service: at once where it waits, else after its round or a grace."""
        return shown(provider.cancel(number))

    @router.delete("/services/{number}", status_code=204, responses=_BY_STATE)
    def deregister(number: Number) -> None:
        """De-registers a service that is over: it is forgotten and its result deleted."""
        provider.deregister(number)

    @router.get("/services/{number}/events", responses=_ABOUT_ONE)
    def events(number: Number) -> messages.Events:
        """What happened to a service and to the nodes of its run, in order."""
        in_run = results.events_of(provider.run_folder(number))
        return messages.events_shown(provider.events(number), in_run)

    return router


def _progress(provider: Provider) -> APIRouter:
    """What a service's run tells of itself."""
    router = APIRouter(tags=["progress"])
    lines: dict[int | str, dict[str, Any]] = {
        200: {"content": {_LINES: {"schema": {"type": "string"}}}, "description": "JSON lines"}
    }
    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "text"}
    }

    def following(number: int, name: str, first: int, wait_s: float) -> StreamingResponse:
        provider.find(number)
        pieces = _followed(provider, number, name, first, wait_s)
        return StreamingResponse(pieces, media_type=_LINES)

    @router.get(
        "/services/{number}/metrics",
        responses=_ABOUT_ONE | lines,
        response_class=StreamingResponse,
    )
    def metrics(number: Number, first: First = 0, wait_s: Wait = 0) -> StreamingResponse:
        """A service's metrics as a stream of JSON lines, one a round."""
        return following(number, "metrics.jsonl", first, wait_s)

    @router.get(
        "/services/{number}/ledger", responses=_ABOUT_ONE | lines, response_class=StreamingResponse
    )
    def ledger(number: Number, first: First = 0, wait_s: Wait = 0) -> StreamingResponse:
        """A service's ledger as a stream of JSON lines, one a transfer."""
        return following(number, "ledger.jsonl", first, wait_s)

    @router.get("/services/{number}/nodes", responses=_ABOUT_ONE)
    def nodes(number: Number) -> messages.Nodes:
        """The nodes of a service that have taken part so far."""
        provider.find(number)
        found = results.nodes_of(provider.run_folder(number))
        return messages.Nodes(nodes=[messages.node_shown(node) for node in found])

    @router.get("/services/{number}/log", responses=_ABOUT_ONE | text, response_class=Response)
    def log(number: Number) -> Response:
        """What a service's process printed; the last mebibyte of it."""
        service = provider.find(number)
        return Response(provider.log(service), media_type="text/plain")

    return router


def _files(provider: Provider) -> APIRouter:
    """The files of a service's result."""
    router = APIRouter(tags=["result"])

    @router.get("/services/{number}/files", responses=_ABOUT_ONE)
    def files(number: Number) -> messages.Files:
        """The files of a service's result, as far as it is."""
        provider.find(number)
        listed = []
        for name, path in results.files_of(provider.run_folder(number)).items():
            listed.append(messages.FileShown(name=name, bytes=path.stat().st_size))
        return messages.Files(files=listed)

    @router.get(
        "/services/{number}/files/{name:path}", responses=_ABOUT_ONE, response_class=FileResponse
    )
    def file(number: Number, name: str) -> FileResponse:
        """A file of a service's result."""
        provider.find(number)
        # Looked up among those that there are: a name leads nowhere else.
        found = results.files_of(provider.run_folder(number)).get(name)
        if found is None:
            raise NotThere(f"service {number} has no such file")
        return FileResponse(found, filename=found.name, media_type="application/octet-stream")

    @router.get("/services/{number}/archive", responses=_BY_STATE, response_class=StreamingResponse)
    def archive(number: Number) -> StreamingResponse:
        """The result of a service that is over, as a tar archive."""
        service = provider.find(number)
        if service.state not in store.OVER:
            raise WrongState(f"service {number} is {service.state}: its result is not whole yet")
        folder = f"service_{number}"
        pieces = results.archive(folder, results.files_of(provider.run_folder(number)))
        headers = {"Content-Disposition": f'attachment; filename="{folder}.tar"'}
        return StreamingResponse(pieces, media_type="application/x-tar", headers=headers)

    return router


def _page() -> APIRouter:
    """The files of the page."""
    router = APIRouter(include_in_schema=False)

    def part(name: str) -> str:
        return (_HERE / name).read_text(encoding="utf-8")

    @router.get("/")
    def page() -> Response:
        return Response(part("page.html"), media_type="text/html")

    @router.get("/page.css")
    def style() -> Response:
        return Response(part("page.css"), media_type="text/css")

    @router.get("/page.js")
    def script() -> Response:
        text = "\n".join(part(name) for name in _SCRIPTS)
        return Response(f'"use strict";\n{text}', media_type="text/javascript")

    return router


async def _followed(
    provider: Provider, number: int, name: str, first: int, wait_s: float
) -> AsyncIterator[str]:
    """The lines of a file of a service's run from the `first` on, and those that come after."""
    file = provider.run_folder(number) / name
    until = time.monotonic() + wait_s
    place, count = results.ReadPosition(), 0
    while True:
        # Asked before it is read: what is written before the end is read.
        over = _is_over(provider, number)
        lines, place = results.lines_from(file, place)
        for line in lines:
            count += 1
            if count > first:
                yield f"{line}\n"
        if over or time.monotonic() >= until:
            return
        await anyio.sleep(_LOOK_S)


def _is_over(provider: Provider, number: int) -> bool:
    try:
        return provider.find(number).state in store.OVER
    except NotThere:
        return True


def _answer_errors(app: FastAPI) -> None:
    """Every refusal is one line."""

    @app.exception_handler(UserError)
    def wrong(request: Request, error: UserError) -> JSONResponse:
        codes = {NotThere: 404, WrongState: 409}
        return _refusal(codes.get(type(error), 422), str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # The first of them; where it is, and what is wanted there.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _refusal(422, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        answer = _refusal(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


def _refusal(status: int, text: str) -> JSONResponse:
    line = " ".join(text.split()).encode(errors="replace").decode()
    return JSONResponse({"error": line[:1000]}, status)
