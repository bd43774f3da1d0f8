"""The routes: what the page's own JavaScript reads, and what programs may steer a training with.

    GET  /lora-train/v1/status     the run in numbers, its events and curves
    GET  /lora-train/v1/images   a page of the dataset that was looked at
    GET  /lora-train/v1/results    the runs so far, with their files
    POST /lora-train/v1/plan       settings → what would be trained; nothing starts
    POST /lora-train/v1/start      settings → the id of the run that begins
    POST /lora-train/v1/pause · resume · stop · save · sample
    POST /lora-train/v1/page/…     what the page's own buttons ask; only with the key that the page was given
    POST /lora-train/v1/go-on      {"run": id, "more_epochs": 0}: resume an interrupted run, or extend a finished one
    GET  /lora-train/v1/queue      the runs that wait, the next one first
    POST /lora-train/v1/queue/add  settings, or what go-on takes → the entry's id
    POST /lora-train/v1/queue/move · remove · start    {"id": entry, "place": 0} · {"id": entry} · {}
    POST /lora-train/v1/grid       {"sampler": "Euler"} → the id of the run whose epochs the webui draws

Settings are JSON with the names of `docs/parameters.md`, as in a config file. Who may call what follows the webui:
see `Access`. FastAPI is imported nowhere else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from lib_lora_train.core.errors import ConfigError, HostError, LoraTrainError
from lib_lora_train.hosts.access import Access
from lib_lora_train.web.image_tokens import ImageTokens

PREFIX = "/lora-train/v1"
COMMANDS = ("pause", "resume", "stop", "save", "sample")
_KEPT = {"Cache-Control": "private, max-age=3600"}
_GONE = "This image is not shown any more. Look at the dataset again, or reload the page."
_ASK = {"WWW-Authenticate": "Basic"}
PAGE_HEADER = "X-LoRA-Train-Page"


class PageSource(Protocol):
    """What the routes ask; the page's session is one."""

    shelf: ImageTokens
    page_key: str
    """Known to those only who may see the page: it stands in it."""

    def ask(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a button of the page asks for; KeyError for an unknown name, LoraTrainError when it cannot be."""

    def status(self, since: int, after: int) -> dict[str, Any]:
        """The run in numbers, its events from number `since` on, its curves after step `after`."""

    def images(self, page: int) -> dict[str, Any]:
        """One page of the dataset that was looked at."""

    def results(self) -> list[dict[str, Any]]:
        """The runs so far, the newest first."""

    def plan_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What these settings would train; LoraTrainError when they cannot."""

    def start_values(self, values: Mapping[str, Any]) -> str:
        """Begin a run with these settings and return its id; LoraTrainError when it cannot."""

    def go_on(self, run: str, more_epochs: int) -> str:
        """Resume or extend a run and return its id; LoraTrainError when it cannot."""

    def waiting(self) -> list[dict[str, Any]]:
        """The runs that wait, the next one first."""

    def enqueue_values(self, values: Mapping[str, Any]) -> str:
        """Let a run with these settings wait and return the entry's id; LoraTrainError when it cannot."""

    def enqueue_going_on(self, run: str, more_epochs: int) -> str:
        """Let a run wait for its turn to go on and return the entry's id; LoraTrainError when it cannot."""

    def move_waiting(self, entry: str, place: int) -> None:
        """Put a waiting run at a place, from 0; HostError if it does not wait."""

    def remove_waiting(self, entry: str) -> None:
        """Let a run not wait any more; HostError if it does not wait."""

    def start_queue(self) -> str:
        """Begin the first waiting run and return its id; HostError if none waits."""

    def draw_grid(self, sampler: str) -> str:
        """Let the webui draw the newest run's epochs, and return its id; HostError when it cannot."""

    def command(self, name: str) -> None:
        """Do one of `COMMANDS`; HostError when no run is there to obey."""


def make_api() -> FastAPI:
    """An empty application for where no webui brings its own."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def install_routes(app: FastAPI, source: PageSource, access: Access | None = None) -> None:
    """Add the routes to the webui's application; they run in FastAPI's threads, not in its event loop."""
    access = access or Access()
    reader = Depends(_reader(app, access) if access.has_page else _steersman(access))
    _install_reading(app, source, [reader])
    if access.has_page:
        _install_page(app, source, [reader, Depends(_page_only(source)), Depends(_require_json)])
    if access.may_steer:
        _install_steering(app, source, [Depends(_steersman(access)), Depends(_require_json)])


def _install_reading(app: FastAPI, source: PageSource, guards: list[Any]) -> None:
    def status(since: int = 0, after: int = 0) -> dict[str, Any]:
        return source.status(since, after)

    def images(page: int = 0) -> dict[str, Any]:
        return source.images(page)

    def results() -> list[dict[str, Any]]:
        return source.results()

    def queue() -> list[dict[str, Any]]:
        return source.waiting()

    def thumbnail(token: str) -> Response:
        try:
            return Response(source.shelf.load_thumbnail(token), media_type="image/jpeg", headers=_KEPT)
        except (KeyError, OSError):
            raise HTTPException(404, _GONE) from None

    def image(token: str) -> Response:
        try:
            content, media_type = source.shelf.load_image(token)
        except (KeyError, OSError):
            raise HTTPException(404, _GONE) from None
        return Response(content, media_type=media_type, headers=_KEPT)

    routes: dict[str, Callable[..., Any]] = {
        "status": status,
        "images": images,
        "results": results,
        "queue": queue,
        "thumbnail/{token}": thumbnail,
        "image/{token}": image,
    }
    for path, answer in routes.items():
        app.add_api_route(f"{PREFIX}/{path}", answer, methods=["GET"], response_model=None, dependencies=guards)


def _install_page(app: FastAPI, source: PageSource, guards: list[Any]) -> None:
    """What the page's own buttons do: open to whoever can press them, with or without the webui's API."""

    def page(name: str, values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        try:
            return _answered(lambda: source.ask(name, values))
        except KeyError:
            raise HTTPException(404, {"message": "Reload the page: it is older than the server."}) from None

    app.add_api_route(f"{PREFIX}/page/{{name}}", page, methods=["POST"], response_model=None, dependencies=guards)


def _install_steering(app: FastAPI, source: PageSource, guards: list[Any]) -> None:
    def plan(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _answered(lambda: source.plan_values(values))

    def start(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _answered(lambda: {"run": source.start_values(values)})

    def grid(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        return _answered(lambda: {"run": source.draw_grid(str(values.get("sampler", "")))})

    def obey(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: _obeyed(lambda: source.command(name))

    routes = {
        "plan": plan,
        "start": start,
        "grid": grid,
        **{name: obey(name) for name in COMMANDS},
        **_queue_routes(source),
    }
    for path, answer in routes.items():
        app.add_api_route(f"{PREFIX}/{path}", answer, methods=["POST"], response_model=None, dependencies=guards)


def _queue_routes(source: PageSource) -> dict[str, Callable[..., Any]]:
    """Going on with a run, and the order of those that wait."""

    def go_on(run: str = Body(...), more_epochs: int = Body(0)) -> dict[str, Any]:
        return _answered(lambda: {"run": source.go_on(run, more_epochs)})

    def add(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        if "run" in values:
            run, more = str(values["run"]), values.get("more_epochs", 0)
            return _answered(lambda: {"id": source.enqueue_going_on(run, more if isinstance(more, int) else 0)})
        return _answered(lambda: {"id": source.enqueue_values(values)})

    def move(id: str = Body(...), place: int = Body(...)) -> dict[str, Any]:
        return _obeyed(lambda: source.move_waiting(id, place))

    def remove(id: str = Body(..., embed=True)) -> dict[str, Any]:
        return _obeyed(lambda: source.remove_waiting(id))

    def start() -> dict[str, Any]:
        return _answered(lambda: {"run": source.start_queue()})

    return {"go-on": go_on, "queue/add": add, "queue/move": move, "queue/remove": remove, "queue/start": start}


def _obeyed(work: Callable[[], None]) -> dict[str, Any]:
    """As `_answered`, where there is nothing to tell."""

    def obey() -> dict[str, Any]:
        work()
        return {}

    return _answered(obey)


def _answered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The work's answer; what a user can mend becomes 409 (the wrong moment) or 422 (the wrong settings)."""
    try:
        return work()
    except ConfigError as error:
        problems = [{"level": p.level, "where": p.where, "message": p.message} for p in error.problems]
        raise HTTPException(422, {"message": str(error), "problems": problems}) from error
    except HostError as error:
        raise HTTPException(409, {"message": str(error), "problems": []}) from error
    except LoraTrainError as error:
        raise HTTPException(422, {"message": str(error), "problems": []}) from error


# --- who may ------------------------------------------------------------------------------------

_basic = HTTPBasic(auto_error=False)


def _reader(app: FastAPI, access: Access) -> Callable[..., None]:
    """Lets those in who may see the page: gradio keeps whom it let in as `tokens`, by cookie."""

    def check(request: Request, given: HTTPBasicCredentials | None = Depends(_basic)) -> None:  # noqa: B008
        if getattr(app, "auth", None) is None or _is_known(given, access):
            return
        tokens = getattr(app, "tokens", {})
        cookies = (value for name, value in request.cookies.items() if name.startswith("access-token"))
        if not any(value in tokens for value in cookies):
            raise HTTPException(401, "Log in on the webui's page first.", _ASK)

    return check


def _steersman(access: Access) -> Callable[..., None]:
    """Lets everybody in where the webui's API does, else those with its user name and password."""

    def check(given: HTTPBasicCredentials | None = Depends(_basic)) -> None:  # noqa: B008
        if access.credentials and not _is_known(given, access):
            raise HTTPException(401, "Incorrect username or password", _ASK)

    return check


def _page_only(source: PageSource) -> Callable[..., None]:
    """Lets in who knows the page's key; other sites' pages cannot read it."""

    def check(request: Request) -> None:
        given = request.headers.get(PAGE_HEADER, "")
        if not secrets.compare_digest(given.encode(), source.page_key.encode()):
            raise HTTPException(403, {"message": "The server was restarted. Reload the page."})

    return check


def _is_known(given: HTTPBasicCredentials | None, access: Access) -> bool:
    if given is None or given.username not in access.credentials:
        return False
    return secrets.compare_digest(given.password.encode(), access.credentials[given.username].encode())


def _require_json(request: Request) -> None:
    """A page of another site can make a browser send forms here, but not JSON."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise HTTPException(415, "Send JSON: Content-Type: application/json, with {} where there is nothing to say.")
