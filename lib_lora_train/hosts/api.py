"""The routes behind the page's own JavaScript: one small JSON a second, and pictures.

All of them only read. What changes anything goes through the page's form, under the protection
that the webui gives to it. FastAPI is imported nowhere else.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Response

from lib_lora_train.hosts.pictures import PictureShelf

PREFIX = "/lora-train/v1"
_KEPT = {"Cache-Control": "private, max-age=3600"}
_GONE = "This picture is not shown any more. Look at the data set again, or reload the page."


class PageSource(Protocol):
    """What the routes ask; the page's desk is one."""

    shelf: PictureShelf

    def status(self, since: int, after: int) -> dict[str, Any]:
        """The run in numbers, its events from number `since` on, its curves after step `after`."""

    def pictures(self, page: int) -> dict[str, Any]:
        """One page of the data set that was looked at."""


def make_api() -> FastAPI:
    """An empty application for where no webui brings its own."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def install_routes(app: FastAPI, source: PageSource) -> None:
    """Add the routes to the webui's application; they run in FastAPI's threads, not in its event loop."""

    def status(since: int = 0, after: int = 0) -> dict[str, Any]:
        return source.status(since, after)

    def pictures(page: int = 0) -> dict[str, Any]:
        return source.pictures(page)

    def thumbnail(token: str) -> Response:
        try:
            return Response(source.shelf.load_thumbnail(token), media_type="image/jpeg", headers=_KEPT)
        except (KeyError, OSError):
            raise HTTPException(404, _GONE) from None

    def picture(token: str) -> Response:
        try:
            content, media_type = source.shelf.load_picture(token)
        except (KeyError, OSError):
            raise HTTPException(404, _GONE) from None
        return Response(content, media_type=media_type, headers=_KEPT)

    app.add_api_route(f"{PREFIX}/status", status, methods=["GET"], response_model=None)
    app.add_api_route(f"{PREFIX}/pictures", pictures, methods=["GET"], response_model=None)
    app.add_api_route(f"{PREFIX}/thumbnail/{{token}}", thumbnail, methods=["GET"], response_model=None)
    app.add_api_route(f"{PREFIX}/picture/{{token}}", picture, methods=["GET"], response_model=None)
