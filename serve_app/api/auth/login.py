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
from serve_app.config.ingress import LOOPBACK
from serve_app.errors import UnauthenticatedError

router = Routes()

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in to {host}</title>
<style>
:root{{color-scheme:light dark;--page:#f3f4f6;--card:#fff;--text:#1c2430;--dim:#5b6675;--line:#c3cad4;--act:#2458b8;
--bad:#a4262c}}
@media(prefers-color-scheme:dark){{:root{{--page:#16191f;--card:#20252e;--text:#e6e9ee;--dim:#9aa4b2;--line:#414a58;
--act:#4f83e3;--bad:#ff9b94}}}}
*{{box-sizing:border-box}}
body{{background:var(--page);color:var(--text);display:grid;font:16px/1.5 system-ui,sans-serif;margin:0;
min-height:100vh;padding:1rem;place-items:center}}
main{{background:var(--card);border:1px solid var(--line);border-radius:12px;max-width:26rem;padding:2rem;width:100%}}
h1{{font-size:1.25rem;margin:0}}
p{{color:var(--dim);font-size:.875rem;margin:.5rem 0 0}}
form{{display:grid;gap:.6rem;margin:1.5rem 0 1rem}}
label{{font-weight:600}}
input,button{{border:1px solid var(--line);border-radius:8px;font:inherit;padding:.6rem .75rem;width:100%}}
input{{background:var(--page);color:var(--text)}}
button{{background:var(--act);border-color:var(--act);color:#fff;cursor:pointer;font-weight:600;margin-top:.4rem}}
input:focus-visible,button:focus-visible{{outline:3px solid var(--act);outline-offset:2px}}
.refusal{{border-left:3px solid var(--bad);color:var(--bad);margin:0;padding-left:.6rem}}
</style></head>
<body><main>
<h1>Log in to {host}</h1>
<p>serve-app: ComfyUI workflows on a shared server. Your operator gives you a key.</p>
<form method="post" action="{login}"><label for="key">Key or token</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false">
{refusal}<button>Log in</button></form>
<p>The key is sent to this server alone and not kept in the browser, which gets a session that ends with the key or when
you log out.</p>
{warning}</main></body></html>
"""
_PLAIN = (
    '<p class="refusal">This connection is not encrypted: whoever carries it can read the key. '
    "Use the https:// address if there is one.</p>"
)


@router.on(LOGIN, ["GET"])
async def get_login(request: Request) -> Response:
    """Return the login page."""
    return _page(request, "")


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
        return _page(request, str(error), 401)
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


def _page(request: Request, refusal: str, status_code: int = 200) -> Response:
    host = request.url.hostname or ""
    filled = {
        "host": escape(request.url.netloc),
        "refusal": f'<p class="refusal" role="alert">{escape(refusal)}</p>' if refusal else "",
        "warning": "" if _is_secure(request) or host in LOOPBACK else _PLAIN,
    }
    return HTMLResponse(_PAGE.format(login=LOGIN, **filled), status_code, HEADERS)


def _is_secure(request: Request) -> bool:
    """Whether the browser used TLS, which a proxy may have terminated."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")
