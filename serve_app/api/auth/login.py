"""The page that asks for a key and opens a session, so that ComfyUI's page works as it is; logging out again.

The cookie has the session, never the key. It is out of scripts' reach, is not sent along from other sites, and goes
over TLS alone where the page came so.
Sources: RFC 6265bis (cookies), CSP level 3.
"""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serve_app.api.auth.identity import COOKIE, LOGIN, LOGOUT, Identity
from serve_app.api.auth.principal import principal_of
from serve_app.api.concurrency_limits import Crowd, allow
from serve_app.api.request import Current, bounded
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
    """Ask for a key."""
    return _page("")


@router.post(LOGIN)
async def post_login(request: Request, service: Current) -> Response:
    """Open a session for a key or token that holds, and keep that in the page's cookie."""
    identity: Identity = request.app.state.identity
    crowd: Crowd = request.app.state.crowd
    allow(request, crowd.login_s, "ingress.login_s", crowd.logins)
    async with bounded(request, service.limits.command).form(max_files=0, max_fields=3) as form:
        key = str(form.get("key", "")).strip()
    nobody, what, where = principal_of(request), f"POST {LOGIN}", source(request.scope, identity.proxies)
    try:
        principal, session, seconds = await identity.open_session(key)
    except UnauthenticatedError as error:
        identity.audit.note(nobody, what, where, 401, str(error))
        return _page(str(error), 401)
    identity.audit.note(principal, what, where, 303)
    answer = RedirectResponse("/", 303, {"Cache-Control": "no-store"})
    answer.set_cookie(
        COOKIE, session, max_age=int(seconds), path="/", secure=_is_secure(request), httponly=True, samesite="lax"
    )
    return answer


@router.post(LOGOUT)
async def post_logout(request: Request) -> Response:
    """End the session in the page's cookie, and forget it."""
    if session := principal_of(request).session:
        identity: Identity = request.app.state.identity
        await identity.end_session(session)
    answer = RedirectResponse(LOGIN, 303, {"Cache-Control": "no-store"})
    answer.delete_cookie(COOKIE, path="/", secure=_is_secure(request), httponly=True, samesite="lax")
    return answer


def _page(said: str, status_code: int = 200) -> Response:
    shown = f'<p role="alert">{escape(said)}</p>' if said else ""
    return HTMLResponse(_PAGE.format(login=LOGIN, said=shown), status_code, HEADERS)


def _is_secure(request: Request) -> bool:
    """Whether the browser came by TLS, which may end before here."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")
