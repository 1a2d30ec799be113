"""``clue-coordinator serve``: ledger, SuperLink, dispatcher, operator API, metrics and console in one daemon."""

import logging
import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from clue_coordinator import dispatch, enrolment_service, metrics, operators, roots, tokens
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.console.server import Health, serve_console
from clue_coordinator.errors import ConfigError, CoordinatorError
from clue_coordinator.flower import Flower
from clue_coordinator.home_keys import HomeKeys, adopt_timestamp_key, create_home_keys, load_home_keys
from clue_coordinator.ledger import Ledger
from clue_coordinator.patches import Patcher
from clue_coordinator.pki import check_pki, finish_renewal, uncovered
from clue_coordinator.renewal import Renewal
from clue_coordinator.role_keys import holds
from clue_coordinator.roles import unassigned_methods
from clue_coordinator.server import OperatorServer
from clue_coordinator.tick import tick
from clue_coordinator.timekeeper import Timekeeper
from clue_coordinator.tlog import record
from clue_coordinator.tlog.keys import ensure_log_key, load_log_keys
from clue_coordinator.tlog.schedule import CheckpointSchedule
from clue_protocol.files import HomeLock, socket_path
from clue_protocol.net import port_in_use

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 15.0
_TICK_SECONDS = 0.5
# How often it is looked whether the root is about to expire.
_ROOT_SECONDS = 86400.0


def run(config: CoordinatorConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises CoordinatorError or ProtocolError if it cannot start."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        lock = HomeLock(config.home)
        lock.acquire()
        stack.callback(lock.release)
        keys = load_home_keys(config)
        token = _token(config)
        finish_renewal(config.pki)
        check_pki(config.pki)
        # What is due now is due before anything uses it.
        Renewal(config, time.time).check()
        _warn(config)
        # Before anything starts: a half-started daemon is harder to understand than one line.
        _check_ports(config)
        ledger = Ledger(config.ledger_place)
        stack.callback(ledger.close)
        stack.enter_context(ledger.claimed())
        _adopt(ledger, token)
        keys = _rooted(config, ledger, keys)
        schedule = _begin_log(config, ledger)
        socket = socket_path(config.home, "dispatch.sock")
        stack.callback(_remove_socket, socket, config.home)
        service = dispatch.DispatchService(ledger, Timekeeper(ledger, keys))
        dispatch_server = dispatch.serve(service, socket)
        stack.callback(lambda: dispatch_server.stop(0.5).wait(2.0))
        flower = Flower(config)
        stack.callback(flower.close)
        flower.start()
        keeper = dispatch.DispatcherKeeper(flower, service, socket)
        operator_service = operators.OperatorService(config, ledger, flower, keeper, keys)
        operator_server = OperatorServer(operator_service, config, ledger)
        stack.callback(operator_server.close)
        enrolment = enrolment_service.EnrolmentService(config, ledger, flower)
        enrolment_server = enrolment_service.EnrolmentServer(enrolment, config)
        stack.callback(enrolment_server.close)
        operator_service.cut_off.start()
        stack.callback(operator_service.cut_off.close)
        metrics_server = metrics.serve(
            ledger, config.metrics_port, config.metrics_device_limit, [metrics.CertificateCollector(config)]
        )
        stack.callback(metrics_server.shutdown)
        if config.console_port:
            console = serve_console(config, ledger, lambda: Health(flower.superlink_running, keeper.running))
            stack.callback(console.close)
        keeper.start()
        stack.callback(keeper.close)
        # First of all when it stops.
        stack.callback(operator_server.drain)
        log.info(
            "operators: %s  devices: %s  enrolment: %s  metrics: %s  console: %s",
            config.operator_listen_address,
            config.superlink_address,
            config.enrolment_listen_address,
            config.metrics_url,
            config.console_url if config.console_port else "off",
        )
        patcher = Patcher(ledger, keys.request)
        # gRPC takes the new one for every new connection; the SuperLink reads it when it starts.
        renewal = Renewal(config, time.time, flower.restart_superlink)
        looked = time.monotonic()
        while not stopping.wait(_TICK_SECONDS):
            _tick(ledger, patcher, schedule)
            renewal.check()
            if time.monotonic() - looked > _ROOT_SECONDS:
                _keep_root(ledger, keys)
                looked = time.monotonic()
        log.info("stopping")


def _begin_log(config: CoordinatorConfig, ledger: Ledger) -> CheckpointSchedule:
    """The log's schedule; what a ledger of before there was a log holds is appended first."""
    with ledger.read() as session:
        installation = roots.latest(session).root.installation
    if ensure_log_key(config, installation):
        log.info("made %s, the key of the transparency log", config.log_key)
    with ledger.write() as session:
        count = record.begin(session)
        if count:
            ledger.record(session, "log.begun", detail=f"{count} document(s) that were there already")
    return CheckpointSchedule(ledger, load_log_keys(config), config.log.checkpoint_minutes)


def _tick(ledger: Ledger, patcher: Patcher, schedule: CheckpointSchedule) -> None:
    try:
        tick(ledger)
        patcher.advance()
        schedule.advance()
    except CoordinatorError as error:
        # A disk that is full now may not be so in a second; what is due stays due.
        log.error("%s", error)


def _warn(config: CoordinatorConfig) -> None:
    for host in uncovered(config.pki, config.certificate_hosts):
        log.warning("%s/server.pem does not name %s: who connects to that will refuse it", config.pki, host)
    for method in unassigned_methods():
        log.warning("no role is assigned to %s: admins alone may call it", method)


def _rooted(config: CoordinatorConfig, ledger: Ledger, keys: HomeKeys) -> HomeKeys:
    """Make the first root of a ledger of before there were roots; say what is wrong with the one there is."""
    with ledger.read() as session:
        trusted = roots.latest_or_none(session)
    if trusted is None:
        keys = create_home_keys(config)
        trusted = roots.found(ledger, keys)
        log.info("root version 1 is made, with the keys in the home folder and the fleets there are")
    root = trusted.root
    adopt_timestamp_key(config, root.timestamp)
    keys = load_home_keys(config)
    if not any(holds(root.timestamp, signer.public_key) for signer in keys.timestamps):
        log.warning("no timestamp key in %s is in the root: devices are not told the time", config.home)
    _keep_root(ledger, keys)
    return keys


def _keep_root(ledger: Ledger, keys: HomeKeys) -> None:
    """Renew the root in time where the home's key may; where people must, remind them."""
    try:
        if roots.renew_if_due(ledger, keys):
            log.info("the root was about to expire and was renewed with the home's root key")
            return
        with ledger.read() as session:
            root = roots.latest(session).root
    except CoordinatorError as error:
        log.error("the root: %s", error)
        return
    if roots.expires_soon(root, ledger.clock()):
        date = time.strftime("%Y-%m-%d", time.gmtime(root.expires_ns / 1e9))
        log.warning("the root expires on %s, and devices stop then: its holders must sign a newer one", date)


def _adopt(ledger: Ledger, token: str) -> None:
    """Before the ledger held tokens, the home folder's was the only one: it goes on as an admin's, once."""
    if not tokens.any_token(ledger):
        name = tokens.install_local_admin(ledger, token)
        log.info("the token in the home folder is now the admin token '%s'", name)
    elif not tokens.is_usable(ledger, token):
        log.warning("the token in the home folder is not valid: 'clue-coordinator token recover' makes a new one")


def _token(config: CoordinatorConfig) -> str:
    try:
        token = config.operator_token.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"cannot read {config.operator_token}: 'clue-coordinator token recover' makes a new one"
        ) from None
    if len(token) < 16:
        raise ConfigError(f"{config.operator_token} holds no token: 'clue-coordinator token recover' makes a new one")
    return token


def _check_ports(config: CoordinatorConfig) -> None:
    for purpose, host, port, option in (
        ("devices", config.listen, config.superlink_port, "superlink_port"),
        ("operators", config.operator_listen, config.operator_port, "operator_port"),
        ("enrolment", config.listen, config.enrolment_port, "enrolment_port"),
        ("metrics", "127.0.0.1", config.metrics_port, "metrics_port"),
        ("the console", config.console_listen, config.console_port, "console_port"),
    ):
        if not port:
            continue
        # A SuperLink whose coordinator was killed takes some seconds to end by itself.
        patience = _DRAIN_SECONDS if purpose == "devices" and config.flower.exists() else 0.0
        deadline = time.monotonic() + patience
        while port_in_use(host, port) and time.monotonic() < deadline:
            time.sleep(0.2)
        if port_in_use(host, port):
            raise CoordinatorError(
                f"port {port} for {purpose} is in use: stop what uses it, "
                f"or set {option} in {config.home}/coordinator.toml"
            )


def _remove_socket(socket: Path, home: Path) -> None:
    socket.unlink(missing_ok=True)
    if socket.parent != home:
        with suppress(OSError):
            socket.parent.rmdir()
