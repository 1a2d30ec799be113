"""What holds for every answer of the console, whatever page it is: which hosts, which origins, which headers."""

import logging
import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# A name, an IPv4 address, or an IPv6 address in brackets, and perhaps a port: with a tunnel it is not ours.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/@\s]+))(?::[0-9]{1,5})?\Z")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers would then send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Wraps the whole application.

    A host that is not ours is refused: a page elsewhere could otherwise point its own name at this machine's loopback
    address (DNS rebinding) and read what we answer. A POST must come from one of our own pages.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        if not self._is_ours(headers.getlist("host")):
            log.warning("refused a request for host %.100r", headers.get("host", ""))
            refusal = PlainTextResponse("this console does not answer under that host name\n", 421)
            await refusal(scope, receive, with_headers)
        elif scope["method"] == "POST" and not _same_origin(scope, headers):
            log.warning("refused a form from another origin, %.100r", headers.get("origin", ""))
            refusal = PlainTextResponse("this form was not sent from a page of this console\n", 403)
            await refusal(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _is_ours(self, given: list[str]) -> bool:
        match = _HOST.match(given[0]) if len(given) == 1 else None
        return match is not None and (match[1] or match[2]).lower() in self._hosts


def _same_origin(scope: Scope, headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") == "same-origin"
    return origin.lower() == f"{scope['scheme']}://{headers['host']}".lower()
