"""The HTTP routes: what the page polls and requests, and the API that other programs control a training with.

    GET  /lora-train/v1/status     the run in numbers, its events and curves
    GET  /lora-train/v1/images     a page of the scanned dataset
    GET  /lora-train/v1/results    all runs with their files, newest first
    POST /lora-train/v1/plan       settings → the plan; nothing starts
    POST /lora-train/v1/start      settings → the id of the run that starts
    POST /lora-train/v1/pause · resume · stop · drop · save · sample
    POST /lora-train/v1/page/…     actions of the page; they require the key in the page
    POST /lora-train/v1/resume-run {"run": id, "more_epochs": 0}: resume an interrupted run, or extend a finished one
    GET  /lora-train/v1/queue      the queued runs, next one first
    POST /lora-train/v1/queue/add  settings, or the body of resume-run → the id of the queue entry
    POST /lora-train/v1/queue/move · remove · start    {"id": entry, "place": 0} · {"id": entry} · {}
    POST /lora-train/v1/sweep      {"vary": {"rank": [8, 16]}, "settings": …} or {…, "run": id} → the id of the sweep
    POST /lora-train/v1/sweep/continue    {"sweep": id}: queue what is missing of it
    GET  /lora-train/v1/comparison ?sweep=id or ?runs=id,id: runs side by side, the first as the reference
    POST /lora-train/v1/grid       {"run": id, "sampler": "Euler", "prompts": "samples" or "triggers", "strengths":
                                   "0.6, 1"}, all optional → the id of the run whose epochs are drawn
    POST /lora-train/v1/grid/cancel    stop that after the current sampling step; `grid` continues it
    GET  /lora-train/v1/image-losses   ?run=id: the training images of a run, those whose loss stands out most first
    GET  /lora-train/v1/tags       ?run=id: the tags of a run and what they became, those that stand out first
    POST /lora-train/v1/image-losses/measure · tags/measure    {"run": id}: measure every image or tag of a past run
    POST /lora-train/v1/image-losses/status · cancel, tags/status · cancel    {}
    POST /lora-train/v1/check      {"file": path} → what a LoRA file contains
    POST /lora-train/v1/convert    {"file": path, "to": "lora", "rank": 16, "name": name} → the new file
    POST /lora-train/v1/resize     {"file": path, "rank": 8, "rule": "sv_fro", "threshold": 0.9} → the new file
    POST /lora-train/v1/merge      {"files": "path: weight", one per line, "to": "lora", "name": name} → the new file
    POST /lora-train/v1/heatmap    {"path": image, "text": caption, "file": LoRA, "strength": 1, "as_it_is": false}, all
                                   but the path optional: make the heat maps of an image
    POST /lora-train/v1/export     {"file": path.json or path.toml, "settings": …} → files for kohya_ss or sd-scripts
    POST /lora-train/v1/extract    {"checkpoint": path, "tuned": path, "rank": 16} → a LoRA from two checkpoints
    POST /lora-train/v1/convert-checkpoint    {"file": path, "precision": "fp16", "vae": path} → a new checkpoint
    POST /lora-train/v1/extract/status · cancel, convert-checkpoint/status · cancel    {}
    POST /lora-train/v1/heatmap/status · cancel    {}
    POST /lora-train/v1/heatmap/maps   the same and {"texts": words, "layers": "objects" or "all", "joined": false} →
                                   PNGs to lay over it

Settings are JSON with the names in `docs/parameters.md`, as in a config file. `ApiAccess` decides who may call what.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from lib_lora_train.core.errors import ConfigError, DataError, HostError, LoraTrainError, SessionUnavailableError
from lib_lora_train.hosts.access import ApiAccess
from lib_lora_train.web.guard import DoorRules, Receive, RequestGuard, Scope, Send
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.request_values import read_values
from lib_lora_train.web.route_access import require_api_login, require_json, require_page_key, require_page_login
from lib_lora_train.web.uploads import large_bodies

PREFIX = "/lora-train/v1"
COMMANDS = ("pause", "resume", "stop", "drop", "save", "sample")
_TASKS = {
    **{name: name for name in ("advice", "convert-checkpoint", "extract", "heatmap")},
    "image-losses": "image-losses/measure",
    "tags": "tags/measure",
}
_ACTIONS = {
    **{name: f"tools-{name}" for name in ("check", "convert", "metadata", "resize", "merge")},
    "metadata/write": "tools-metadata-write",
    **{route: f"{task}-start" for task, route in _TASKS.items()},
    **{f"{task}/status": f"{task}-status" for task in _TASKS},
    **{f"{task}/cancel": f"{task}-stop" for task in _TASKS},
    "heatmap/maps": "heatmap-show",
    "export": "form-export",
    "sweep": "sweep-request",
    "sweep/continue": "sweep-continue",
}
"""Actions of the page that other programs may request too, by route."""
_CACHED = {"Cache-Control": "private, max-age=3600"}
_GONE = "This image is no longer available. Scan the dataset again, or reload the page."


class PageBackend(Protocol):
    """What the routes need of a session."""

    image_tokens: ImageTokens
    page_key: str
    """Part of the page, so only those who may open it know it."""

    def run_action(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The result of an action of the page; KeyError for an unknown name, LoraTrainError if it fails."""

    def status(self, since: int, after: int) -> dict[str, Any]:
        """The run in numbers, its events from number `since`, its curves after step `after`."""

    def images(self, page: int) -> dict[str, Any]:
        """One page of the scanned dataset."""

    def results(self) -> list[dict[str, Any]]:
        """All runs, newest first."""

    def plan_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plan of a run with these settings; LoraTrainError if they are unusable."""

    def start_values(self, values: Mapping[str, Any]) -> str:
        """Start a run with these settings and return its id; LoraTrainError if that is impossible."""

    def resume_run(self, run: str, more_epochs: int) -> str:
        """Resume or extend a run and return its id; LoraTrainError if that is impossible."""

    def queued_runs(self) -> list[dict[str, Any]]:
        """The queued runs, next one first."""

    def enqueue_values(self, values: Mapping[str, Any]) -> str:
        """Queue a run with these settings and return the id of the entry; LoraTrainError if that is impossible."""

    def enqueue_resume(self, run: str, more_epochs: int) -> str:
        """Queue a run to resume or extend it, and return the id of the entry; LoraTrainError if that is impossible."""

    def move_queued(self, entry: str, place: int) -> None:
        """Move a queued run to position `place`, from 0; HostError if it is no longer queued."""

    def remove_queued(self, entry: str) -> None:
        """Remove a run from the queue; HostError if it is no longer queued."""

    def start_queue(self) -> str:
        """Start the first queued run and return its id; HostError if the queue is empty."""

    def draw_grid(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start drawing the grid of a run and return the run's id; HostError if impossible."""

    def cancel_grid(self) -> None:
        """Stop the epoch grid after the current sampling step."""

    def command(self, name: str) -> None:
        """Carry out one of `COMMANDS`; HostError when no run is active."""


def make_api() -> FastAPI:
    """An empty application, for use without a webui."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def install_routes(app: FastAPI, source: PageBackend, access: ApiAccess | None = None) -> None:
    """Add the routes to the application of the webui. They run in FastAPI's threads, not in its event loop."""
    access = access or ApiAccess()
    may_read = Depends(require_page_login(app, access) if access.has_page else require_api_login(access))
    router = APIRouter(prefix=PREFIX, route_class=_guarded_route(access), default_response_class=EveryNameResponse)
    _install_read_routes(router, source, [may_read])
    if access.has_page:
        _install_page_route(
            router, source, [may_read, Depends(require_page_key(lambda: source.page_key)), Depends(require_json)]
        )
    if access.allows_control:
        _install_control_routes(router, source, [Depends(require_api_login(access)), Depends(require_json)])
    app.include_router(router)


def _guarded_route(access: ApiAccess) -> type[APIRoute]:
    """A kind of route that refuses other sites and large bodies, before FastAPI reads the body."""
    rules = DoorRules(
        origins=access.allowed_origins,
        origin_pattern=access.allowed_origin_pattern,
        large_bodies=large_bodies(PREFIX),
    )

    class GuardedRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await RequestGuard(super().handle, rules)(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def answer_or_explain(request: Request) -> Response:
                try:
                    return await answer(request)
                except HostError as error:  # a SessionUnavailableError, or one of a route that only reads
                    raise HTTPException(503, {"message": str(error), "problems": []}) from None
                except RequestValidationError as error:
                    raise HTTPException(422, {"message": _explain(error), "problems": []}) from None

            return answer_or_explain

    return GuardedRoute


def _explain(error: RequestValidationError) -> str:
    """What is wrong with a request, without repeating its values: JSON cannot hold all of them."""
    places = (" ".join(map(str, one["loc"])) + f": {one['msg']}" for one in error.errors())
    return f"The request cannot be used: {'; '.join(places)}."


def _install_read_routes(app: APIRouter, source: PageBackend, guards: list[Any]) -> None:
    def status(since: int = 0, after: int = 0) -> dict[str, Any]:
        return source.status(since, after)

    def images(page: int = 0) -> dict[str, Any]:
        return source.images(page)

    def results() -> list[dict[str, Any]]:
        return source.results()

    def queue() -> list[dict[str, Any]]:
        return source.queued_runs()

    def comparison(sweep: str = "", runs: str = "") -> dict[str, Any]:
        asked = {"sweep": sweep, "runs": [run for run in runs.split(",") if run]}
        return _http_errors(lambda: source.run_action("compare", asked))

    def image_losses(run: str = "") -> dict[str, Any]:
        return _http_errors(lambda: source.run_action("image-losses-list", {"run": run}))

    def tags(run: str = "") -> dict[str, Any]:
        return _http_errors(lambda: source.run_action("tags-list", {"run": run}))

    def thumbnail(token: str) -> Response:
        try:
            return Response(source.image_tokens.load_thumbnail(token), media_type="image/jpeg", headers=_CACHED)
        except (KeyError, OSError, DataError):
            raise HTTPException(404, _GONE) from None

    def image(token: str) -> Response:
        try:
            content, media_type = source.image_tokens.load_image(token)
        except (KeyError, OSError, DataError):
            raise HTTPException(404, _GONE) from None
        return Response(content, media_type=media_type, headers=_CACHED)

    routes: dict[str, Callable[..., Any]] = {
        "status": status,
        "images": images,
        "results": results,
        "queue": queue,
        "comparison": comparison,
        "image-losses": image_losses,
        "tags": tags,
        "thumbnail/{token}": thumbnail,
        "image/{token}": image,
    }
    for path, answer in routes.items():
        app.add_api_route(f"/{path}", answer, methods=["GET"], response_model=None, dependencies=guards)


def _install_page_route(app: APIRouter, source: PageBackend, guards: list[Any]) -> None:
    """The actions of the page, which do not depend on the API of the webui being enabled."""

    def page(name: str, values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        try:
            return _http_errors(lambda: source.run_action(name, values))
        except KeyError:
            raise HTTPException(404, {"message": "This page is out of date. Reload it."}) from None

    app.add_api_route("/page/{name}", page, methods=["POST"], response_model=None, dependencies=guards)


def _install_control_routes(app: APIRouter, source: PageBackend, guards: list[Any]) -> None:
    def plan(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _http_errors(lambda: source.plan_values(values))

    def start(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _http_errors(lambda: {"run": source.start_values(values)})

    def grid(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _http_errors(lambda: source.draw_grid(read_values(values)))

    def cancel_grid() -> dict[str, Any]:
        return _run_command(source.cancel_grid)

    def command(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: _run_command(lambda: source.command(name))

    routes = {
        "plan": plan,
        "start": start,
        "grid": grid,
        "grid/cancel": cancel_grid,
        **{name: command(name) for name in COMMANDS},
        **_queue_routes(source),
        **{name: _tool_route(source, action) for name, action in _ACTIONS.items()},
    }
    for path, answer in routes.items():
        app.add_api_route(f"/{path}", answer, methods=["POST"], response_model=None, dependencies=guards)


def _queue_routes(source: PageBackend) -> dict[str, Callable[..., Any]]:
    """Resuming runs, and the queue."""

    def resume_run(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _http_errors(lambda: {"run": source.resume_run(*_run_to_resume(values))})

    def add(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        if "run" in values:
            return _http_errors(lambda: {"id": source.enqueue_resume(*_run_to_resume(values))})
        return _http_errors(lambda: {"id": source.enqueue_values(values)})

    def move(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        def work() -> None:
            known = read_values(values)
            source.move_queued(known["id"], known["place"])

        return _run_command(work)

    def remove(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _run_command(lambda: source.remove_queued(read_values(values)["id"]))

    def start() -> dict[str, Any]:
        return _http_errors(lambda: {"run": source.start_queue()})

    return {
        "resume-run": resume_run,
        "go-on": resume_run,  # its name up to 0.1.0
        "queue/add": add,
        "queue/move": move,
        "queue/remove": remove,
        "queue/start": start,
    }


def _tool_route(source: PageBackend, action: str) -> Callable[..., Any]:
    """An action of the page as a route."""

    def tool(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _http_errors(lambda: source.run_action(action, values))

    return tool


def _run_to_resume(values: Mapping[str, Any]) -> tuple[str, int]:
    """The id of the run in a request, and the epochs to extend it by."""
    known = read_values(values)
    return known["run"], known.get("more_epochs", 0)


def _run_command(work: Callable[[], None]) -> dict[str, Any]:
    """`{}` after `work`, with its errors as HTTP errors."""

    def run() -> dict[str, Any]:
        work()
        return {}

    return _http_errors(run)


def _http_errors(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`; errors that a user can fix become 409 (wrong moment) or 422 (wrong settings).

    A SessionUnavailableError stays one, for the 503 of every route.
    """
    try:
        return work()
    except SessionUnavailableError:
        raise
    except ConfigError as error:
        problems = [
            {"level": p.level, "where": _printable(p.where), "message": _printable(p.message)} for p in error.problems
        ]
        raise HTTPException(422, {"message": _printable(str(error)), "problems": problems}) from error
    except HostError as error:
        raise HTTPException(409, {"message": _printable(str(error)), "problems": []}) from error
    except LoraTrainError as error:
        raise HTTPException(422, {"message": _printable(str(error)), "problems": []}) from error


def _printable(text: str) -> str:
    """`text` with the bytes of names that are not UTF-8 written out, as JSON cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class EveryNameResponse(JSONResponse):
    """JSON in ASCII: names that are not UTF-8 arrive in the page as they are here, and come back so."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
