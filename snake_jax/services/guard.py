"""Before any request is looked at: its token, its size; and headers that every answer has."""

import hmac
import json
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 256 * 1024
_SCHEME = "bearer"
# A page that holds a token runs its own scripts alone and speaks with its own server alone.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Around an application: lets requests with the token through."""

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str]) -> None:
        """Nothing but the open paths, which are files of the page, is given without the token."""
        self._app, self._token, self._open = app, token.encode(), frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 and 413 itself."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        if scope["path"] not in self._open and not self._has_token(headers):
            needed = "a bearer token is needed: Authorization: Bearer TOKEN"
            await _refuse(answered, 401, needed, {"WWW-Authenticate": "Bearer"})
        elif not _is_small(headers):
            await _refuse(answered, 413, f"a body of at most {MOST_BODY_BYTES} bytes is wanted", {})
        else:
            await self._app(scope, receive, answered)

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        # In a time that says nothing of where the first wrong character is.
        same = hmac.compare_digest(token.strip().encode(), self._token)
        return same and scheme.lower() == _SCHEME


def _is_small(headers: Headers) -> bool:
    """Whether the body is said to be small: one of unknown length is not."""
    length = headers.get("Content-Length", "0")
    if "Transfer-Encoding" in headers or not length.isdecimal():
        return False
    return int(length) <= MOST_BODY_BYTES


async def _refuse(send: Send, status: int, error: str, headers: dict[str, str]) -> None:
    start: Message = {"type": "http.response.start", "status": status, "headers": []}
    fields = MutableHeaders(scope=start)
    fields["Content-Type"] = "application/json"
    for name, value in headers.items():
        fields[name] = value
    await send(start)
    body = json.dumps({"error": error}).encode()
    await send({"type": "http.response.body", "body": body})
