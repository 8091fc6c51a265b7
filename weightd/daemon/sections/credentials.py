"""`[[credentials]]`"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from weightd.core.credentials import Credential, check_credential
from weightd.daemon.config_reader import Reader
from weightd.daemon.sections.s3 import check_endpoint, check_region

_INLINE = {"secret_access_key": "secret_access_key_file", "session_token": "session_token_file", "token": "token_file"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_credentials(reader: Reader, env: Mapping[str, str]) -> tuple[Credential, ...]:
    """Their files as absolute paths, `credential` as one of those. Raises ConfigError."""
    _refuse_secrets(reader)
    written = reader.tables("credentials", Credential)
    found = tuple(_resolved(reader, env, i, one) for i, one in enumerate(written))
    for i, one in enumerate(found):
        for other in found[:i]:
            if other.match == one.match:
                raise reader.fault(("credentials", str(i), "match"), f"{one.match!r} stands twice")
    return found


def _resolved(reader: Reader, env: Mapping[str, str], index: int, one: Credential) -> Credential:
    at = ("credentials", str(index))
    reader.value((*at, "match"), lambda _: check_credential(one), one)
    reader.value((*at, "endpoint"), check_endpoint, one.endpoint)
    reader.value((*at, "region"), check_region, one.region)
    secret = "secret_access_key_file" if one.scheme == "s3" else "token_file"
    files = {f: getattr(one, f) for f in (secret, "session_token_file")}
    paths = {field: str(reader.path(file) or "") for field, file in files.items()}
    if one.credential:
        paths[secret] = reader.value((*at, "credential"), lambda name: _of_systemd(name, env), one.credential)
    return msgspec.structs.replace(one, credential="", **paths)


def _of_systemd(name: str, env: Mapping[str, str]) -> str:
    """systemd.exec(5), LoadCredential=."""
    directory = env.get("CREDENTIALS_DIRECTORY", "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a credential")
    if not directory:
        raise ValueError("$CREDENTIALS_DIRECTORY is not set; systemd sets it where the unit has LoadCredential=")
    return str(Path(directory) / name)


def _refuse_secrets(reader: Reader) -> None:
    """A configuration is copied, shown and kept in version control: no secret stands in it, whoever may read it."""
    raw = reader.raw("credentials")
    for i, one in enumerate(raw if isinstance(raw, list) else []):
        for key, instead in _INLINE.items():
            if isinstance(one, dict) and key in one:
                raise reader.fault(
                    ("credentials", str(i), key),
                    f"no secret may stand in this file; write it into a file of mode 0600 and name that as {instead}",
                )
