"""``clue-agent run``: the agent, its local service, and the Flower SuperNode that connects it."""

import logging
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from clue_agent.agent import Agent
from clue_agent.config import AgentConfig
from clue_agent.flower import FlowerNode
from clue_agent.journal import Journal
from clue_agent.notify import Notifier, wait
from clue_agent.once import Once
from clue_agent.service import serve
from clue_agent.setup import load_trust
from clue_protocol.files import HomeLock, private_folder, socket_path, write_atomic
from clue_protocol.keys import load_signing_key

log = logging.getLogger(__name__)


def run(config: AgentConfig, ready: threading.Event | None = None, once: Once | None = None) -> None:
    """Run until SIGTERM or SIGINT, or until ``once`` says so. AgentError or ProtocolError if it cannot start."""
    notifier = Notifier()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        lock = HomeLock(config.home)
        lock.acquire()
        stack.callback(lock.release)
        trust = load_trust(config)
        signer = load_signing_key(config.receipt_key)
        private_folder(config.logs)
        journal = Journal(config.journal)
        stack.callback(journal.close)
        agent = Agent(config, trust, signer, journal)
        agent.start()
        stack.callback(agent.close)
        socket = socket_path(config.home, "agent.sock")
        stack.callback(_remove_socket, socket, config.home)
        write_atomic(config.home / "agent.socket-path", f"{socket}\n".encode(), mode=0o600)
        server = serve(agent, socket)
        stack.callback(lambda: server.stop(1.0).wait(2.0))
        node = FlowerNode(config, trust, socket)
        node.start()
        stack.callback(node.close)
        spec, _ = agent.store.spec()
        log.info("device %s of fleet %s is ready: %d classes", config.device_id, trust.fleet, len(spec.classes))
        if config.metrics_port:
            from clue_agent import exporter  # the one part that needs prometheus_client

            metrics = exporter.serve(config, trust.fleet, lambda: _held(agent))
            stack.callback(metrics.shutdown)
        if ready is not None:
            ready.set()
        notifier.ready()
        if once is not None:
            once.start(lambda: len(journal.unfinished()), node.last_activity, stopping)
        wait(
            notifier,
            stopping,
            healthy=lambda: agent.alive and bool(agent.status().device_id),
            status=lambda: _line(agent),
        )
        log.info("stopping")


def _held(agent: Agent) -> str:
    return agent.status().held


def _line(agent: Agent) -> str:
    """What ``systemctl status`` shows."""
    now = agent.status()
    if held := _held(agent):
        return f"held: {held}"
    return f"{now.progress.stage or 'working'} on {now.active_request_id}" if now.active_request_id else "idle"


def _remove_socket(socket: Path, home: Path) -> None:
    socket.unlink(missing_ok=True)
    if socket.parent != home:
        with suppress(OSError):
            socket.parent.rmdir()
