"""How one s3:// ref is read: what `[s3]` says, and what the `[[credentials]]` for it say in its place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from weightd.core.credentials import Addressing, Credential, matching
from weightd.core.errors import CredentialsMissing


class S3Options(msgspec.Struct, frozen=True):
    """`endpoint`, `region` and `profile` "" leave it to the environment and the files of AWS."""

    endpoint: str = ""
    region: str = ""
    addressing: Addressing = "auto"
    anonymous: bool = False
    requester_pays: bool = False
    profile: str = ""


class Setting(msgspec.Struct, frozen=True):
    """All refs with one setting share a client. The files hold secrets; they are read by `Secrets.of`."""

    options: S3Options
    access_key_id: str = ""
    secret_file: str = ""
    token_file: str = ""


class Secrets(msgspec.Struct, frozen=True):
    """What signs: all "" where botocore is to find it. Its repr shows nothing."""

    id: str = ""
    secret: str = ""
    token: str = ""

    @classmethod
    def of(cls, setting: Setting) -> Secrets:
        """Reads files, as they are now. Raises CredentialsMissing."""
        if not setting.access_key_id:
            return cls()
        token = _read(setting.token_file) if setting.token_file else ""
        return cls(setting.access_key_id, _read(setting.secret_file), token)

    def __repr__(self) -> str:
        return "<Secrets>"


def setting_of(options: S3Options, credentials: Iterable[Credential], url: str) -> Setting:
    """For a ref or a file's URL."""
    one = matching(credentials, url)
    if one is None:
        return Setting(options)
    who = _identity(options, one)
    return Setting(
        msgspec.structs.replace(
            who,
            endpoint=one.endpoint or options.endpoint,
            region=one.region or options.region,
            addressing=one.addressing or options.addressing,
            requester_pays=options.requester_pays if one.requester_pays is None else one.requester_pays,
        ),
        one.access_key_id,
        one.secret_access_key_file,
        one.session_token_file,
    )


def _identity(options: S3Options, one: Credential) -> S3Options:
    """Keys and a profile go before anonymity, and it before them, where they are of the pattern itself."""
    if one.access_key_id or one.anonymous:
        return msgspec.structs.replace(options, profile="", anonymous=bool(one.anonymous))
    if one.profile:
        return msgspec.structs.replace(options, profile=one.profile, anonymous=False)
    return options if one.anonymous is None else msgspec.structs.replace(options, anonymous=False)


def _read(file: str) -> str:
    try:
        text = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise CredentialsMissing(
            f"the secret in {file} cannot be read: {why}",
            remedy="Check the path under [[credentials]], and that the daemon's user may read it.",
        ) from None
    if not text or "\n" in text:
        raise CredentialsMissing(f"{file} holds no secret of one line", remedy="Write the secret alone into it.")
    return text
