"""Between core types and protobuf. The enums of core have the values of the wire, so they convert by number; but for
policies, whose values are the words of the configuration.

A number that this version does not know (a newer peer) raises ValueError; nothing is guessed.
"""

from __future__ import annotations

from typing import Final, cast

from weightd.core.digest import Digest
from weightd.core.lifecycle import Residency
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.policy import Policy
from weightd.core.progress import FileProgress, Phase, Progress
from weightd.core.refs import redact
from weightd.core.verification import Verification
from weightd.wire.gen import weightd_pb2 as pb

_POLICIES: Final = {Policy.HOT: pb.POLICY_HOT, Policy.WARM: pb.POLICY_WARM, Policy.COLD: pb.POLICY_COLD}
_POLICIES_BACK: Final = {int(value): policy for policy, value in _POLICIES.items()}


def progress_to_pb(p: Progress) -> pb.Progress:
    """For people and programs, several times a second."""
    return pb.Progress(
        phase=phase_to_pb(p.phase),
        bytes_done=p.done,
        bytes_total=p.total,
        bytes_per_second=p.rate,
        seconds_left=p.seconds_left,
        files=[pb.FileProgress(path=f.path, bytes_done=f.done, bytes_total=f.total) for f in p.files],
    )


def progress_from_pb(p: pb.Progress) -> Progress:
    """The inverse of `progress_to_pb`."""
    return Progress(
        phase=Phase(p.phase),
        done=p.bytes_done,
        total=p.bytes_total,
        rate=p.bytes_per_second,
        seconds_left=p.seconds_left,
        files=tuple(FileProgress(f.path, f.bytes_done, f.bytes_total) for f in p.files),
    )


def manifest_to_pb(m: Manifest) -> pb.Manifest:
    """Without what must stay in the daemon: credentials and queries of the URLs, validators."""
    return pb.Manifest(
        ref=shown(m.ref),
        revision=m.revision,
        format=m.format,
        files=[_file_to_pb(f) for f in m.files],
    )


def _file_to_pb(f: FileSpec) -> pb.ManifestFile:
    return pb.ManifestFile(path=f.path, size=f.size, digest=f.digest or "", source=redact(f.url).split("?")[0])


def manifest_from_pb(m: pb.Manifest) -> Manifest:
    """What a client may know of a manifest: `url` is the redacted source, validators are empty."""
    files = tuple(
        FileSpec(path=f.path, size=f.size, url=f.source, digest=Digest(f.digest) if f.digest else None) for f in m.files
    )
    return Manifest(ref=m.ref, revision=m.revision, format=m.format, files=files)


def shown(ref: str) -> str:
    """A ref for answers: a URL without credentials, a name as it is."""
    return redact(ref) if "://" in ref else ref


def verification_to_pb(value: Verification) -> pb.Verification:
    return cast("pb.Verification", value.value)


def verification_from_pb(value: int) -> Verification:
    return Verification(value)


def residency_to_pb(value: Residency) -> pb.Residency:
    return cast("pb.Residency", value.value)


def residency_from_pb(value: int) -> Residency:
    return Residency(value)


def phase_to_pb(value: Phase) -> pb.Phase:
    return cast("pb.Phase", value.value)


def policy_to_pb(value: Policy) -> pb.Policy:
    return _POLICIES[value]


def policy_from_pb(value: int) -> Policy:
    """WARM where an older daemon says nothing: it has no other."""
    if value == pb.POLICY_UNSPECIFIED:
        return Policy.WARM
    if value not in _POLICIES_BACK:
        raise ValueError(f"unknown policy {value}")
    return _POLICIES_BACK[value]
