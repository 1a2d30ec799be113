"""The whole way with the ledger on PostgreSQL, through a kill of the coordinator and of its connections."""

import psycopg
import pytest
from unit.databases import new_url

from clue_coordinator.database import parse_url
from integration.conftest import Digits
from integration.harness import BRIEF, FLEET, Installation, child, one_line, succeed


@pytest.mark.timeout(400)
def test_a_fleet_whose_ledger_is_on_postgresql(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("house")
    url = new_url("postgresql", root)
    with Installation(root) as house:
        house.init("--ledger-url", url)
        house.serve()
        succeed(house.coordinator("fleet", "create", FLEET))
        samples, holdout = digits.shares["pi-1"]
        house.add_device("pi-1", digits.bundle, samples, holdout)
        agent = house.start_agent("pi-1")
        house.wait_online(1)
        request_id = house.forget("eight", *BRIEF)
        child(agent, "clue_agent.worker")

        # As when the database is restarted: every connection breaks at once.
        where = parse_url(url)
        with psycopg.connect(host=str(where.query["host"]), user="clue", dbname="postgres", autocommit=True) as server:
            broken = server.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            ).fetchone()
        assert broken is not None
        assert broken[0] >= 1
        house.kill("coordinator")
        house.serve()
        device = house.wait_completed(request_id)["pi-1"]
        assert device["state"] == "SUCCEEDED"
        assert device["receipt_verified"] is True
        assert house.model("pi-1").spec.forgotten == ("eight",)

        backup = root / "ledger.backup"
        succeed(house.coordinator("backup", "--out", str(backup)))
        assert "in use" in one_line(house.coordinator("restore", str(backup), "--force"), 1)
        assert house.stop("coordinator") == 0
        succeed(house.coordinator("restore", str(backup), "--force"))
        house.serve()
        assert house.show(request_id)["devices"][0]["receipt"] == device["receipt"]
