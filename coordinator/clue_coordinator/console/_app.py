"""The console's application: who may look, and which address shows what."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clue_coordinator.access import Access, Caller, Refused
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.console import _views as views
from clue_coordinator.console._certificate import FORMS, certificate
from clue_coordinator.console._guard import Guard
from clue_coordinator.console._live import Live
from clue_coordinator.console._sessions import SESSION_SECONDS, Session, Sessions
from clue_coordinator.console._words import templates
from clue_coordinator.console.codes import Codes
from clue_coordinator.errors import ConflictError, CoordinatorError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.roles import SERVICE
from clue_protocol.errors import ProtocolError

log = logging.getLogger(__name__)

_LARGEST_FORM = 4096
# What looking needs: the role that this method needs.
_LOOKING = f"/{SERVICE}/ListFleets"
_BAD_CODE = "this link was used already, or is too old: 'clue-coordinator console' prints a new one"


@dataclass(frozen=True)
class Health:
    """Whether devices can be reached."""

    superlink_running: bool
    dispatcher_running: bool


class Console:
    """``app`` is the ASGI application; call :meth:`stop` before its server stops."""

    def __init__(self, config: CoordinatorConfig, ledger: Ledger, health: Callable[[], Health]) -> None:
        self._config = config
        self._ledger = ledger
        self._health = health
        self._access = Access(ledger)
        self._sessions = Sessions(self._access)
        self._codes = Codes(time.time)
        self._live = Live(ledger)
        self._templates = templates()
        # Cookies do not know ports: two consoles on one machine must not take each other's.
        prefix = "__Host-" if config.console_tls else ""
        self._cookie = f"{prefix}clue_console_{config.console_port}"
        self.app = Guard(self._starlette(), config.console_hosts)

    def stop(self) -> None:
        """End what would not end by itself."""
        self._live.stop()

    def _starlette(self) -> Starlette:
        pages = {
            "/": views.fleets,
            "/fleets/{fleet}": views.fleet,
            "/devices/{device}": views.device,
            "/requests": views.requests,
            "/requests/{request}": views.request,
            "/history": views.history,
        }
        return Starlette(
            routes=[
                *(Route(path, self._page(look), methods=["GET"]) for path, look in pages.items()),
                Route("/requests/{request}/events", self._events, methods=["GET"]),
                Route("/requests/{request}/certificate.{form}", self._certificate, methods=["GET"]),
                Route("/login", self._login_page, methods=["GET"]),
                Route("/login", self._login, methods=["POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Mount("/static", _Static(packages=[("clue_coordinator.console", "static")])),
            ],
            exception_handlers={HTTPException: self._http_error, Exception: self._crash},
        )

    # Pages

    def _page(self, look: views.View) -> Callable[[Request], Response]:
        """An endpoint that shows what ``look`` finds, to those who may see it."""

        def endpoint(request: Request) -> Response:
            try:
                session = self._session(request)
                if session is None:
                    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                    return RedirectResponse(f"/login?{urlencode({'next': target})}", 303)
                with self._ledger.read() as ledger_session:
                    template, found = look(ledger_session, request.path_params, request.query_params)
            except views.NotFound as error:
                return self._error(request, 404, str(error))
            except UsageError as error:
                return self._error(request, 400, str(error))
            except CoordinatorError as error:
                log.error("console: %s", error)
                return self._error(request, 503, str(error))
            return self._render(template, session, found | {"health": self._health()})

        return endpoint

    def _render(
        self, template: str, session: Session | None, found: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        text = self._templates.get_template(template).render(session=session, **found)
        return HTMLResponse(text, status)

    def _error(self, request: Request, status: int, line: str) -> Response:
        if request.url.path.endswith("/events"):
            return PlainTextResponse(f"{line}\n", status)
        try:
            session = self._session(request)
        except CoordinatorError:
            session = None
        return self._render("error.html", session, {"title": HTTPStatus(status).phrase, "line": line}, status)

    def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        line = "there is no such page" if status == 404 else HTTPStatus(status).description
        return self._error(request, status, line)

    def _crash(self, request: Request, _error: Exception) -> Response:
        return self._error(request, 500, "the console failed; the coordinator's log says how")

    async def _events(self, request: Request) -> Response:
        """Server-sent events for the page of a request."""

        def find() -> tuple[Session | None, str]:
            session = self._session(request)
            with self._ledger.read() as ledger_session:
                return session, views.require(ledger_session, request.path_params["request"]).id if session else ""

        try:
            session, request_id = await run_in_threadpool(find)
        except views.NotFound as error:
            return self._error(request, 404, str(error))
        except CoordinatorError as error:
            return self._error(request, 503, str(error))
        if session is None:
            return self._error(request, 401, "sign in first")
        if self._live.full:
            return self._error(request, 503, "too many pages follow requests")
        signed_in = session
        stream = self._live.events(request_id, lambda: self._sessions.alive(signed_in))
        return StreamingResponse(stream, media_type="text/event-stream")

    def _certificate(self, request: Request) -> Response:
        """A file to keep: never shown as a page of ours, whose rules it would not follow."""
        form = request.path_params["form"]
        try:
            if self._session(request) is None:
                return RedirectResponse(f"/login?{urlencode({'next': request.url.path})}", 303)
            if form not in FORMS:
                return self._error(request, 404, f"a certificate is {', '.join(FORMS)}")
            with self._ledger.read() as ledger_session:
                request_id = views.require(ledger_session, request.path_params["request"]).id
            content = certificate(self._config, self._ledger, request_id, form)
        except views.NotFound as error:
            return self._error(request, 404, str(error))
        except ConflictError as error:
            return self._error(request, 409, str(error))
        except (CoordinatorError, ProtocolError) as error:
            log.error("console: %s", error)
            return self._error(request, 503, str(error))
        headers = {"Content-Disposition": f'attachment; filename="certificate-{request_id[:8]}.{form}"'}
        return Response(content, media_type=FORMS[form], headers=headers)

    # Signing in and out

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(self._cookie, ""))

    def _login_page(self, request: Request) -> Response:
        code, target = request.query_params.get("code", ""), _local(request.query_params.get("next", ""))
        try:
            if not code:
                if self._session(request) is not None:
                    return RedirectResponse(target, 303)
                return self._ask(target)
            token = self._config.operator_token.read_text(encoding="ascii").strip()
            if not self._codes.redeem(code, token):
                return self._ask(target, _BAD_CODE)
            return self._open(self._caller(token, request), target)
        except Refused as error:
            return self._ask(target, str(error))
        except CoordinatorError as error:
            return self._error(request, 503, str(error))
        except (OSError, UnicodeDecodeError):
            return self._ask(target, "the coordinator cannot read the token in its home folder")

    async def _login(self, request: Request) -> Response:
        form = await _form(request)
        target = _local(form.get("next", ""))
        try:
            caller = await run_in_threadpool(self._caller, form.get("token", "").strip(), request)
        except Refused as error:
            return await run_in_threadpool(self._ask, target, str(error))
        except CoordinatorError as error:
            return await run_in_threadpool(self._error, request, 503, str(error))
        return self._open(caller, target)

    async def _logout(self, request: Request) -> Response:
        form = await _form(request)
        session = await run_in_threadpool(self._session, request)
        if session is not None:
            if form.get("form_token") != session.form_token:
                line = "this form is of another session: go back, reload the page and try again"
                return await run_in_threadpool(self._error, request, 403, line)
            self._sessions.end(request.cookies[self._cookie])
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._cookie, secure=self._config.console_tls, httponly=True, samesite="strict")
        return answer

    def _caller(self, token: str, request: Request) -> Caller:
        peer = request.client.host if request.client else "unknown"
        caller = self._access.caller(f"Bearer {token}", _LOOKING, f"the console, {peer}")
        self._access.write_uses()
        return caller

    def _ask(self, target: str, problem: str = "") -> Response:
        status = 403 if problem else 200
        found = {"target": target, "problem": problem}
        return self._render("login.html", None, found, status)

    def _open(self, caller: Caller, target: str) -> Response:
        answer = RedirectResponse(target, 303)
        answer.set_cookie(
            self._cookie,
            self._sessions.begin(caller),
            max_age=int(SESSION_SECONDS),
            secure=self._config.console_tls,
            httponly=True,
            samesite="strict",
        )
        return answer


class _Static(StaticFiles):
    """Browsers ask each time whether a file has changed, and mostly get 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def _local(target: str) -> str:
    """Where to go after signing in: nowhere but here."""
    return target if target.startswith("/") and target[1:2] not in ("/", "\\") and target.isprintable() else "/"


async def _form(request: Request) -> dict[str, str]:
    """The fields of an urlencoded form; HTTPException if it is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            raise HTTPException(413)
    return {name: values[-1] for name, values in parse_qs(body.decode("latin-1")).items()}
