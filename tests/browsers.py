"""A client that talks to an ASGI application in this process: HTTP and websockets."""

import warnings

with warnings.catch_warnings():
    # It asks for a successor of httpx that nothing else here needs.
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")
    from fastapi.testclient import TestClient

__all__ = ["TestClient"]
