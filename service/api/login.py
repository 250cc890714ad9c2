"""``/login`` and ``/logout``: a browser swaps a token, or a code it was given, for a cookie."""

import html
from urllib.parse import parse_qs

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service.api.routing import Routes
from service.auth import Gate, cookie_name, set_cookie
from service.problems import refused

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    # A stricter one would take the Origin off the form, and the guard would refuse it.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>Deconvoy</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 15vh auto; padding: 0 1rem;
  color-scheme: light dark }}
input, button {{ font: inherit; padding: .5rem; box-sizing: border-box; width: 100%;
  margin-top: .5rem }}
[role=alert] {{ border-left: 4px solid #b00; padding-left: .75rem }}
</style>
</head>
<body>
<h1>Deconvoy</h1>
{body}
</body>
</html>
"""
FORM = """{message}<form method="post" action="login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<input type="hidden" name="next" value="{to}">
<button>Log in</button>
</form>
<p><code>deconvoy token create</code> makes one; the link that <code>deconvoy up</code> prints
needs none.</p>"""
WELCOME = """<p>You are logged in: <a href="{to}">go on</a>.</p>"""
CODE_REFUSED = "This link was used already, or is too old: log in with a token, or get a new link."
TOKEN_REFUSED = "This token does not let you in: it is unknown, has expired, or was revoked."

FORM_SECONDS = 10
"""For the form to arrive; strangers send it."""

FIRST = "./"
"""The page to go on to, unless another was asked for."""

router = Routes(include_in_schema=False)


@router.get("/login")
def show_form(request: Request, code: str | None = None, next: str = FIRST) -> Response:
    """The form; with a code that is good, a session."""
    gate: Gate = request.app.state.gate
    to = _page(next)
    if not gate.settings.tokens:
        return RedirectResponse(to, 303)
    if code is None or request.method == "HEAD":  # which must use no code up
        return _form(to)
    session = gate.log_in_by_code(code)
    if session is None:
        return _form(to, CODE_REFUSED)
    # A page that goes on by itself, no redirect: where the link was clicked on another site, the
    # browser would not send a strict cookie along with the redirected request.
    head = f'<meta http-equiv="refresh" content="0; url={html.escape(to)}">\n'
    body = WELCOME.format(to=html.escape(to))
    response = HTMLResponse(PAGE.format(head=head, body=body), headers=HEADERS)
    set_cookie(response, request, session)
    return response


@router.post("/login")
async def log_in(request: Request) -> Response:
    """The form, sent back."""
    gate: Gate = request.app.state.gate
    with anyio.move_on_after(FORM_SECONDS) as sending:
        body = await request.body()
    if sending.cancelled_caught:
        raise refused(408, f"The form did not arrive within {FORM_SECONDS} s: send it again.")
    fields = parse_qs(body.decode("utf-8", "replace"))
    secret = fields.get("token", [""])[0].strip()
    to = _page(fields.get("next", [FIRST])[0])
    session = await run_in_threadpool(gate.log_in, secret)
    if session is None:
        return _form(to, TOKEN_REFUSED)
    response = RedirectResponse(to, 303, HEADERS)
    set_cookie(response, request, session)
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session of this browser."""
    gate: Gate = request.app.state.gate
    name = cookie_name(request)
    if session := request.cookies.get(name):
        gate.sessions.end(session)
    response = RedirectResponse("./login", 303, HEADERS)
    response.delete_cookie(name, httponly=True, samesite="strict")
    return response


def _page(address: str) -> str:
    """Where to go on: that page of this service; the first, where it is none of this service."""
    # Browsers take two slashes, of either kind, for the beginning of a host.
    inside = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if inside and "\\" not in address and address.isprintable() else FIRST


def _form(to: str, refusal: str | None = None) -> Response:
    message = f'<p role="alert">{html.escape(refusal)}</p>\n' if refusal else ""
    page = PAGE.format(head="", body=FORM.format(message=message, to=html.escape(to)))
    if refusal is None:
        return HTMLResponse(page, headers=HEADERS)
    return HTMLResponse(page, 401, {**HEADERS, "WWW-Authenticate": 'Bearer realm="deconvoy"'})
