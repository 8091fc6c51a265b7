"""Credentials from where AWS keeps them, and their renewal: botocore's own providers, against servers of the tests."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.sources.s3.conftest import Make, fault, read, resolve
from tests.support.scripted_s3 import Answer, Asked, ScriptedS3
from tests.support.seaweed import ADMIN, Seaweed
from weightd.core.credentials import Credential
from weightd.core.errors import CredentialsExpired, CredentialsMissing, CredentialsRejected
from weightd.sources.registry import Sources

DATA = bytes(range(256)) * 100
REF = "s3://givers/m/model.safetensors"


@pytest.fixture
def bucket(weed: Seaweed) -> Seaweed:
    weed.put("givers", {"m/model.safetensors": DATA})
    return weed


async def reads(source: Sources) -> str:
    """What it is read with: the key of the address."""
    (file,) = (await resolve(source, REF)).files
    assert await read(source, file) == DATA
    address = source._receiving.routes.where(file.url)
    return parse_qs(urlsplit(address).query)["X-Amz-Credential"][0].partition("/")[0]


def expiry(seconds: float) -> str:
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def files(tmp_path: Path, config: str = "", credentials: str = "") -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(config)
    (tmp_path / ".aws/credentials").write_text(credentials)


async def test_shared_files_and_profiles(bucket: Seaweed, make: Make, tmp_path: Path) -> None:
    keys = f"aws_access_key_id = {ADMIN.id}\naws_secret_access_key = {ADMIN.secret}\n"
    nobody = "aws_access_key_id = NOBODYSKEY\naws_secret_access_key = x-s3cr3t\n"
    files(tmp_path, "[profile team]\nregion = eu-west-9\n", f"[default]\n{nobody}[team]\n{keys}")
    assert isinstance(await fault(make(bucket.endpoint), REF), CredentialsRejected)
    assert await reads(make(bucket.endpoint, profile="team")) == ADMIN.id
    rule = Credential("s3://givers/*", profile="team")
    assert await reads(make(bucket.endpoint, (rule,))) == ADMIN.id
    e = await fault(make(bucket.endpoint, profile="none-such"), REF)
    assert isinstance(e, CredentialsMissing)
    assert "'none-such'" in e.message


async def test_the_environment_names_profile_and_endpoint(
    bucket: Seaweed, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = f"aws_access_key_id = {ADMIN.id}\naws_secret_access_key = {ADMIN.secret}\n"
    files(tmp_path, credentials=f"[team]\n{keys}")
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
    assert await reads(make("")) == ADMIN.id


async def test_a_program_gives_them(
    bucket: Seaweed, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys that end within botocore's fifteen minutes are asked for anew at each use; an address ends with them."""
    given = {"Version": 1, "AccessKeyId": ADMIN.id, "SecretAccessKey": ADMIN.secret, "Expiration": expiry(300)}
    (tmp_path / "given.json").write_text(json.dumps(given))
    script = tmp_path / "giver.py"
    script.write_text(
        "import pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "with (here / 'calls').open('a') as f: f.write('x')\n"
        "sys.stdout.write((here / 'given.json').read_text())\n"
    )
    files(tmp_path, f"[default]\ncredential_process = {sys.executable} {script}\n")
    source = make(bucket.endpoint)
    assert await reads(source) == ADMIN.id
    address = source._receiving.routes.where(REF)
    assert 200 < int(parse_qs(urlsplit(address).query)["X-Amz-Expires"][0]) <= 300
    assert len((tmp_path / "calls").read_text()) > 1
    script.write_text("import sys\nsys.exit('s3cr3t of a giver')\n")
    e = await fault(make(bucket.endpoint), REF)
    assert isinstance(e, CredentialsMissing)
    assert "s3cr3t" not in caplog.text


class Giver(ScriptedS3):
    """The endpoint of a container's credentials. `keys` are given with `life` seconds, by whoever has the token."""

    def __init__(self) -> None:
        super().__init__()
        self.id, self.life, self.token = ADMIN.id, 3600.0, "container-token"
        self.rule(self._give)

    def _give(self, asked: Asked) -> Answer:
        if asked.headers.get("authorization") != self.token:
            return Answer(401, {"Content-Type": "application/json"}, b'{"code": "denied", "message": "s3cr3t"}')
        body = {
            "AccessKeyId": self.id,
            "SecretAccessKey": ADMIN.secret,
            "Token": "",
            "Expiration": expiry(self.life),
        }
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())


async def test_a_container_gives_them_and_renews_them(
    bucket: Seaweed, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that end soon are asked for again before an address is signed with them."""
    with Giver() as giver:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", giver.endpoint + "/creds")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", giver.token)
        giver.life = 60
        source = make(bucket.endpoint)
        assert await reads(source) == ADMIN.id
        before = len(giver.log)
        giver.life = 7200
        assert await reads(source) == ADMIN.id
        assert len(giver.log) == before + 1, "renewed once, and good for longer than anything here"
        assert await reads(source) == ADMIN.id
        assert len(giver.log) == before + 1
        giver.token = "another"
        e = await fault(make(bucket.endpoint), REF)
        assert isinstance(e, CredentialsMissing)


STS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>{until}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


REFUSED = b"<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code></Error></ErrorResponse>"


async def test_a_token_of_web_identity(
    bucket: Seaweed, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Kubernetes service account has it."""

    def give(asked: Asked) -> Answer:
        if asked.query.get("WebIdentityToken") != "jwt-s3cr3t":
            return Answer(400, {"Content-Type": "text/xml"}, REFUSED)
        text = STS.format(id=ADMIN.id, secret=ADMIN.secret, until=expiry(3600))
        return Answer(200, {"Content-Type": "text/xml"}, text.encode())

    with ScriptedS3() as sts:
        sts.rule(give)
        token = tmp_path / "token"
        token.write_text("jwt-s3cr3t")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/weights")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        assert await reads(make(bucket.endpoint)) == ADMIN.id
        token.write_text("expired-s3cr3t")
        e = await fault(make(bucket.endpoint), REF)
        assert isinstance(e, CredentialsRejected)
        assert "InvalidIdentityToken" in e.message


async def test_a_machine_that_has_no_role(bucket: Seaweed, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata service is asked once, and does not answer: that is no reason to wait for long."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9/")
    assert isinstance(await fault(make(bucket.endpoint), REF), CredentialsMissing)


async def test_its_thread_ends_with_the_source(bucket: Seaweed, make: Make, admin: None) -> None:
    before, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    source = make(bucket.endpoint)
    assert await reads(source) == ADMIN.id
    assert any(t.name == "weightd-s3" for t in threading.enumerate())
    await source.close()
    await source.close()
    assert not any(t.name == "weightd-s3" for t in set(threading.enumerate()) - before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2


def giving(tmp_path: Path, body: str) -> str:
    """A program for `credential_process`."""
    program = tmp_path / "give.py"
    program.write_text(body)
    return f"{sys.executable} {program}"


async def test_a_program_gives_what_has_expired(scripted: ScriptedS3, make: Make, tmp_path: Path) -> None:
    old = {"Version": 1, "AccessKeyId": "OLDKEY", "SecretAccessKey": "s3cr3t", "SessionToken": "s3cr3t"}
    text = json.dumps(old | {"Expiration": expiry(-60)})
    files(tmp_path, f"[profile old]\ncredential_process = {giving(tmp_path, f'print({text!r})')}\n")
    e = await fault(make(scripted.endpoint, profile="old"), REF)
    assert type(e) is CredentialsExpired


async def test_who_gives_nothing_holds_nobody_up(scripted: ScriptedS3, make: Make, tmp_path: Path) -> None:
    """Other buckets, with credentials of their own, are read meanwhile."""
    asked, end = tmp_path / "asked", tmp_path / "end"
    os.mkfifo(asked)
    os.mkfifo(end)
    program = giving(tmp_path, f"open({str(asked)!r}, 'w').close()\nopen({str(end)!r}).read()\n")
    files(tmp_path, f"[profile slow]\ncredential_process = {program}\n")
    scripted.put("givers/m/model.safetensors", DATA)
    source = make(scripted.endpoint, (Credential("s3://slow/*", profile="slow"),))
    slow = asyncio.create_task(resolve(source, "s3://slow/m/model.safetensors"))
    await asyncio.to_thread(asked.read_bytes)
    async with asyncio.timeout(30):
        assert await resolve(source, REF)
    await asyncio.to_thread(end.write_bytes, b"")
    with pytest.raises(CredentialsMissing):
        await slow
