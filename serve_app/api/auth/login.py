"""The login page, which opens a session for a key so that ComfyUI's page works unchanged; logging out.

The cookie contains the session, never the key. It is HttpOnly and SameSite, and Secure where the page came over TLS.
Sources: RFC 6265bis (cookies), CSP level 3.
"""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serve_app.api.auth.authentication import COOKIE, LOGIN, LOGOUT, Authenticator
from serve_app.api.auth.principal import principal_of
from serve_app.api.concurrency_limits import ConcurrencyLimits, set_body_timeout
from serve_app.api.request import Current, with_body_bound
from serve_app.api.routing import Routes
from serve_app.api.source import source
from serve_app.errors import UnauthenticatedError

router = Routes()

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Log in</title>
<style>body{{font:16px system-ui;background:#222;color:#ddd;display:grid;place-items:center;min-height:90vh}}
form{{display:grid;gap:.8em;width:22em}}input,button{{font:inherit;padding:.5em}}p{{color:#f99;margin:0}}</style>
<form method="post" action="{login}"><label for="key">Key or token</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
{said}<button>Log in</button></form></html>
"""


@router.on(LOGIN, ["GET"])
async def get_login() -> Response:
    """Return the login page."""
    return _page("")


@router.post(LOGIN)
async def post_login(request: Request, service: Current) -> Response:
    """Open a session for a valid key or token, and set it as the page's cookie."""
    authenticator: Authenticator = request.app.state.authenticator
    concurrency: ConcurrencyLimits = request.app.state.concurrency
    set_body_timeout(request, concurrency.login_s, "ingress.login_s", concurrency.logins)
    async with with_body_bound(request, service.limits.command).form(max_files=0, max_fields=3) as form:
        key = str(form.get("key", "")).strip()
    nobody, what, where = principal_of(request), f"POST {LOGIN}", source(request.scope, authenticator.proxies)
    try:
        principal, session, seconds = await authenticator.open_session(key)
    except UnauthenticatedError as error:
        authenticator.audit.note(nobody, what, where, 401, str(error))
        return _page(str(error), 401)
    authenticator.audit.note(principal, what, where, 303)
    answer = RedirectResponse("/", 303, {"Cache-Control": "no-store"})
    answer.set_cookie(
        COOKIE, session, max_age=int(seconds), path="/", secure=_is_secure(request), httponly=True, samesite="lax"
    )
    return answer


@router.post(LOGOUT)
async def post_logout(request: Request) -> Response:
    """End the session of the page's cookie, and delete the cookie."""
    if session := principal_of(request).session:
        authenticator: Authenticator = request.app.state.authenticator
        await authenticator.end_session(session)
    answer = RedirectResponse(LOGIN, 303, {"Cache-Control": "no-store"})
    answer.delete_cookie(COOKIE, path="/", secure=_is_secure(request), httponly=True, samesite="lax")
    return answer


def _page(said: str, status_code: int = 200) -> Response:
    shown = f'<p role="alert">{escape(said)}</p>' if said else ""
    return HTMLResponse(_PAGE.format(login=LOGIN, said=shown), status_code, HEADERS)


def _is_secure(request: Request) -> bool:
    """Whether the browser used TLS, which a proxy may have terminated."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")
