"""The server's certificate renews itself, and no connection notices."""

import ssl
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from clue_coordinator import pki
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import ConfigError
from clue_coordinator.renewal import Renewal, certificate_states, server_credentials

DAY = 86400.0
CHAIN = ("ca.pem", "ca-key.pem", "server.pem", "server-key.pem")


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    found = CoordinatorConfig(home=tmp_path, hosts=("127.0.0.1", "cams.example.org"), server_certificate_days=9.0)
    pki.create_pki(found.pki, found.certificate_hosts, found.server_certificate_days)
    return found


def contents(config: CoordinatorConfig) -> dict[str, bytes]:
    return {name: (config.pki / name).read_bytes() for name in CHAIN}


def test_it_is_renewed_when_a_third_of_its_life_is_left(config: CoordinatorConfig) -> None:
    now, renewed = time.time(), []
    clock = [now]
    renewal = Renewal(config, lambda: clock[0], lambda: renewed.append(clock[0]))
    before = contents(config)
    clock[0] = now + 5.9 * DAY
    assert not renewal.check()
    assert contents(config) == before
    clock[0] = now + 6.1 * DAY
    assert renewal.check()
    after = contents(config)
    assert [name for name in CHAIN if after[name] == before[name]] == ["ca.pem", "ca-key.pem"]
    assert not renewal.check()  # and only then
    assert renewed == [clock[0]]
    pki.check_pki(config.pki)
    assert pki.uncovered(config.pki, ["cams.example.org", "127.0.0.1", "localhost"]) == []
    assert (config.pki / "server-key.pem").stat().st_mode & 0o077 == 0
    ca, server = (x509.load_pem_x509_certificate(after[name]) for name in ("ca.pem", "server.pem"))
    server.verify_directly_issued_by(ca)


def test_what_cannot_be_renewed_stays_and_is_tried_again(
    config: CoordinatorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [time.time() + 7 * DAY]
    renewal = Renewal(config, lambda: clock[0])
    key = config.pki / "ca-key.pem"
    key.rename(config.home / "elsewhere")
    before = (config.pki / "server.pem").read_bytes()
    for _ in range(3):
        assert not renewal.check()
    assert len([r for r in caplog.records if "cannot be renewed" in r.message]) == 1
    assert (config.pki / "server.pem").read_bytes() == before
    [state] = [found for found in certificate_states(config, clock[0]) if found.name == "server"]
    assert state.due
    (config.home / "elsewhere").rename(key)
    clock[0] += 61
    assert renewal.check()


def test_a_crash_between_key_and_certificate_is_mended(
    config: CoordinatorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = pki.write_atomic, []

    def dies(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "server.pem":
            raise OSError(5, "power cut")
        written.append(path.name)
        real(path, data, mode)

    monkeypatch.setattr(pki, "write_atomic", dies)
    with pytest.raises(ConfigError):
        pki.renew_server(config.pki, config.certificate_hosts, time.time() + 9 * DAY)
    assert written == ["next.pem", "server-key.pem"]
    with pytest.raises(ConfigError):
        pki.check_pki(config.pki)
    monkeypatch.undo()
    pki.finish_renewal(config.pki)
    pki.check_pki(config.pki)
    assert not (config.pki / "next.pem").exists()


def test_the_end_of_the_authority_is_announced(config: CoordinatorConfig, caplog: pytest.LogCaptureFixture) -> None:
    end = pki.expiry(config.pki / "ca.pem")
    Renewal(config, lambda: end - 366 * DAY).check()
    assert not [r for r in caplog.records if "ca.pem expires" in r.message]
    clock = [end - 300 * DAY]
    renewal = Renewal(config, lambda: clock[0])
    for _ in range(3):
        renewal.check()
        clock[0] += 3600
    assert len([r for r in caplog.records if "ca.pem expires in 300 days" in r.message]) == 1
    # The server's was renewed: there is a year left for that.
    assert [found.due for found in certificate_states(config, clock[0])] == [True, False]


@pytest.fixture
def served(config: CoordinatorConfig) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"pong")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Ping": handler}),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(config.pki))
    server.start()
    yield port
    server.stop(0).wait(5)


def test_a_running_server_serves_the_new_one(config: CoordinatorConfig, served: int) -> None:
    ca = (config.pki / "ca.pem").read_bytes()

    def connect() -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"127.0.0.1:{served}", grpc.ssl_channel_credentials(ca), options)

    def shown() -> bytes:
        return ssl.get_server_certificate(("127.0.0.1", served), timeout=30).encode()

    with connect() as old:
        assert old.unary_unary("/t.T/Ping")(b"", timeout=30) == b"pong"
        first = shown()
        assert first == (config.pki / "server.pem").read_bytes()
        pki.renew_server(config.pki, config.certificate_hosts, time.time() + 9 * DAY)
        assert shown() == (config.pki / "server.pem").read_bytes() != first
        with connect() as new:
            assert new.unary_unary("/t.T/Ping")(b"", timeout=30) == b"pong"
        assert old.unary_unary("/t.T/Ping")(b"", timeout=30) == b"pong"
        # In the middle of a renewal: the last whole pair goes on.
        whole = shown()
        (config.pki / "server-key.pem").write_bytes(b"half")
        assert shown() == whole
