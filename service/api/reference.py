"""``/docs``: every route with its examples, shown by Swagger UI.

FastAPI's own page loads Swagger UI from another host; here the package ``fastapi-offline`` carries
its files, and the page may load nothing from elsewhere.
"""

import base64
import hashlib
import re

from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from service.api.routing import Routes
from service.problems import refused

router = Routes(include_in_schema=False)

FILES = ("swagger-ui-bundle.js", "swagger-ui.css")

# Found, not imported: its module would set up another application.
_files = StaticFiles(packages=[("fastapi_offline", "static")])


@router.get("/docs")
def show_reference(request: Request) -> Response:
    """The page.  Its addresses are relative, so it works below any path of a proxy."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"validatorUrl": None},  # the default asks another host
    )
    text = bytes(page.body).decode()
    headers = {
        "Content-Security-Policy": _policy(text),
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text, headers=headers)


@router.get("/docs/{name}")
async def send_file(request: Request, name: str) -> Response:
    """A file of Swagger UI."""
    if name not in FILES:
        raise refused(404, f"The page has no file {name!r}: it has {' and '.join(FILES)}.")
    response = await _files.get_response(name, request.scope)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _policy(page: str) -> str:
    """Only what comes from here, and the script that the page has in itself."""
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inline)
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
