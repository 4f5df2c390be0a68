"""/volumes: none yet; the list is empty and says so."""

from __future__ import annotations

from tare.errors import NotFound
from tare.http.message import Request, Response, json_response

from . import filters

__all__ = ["inspect", "listing"]


async def listing(request: Request) -> Response:
    filters.parse(request.query.get("filters"), ("dangling", "driver", "label", "name"))
    return json_response({"Volumes": [], "Warnings": None})


async def inspect(request: Request) -> Response:
    raise NotFound(f"get {request.params['name']}: no such volume")
