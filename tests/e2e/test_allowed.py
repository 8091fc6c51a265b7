"""The allow-list of a real daemon, through the command line and the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.host import assert_refused, daemon, safetensors
from tests.support.origin import Origin
from weightd import Client
from weightd.core.errors import RefNotAllowed

FILES = {"open/m.safetensors": safetensors(), "closed/m.safetensors": safetensors(seed=b"closed")}


def test_only_what_is_allowed_or_configured_is_served(tmp_path: Path) -> None:
    with Origin(FILES) as origin:
        good, bad = map(origin.url, FILES)
        around = bad.replace("/closed/", "/open/../closed/")
        config = (
            f'[sources]\nallow = ["{origin.url("open/")}", "file:///"]\n'
            f'[models.named]\nsource = "{origin.url("closed/m.safetensors")}"\n'
        )
        with daemon(config=config) as host:
            for ref in (bad, around, "unnamed"):
                assert_refused(host.cli("fetch", ref, "--json"), 5, "RefNotAllowed", ref, "[sources] allow")
            assert origin.requests == []
            with Client(host.socket) as client:
                for call in (client.fetch, client.acquire, client.resolve):
                    with pytest.raises(RefNotAllowed):
                        call(bad)
                assert origin.requests == []
                assert client.fetch(good).current
                assert client.fetch("named").current
            ended = host.cli("fetch", bad, "--to", tmp_path, "--json", "--config", host.home / "config.toml")
            assert_refused(ended, 5, "RefNotAllowed", bad)


def test_a_moved_ref_is_shown_twice() -> None:
    with Origin(dict(FILES)) as origin, daemon() as host:
        ref = origin.url("open/m.safetensors")
        with Client(host.socket) as client:
            with client.acquire(ref) as lease:
                before = bytes(lease["t"][:16])
                origin.put("open/m.safetensors", safetensors(seed=b"moved"))
                new = client.fetch(ref)
                lines = [line.split() for line in host.cli("ls").out.splitlines() if line.startswith(ref)]
                assert [(line[1], line[2]) for line in lines] == [(new.revision, "current"), (lease.revision, "old")]
                assert client.model(ref, lease.revision).leases == 1
                assert not client.model(ref, lease.revision).current
                assert bytes(lease["t"][:16]) == before
            checks = host.cli("verify", ref).out
            assert f"(old snapshot {lease.revision})" in checks
            assert "2 files, every byte read: 2 sound" in checks
            with client.acquire(ref) as lease:
                assert lease.revision == new.revision
                assert bytes(lease["t"][:16]) != before
