"""Server-sent events of a request: that it has changed, so that its page fetches itself anew, and that it is over."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable

from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from clue_coordinator.errors import CoordinatorError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Execution, Request

MOST_STREAMS = 64
_LOOK_SECONDS = 0.5
# A page is made anew for each change that is told: nobody reads faster.
_PAUSE_SECONDS = 1.0
# Proxies and browsers give up on connections that say nothing.
_SIGN_OF_LIFE_SECONDS = 15.0


class Live:
    """The open streams: how many there may be, and their end when the console stops."""

    def __init__(self, ledger: Ledger, most: int = MOST_STREAMS) -> None:
        self._ledger = ledger
        self._most = most
        self._stopping = threading.Event()
        # Only touched in the event loop.
        self._open = 0

    def stop(self) -> None:
        """End all streams soon."""
        self._stopping.set()

    @property
    def full(self) -> bool:
        """True if no more streams may be opened."""
        return self._open >= self._most

    async def events(self, request_id: str, alive: Callable[[], bool]) -> AsyncIterator[str]:
        """``changed`` after a change, ``finished`` at the end of the request; ends when ``alive`` says no."""
        self._open += 1
        try:
            yield "retry: 2000\n\n"
            last: object = None
            version, silent = -1, 0.0
            while not self._stopping.is_set() and await run_in_threadpool(alive):
                if (now := self._ledger.version) != version:
                    version = now
                    try:
                        found, finished = await run_in_threadpool(self._look, request_id)
                    except CoordinatorError:
                        return
                    if found != last:
                        yield _event("finished" if finished else "changed")
                        last, silent = found, 0.0
                        if finished:
                            return
                        await asyncio.sleep(_PAUSE_SECONDS)
                        continue
                await asyncio.sleep(_LOOK_SECONDS)
                silent += _LOOK_SECONDS
                if silent >= _SIGN_OF_LIFE_SECONDS:
                    yield ": here\n\n"
                    silent = 0.0
        finally:
            self._open -= 1

    def _look(self, request_id: str) -> tuple[object, bool]:
        """What changes whenever the page would, and whether the request is over."""
        with self._ledger.read() as session:
            request = session.get_one(Request, request_id)
            newest = select(func.max(Execution.updated_at)).where(Execution.request_id == request_id)
            state = (request.state, request.paused_at, request.wave, request.counts, session.scalar(newest))
            return state, request.finished_at is not None


def _event(name: str) -> str:
    return f"event: {name}\ndata: {json.dumps({})}\n\n"
