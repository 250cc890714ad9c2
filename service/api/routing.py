"""What all routes have in common: who asks is settled before anything of a request is looked at,
and HEAD is answered wherever GET is.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse

from service.auth import Requires


class GuardedRoute(APIRoute):
    """FastAPI reads the body before it asks any dependency, and tells strangers what is wrong with
    theirs; this asks ``requires(…)`` first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        asked = [one.call for one in self.dependant.dependencies]
        wanted = [call for call in asked if isinstance(call, Requires)]

        async def guarded(request: Request) -> Response:
            for requirement in wanted:
                await requirement(request)
            return await handle(request)

        return guarded


class Routes(APIRouter):
    """A router of guarded routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=GuardedRoute, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Of a GET, HEAD too: the server leaves the body out.  Not of a stream without an end."""
        super().add_api_route(path, endpoint, **options)
        endless = options.get("response_class") is EventSourceResponse
        if "GET" in (options.get("methods") or ()) and not endless:
            # A route of its own, which OpenAPI does not show: it would tell everything twice.
            described = {**options, "methods": ["HEAD"], "include_in_schema": False}
            super().add_api_route(path, endpoint, **described)
