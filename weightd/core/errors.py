"""Every error that weightd raises on purpose, named for what the caller should do.

The classes directly below `WeightdError` are the families; each has one gRPC status code (see `weightd.wire.errors`)
and one exit code of the command line. A message says what happened, `ref` and `file` to what, `remedy` what to do.
Foreign exceptions are translated into these once, at the edge where they appear.
"""

from __future__ import annotations

from typing import ClassVar


class WeightdError(Exception):
    """Base of all. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, ref: str = "", file: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.ref = ref
        self.file = file
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: what happened, to which ref and file, and what to do."""
        subject = ", ".join(s for s in (self.ref, f"file {self.file}" if self.file else "") if s)
        text = f"{self.message} ({subject})" if subject else self.message
        return f"{text}. {self.remedy}" if self.remedy else text

    def about(self, *, ref: str = "", file: str = "") -> WeightdError:
        """The same error, its empty `ref` and `file` filled in by someone who knows them."""
        self.ref = self.ref or ref
        self.file = self.file or file
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self.message, self.ref, self.file, self.remedy))


def _restore(cls: type[WeightdError], message: str, ref: str, file: str, remedy: str) -> WeightdError:
    return cls(message, ref=ref, file=file, remedy=remedy)


class InvalidArgument(WeightdError):
    """The request itself is wrong; repeating it cannot help."""

    exit_code = 3


class RefSyntax(InvalidArgument):
    """A ref that cannot be parsed, or whose scheme is unknown."""


class DigestSyntax(InvalidArgument):
    """Not `sha256:` and 64 hex digits."""


class ConfigError(InvalidArgument):
    """Configuration or models.json: names the key, and the line where the parser knows it."""


class ManifestError(InvalidArgument):
    """A list of files that cannot be served: hostile, duplicate or missing names, impossible sizes."""


class SelectionAmbiguous(InvalidArgument):
    """Several models are where one was asked for, and nothing says which; the message lists them."""


class WrongRegion(InvalidArgument):
    """The bucket is in another region than was asked, and the server does not say how to get there."""


class TensorUnsupported(InvalidArgument):
    """A sound tensor that numpy or torch, as installed, has no dtype or no shape for."""


class NotFound(WeightdError):
    """What was asked for does not exist."""

    exit_code = 4


class ModelNotFound(NotFound):
    """No such model here, or no such name in the configuration."""


class SourceNotFound(NotFound):
    """The origin says that the file does not exist (404, 410, ENOENT)."""


class BucketNotFound(NotFound):
    """The object store has no bucket of that name."""


class TensorNotFound(NotFound):
    """The model has no tensor of that name."""


class FileNotInModel(NotFound):
    """The model has no file of that name."""


class RepoNotFound(NotFound):
    """The Hub shows no such repository to who asks: it does not exist, or is private, or was deleted."""


class RevisionNotFound(NotFound):
    """The repository has no such branch, tag or commit."""


class NotInCache(NotFound):
    """The network may not be used, and the Hugging Face cache of this host does not have it."""


class AccessDenied(WeightdError):
    """Somebody refused: the caller lacks a right."""

    exit_code = 5


class SourceDenied(AccessDenied):
    """The origin refused (401, 403, EACCES)."""


class RefNotAllowed(AccessDenied):
    """A ref that the daemon's configuration does not allow."""


class RepoGated(AccessDenied):
    """The repository's conditions have to be accepted first, by the user whose token is used."""


class RepoDisabled(AccessDenied):
    """The Hub gives nobody access to the repository."""


class TokenRefused(AccessDenied):
    """The Hub takes the token for none of its own: it is expired, revoked, or of another Hub."""


class CredentialsMissing(AccessDenied):
    """There are none for this source, or they cannot be read."""


class CredentialsExpired(AccessDenied):
    """They were good once, and could not be refreshed."""


class CredentialsRejected(AccessDenied):
    """The origin does not know them, or a signature made with them is not the one it expects."""


class ClockSkew(AccessDenied):
    """The origin refuses signatures because this host's clock is wrong."""


class SocketDenied(AccessDenied):
    """The daemon's socket may not be opened by this user."""


class Precondition(WeightdError):
    """Not now: something else has to change first."""

    exit_code = 6


class AlreadyRunning(Precondition):
    """Another daemon holds the state directory or the socket; the message names it."""


class PathInTheWay(Precondition):
    """A symlink, directory or foreign file stands where a file is to be written."""


class ForkedClient(Precondition):
    """A connection that was opened before fork is used after it; the mapped tensors stay usable."""


class ModelLeased(Precondition):
    """Workers hold leases on the model; says who."""


class ModelPinned(Precondition):
    """The model is pinned, or hot by configuration."""


class ModelBusy(Precondition):
    """The model is being filled, or read by a verification."""


class LeaseEnded(Precondition):
    """The lease was released; views already taken stay valid, new ones are refused."""


class DependencyMissing(Precondition):
    """An optional package is needed for this and cannot be imported; the remedy names it."""


class SourceUnsupported(Precondition):
    """The origin gives the file only in a way that this version does not know."""


class SourceChanged(WeightdError):
    """The origin's file changed between resolving and receiving."""

    exit_code = 7


class Unavailable(WeightdError):
    """Try again later."""

    exit_code = 8


class SourceUnavailable(Unavailable):
    """The origin cannot be reached, refuses connections, stalls or breaks off, after the retries.

    `retry_after`: seconds until the origin wants to be asked again, where it said so (RFC 9110, Retry-After).
    """

    retry_after: float | None = None


class DaemonUnavailable(Unavailable):
    """No daemon answers on the socket, or it ended during the call."""


class Draining(Unavailable):
    """The daemon is stopping and takes no new work."""


class TimedOut(Unavailable):
    """The caller's own limit of time has passed."""


class Exhausted(WeightdError):
    """A budget, disk or shared memory is full: says how much is missing."""

    exit_code = 9


class BudgetExceeded(Exhausted):
    """A tier's budget cannot hold what was asked for; says what holds it."""


class DiskFull(Exhausted):
    """The file system below a directory is full."""


class ShmFull(Exhausted):
    """The file system of shared memory is full."""


class TooSlow(Exhausted):
    """A reader of events fell too far behind."""


class Corruption(WeightdError):
    """Bytes that fail their check. They were not published."""

    exit_code = 10


class DigestMismatch(Corruption):
    """The whole file's SHA-256 is not the expected one."""


class CrcMismatch(Corruption):
    """The whole file's CRC is not the one that its origin gave."""


class GitIdMismatch(Corruption):
    """The whole file is not the git blob that its origin listed."""


class SizeMismatch(Corruption):
    """More or fewer bytes than were promised."""


class ChecksumMismatch(Corruption):
    """A part's xxh3-128 is not the recorded one."""


class FormatError(Corruption):
    """A safetensors header that the reference library would refuse."""


def all_errors() -> dict[str, type[WeightdError]]:
    """Every class by name, the base among them; the wire restores classes from this."""
    found: dict[str, type[WeightdError]] = {}
    todo: list[type[WeightdError]] = [WeightdError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found
