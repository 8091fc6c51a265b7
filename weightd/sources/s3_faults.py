"""From botocore's exceptions to ours.

Of what a server says, its code is repeated, and nothing else: its text may repeat a request's signature and key.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from botocore import exceptions as b
from botocore.parsers import ResponseParserError

from weightd.core.errors import (
    BucketNotFound,
    ClockSkew,
    ConfigError,
    CredentialsExpired,
    CredentialsMissing,
    CredentialsRejected,
    InvalidArgument,
    Precondition,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
    WrongRegion,
)
from weightd.core.ranges import asked_to_wait, is_transient
from weightd.core.refs import redact

BUSY: Final = frozenset(
    {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
)
_GONE = frozenset({"NoSuchKey", "NoSuchVersion", "NotFound", "404", "MethodNotAllowed", "405"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REJECTED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"})
_REGION = frozenset(
    {
        *("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        *("TemporaryRedirect", "301", "307"),
    }
)
_CODE = re.compile(r"[A-Za-z0-9.]{1,60}")
_AGAIN = "Try again later."
WHERE_FROM: Final = (
    "They come from [[credentials]] in the configuration, from the daemon's environment (AWS_ACCESS_KEY_ID,"
    " AWS_PROFILE, AWS_WEB_IDENTITY_TOKEN_FILE), from ~/.aws of its user, or from the role of its container or machine;"
    " for public buckets set anonymous = true."
)


def is_missing(e: Exception) -> bool:
    """The object is not there; or, of a HEAD, perhaps its bucket."""
    return isinstance(e, b.ClientError) and code_of(e) in _GONE


def status_of(e: Exception) -> int:
    """Of the HTTP answer, 0 where there was none."""
    response: Mapping[str, Any] = getattr(e, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(e: b.ClientError) -> str:
    """S3's own word; of an answer without a body, its status."""
    code = str(e.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else "an unknown code"


def headers_of(e: Exception) -> dict[str, str]:
    """By name in lower case."""
    response: Mapping[str, Any] = getattr(e, "response", {})
    found = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return {str(k).lower(): str(v) for k, v in found.items()}


def translated(e: Exception, what: str, endpoint: str) -> WeightdError:
    """`what` was asked for, such as "s3://bucket/key", of the server `endpoint`."""
    if isinstance(e, b.ClientError):
        return _answered(e, what, endpoint)
    return _credentials(e) or _setting(e) or _network(e, endpoint)


def _answered(e: b.ClientError, what: str, endpoint: str) -> WeightdError:
    code, status = code_of(e), status_of(e)
    if e.operation_name.startswith("AssumeRole") and code not in BUSY and status < 500:
        return CredentialsRejected(
            f"the token service refused the role of the daemon ({code})",
            remedy="Check the role, its trust policy and the token that it is assumed with.",
        )
    text = f"{what}: {endpoint} answered {code}"
    if code == "NoSuchBucket":
        return BucketNotFound(
            f"{text}: no such bucket", remedy="Check the bucket's name, and s3.endpoint and s3.region for it."
        )
    if code in _GONE:
        return SourceNotFound(f"{text}: no such object", remedy="Check the key; the prefix of a model ends in '/'.")
    if code == "RequestTimeTooSkewed":
        return ClockSkew(
            f"{text}: this host's clock is {_skew(e)} the server's",
            remedy="Set this host's clock, by NTP (timedatectl set-ntp true).",
        )
    if code in _EXPIRED:
        return CredentialsExpired(f"{text}: the credentials have expired", remedy=f"Renew them. {WHERE_FROM}")
    if code in _REJECTED:
        return CredentialsRejected(f"{text}: the credentials are not accepted", remedy=f"Check them. {WHERE_FROM}")
    if code in _REGION or (status in (301, 307) and "x-amz-bucket-region" in headers_of(e)):
        return _region(e, text)
    return _of_status(e, code, status, text)


def _of_status(e: b.ClientError, code: str, status: int, text: str) -> WeightdError:
    if code == "InvalidObjectState":
        return Precondition(f"{text}: the object is archived", remedy="Restore it from the archive first.")
    if status in (401, 403):
        return SourceDenied(
            f"{text}: access refused",
            remedy="The credentials need s3:GetObject on the objects, s3:ListBucket on the bucket, and kms:Decrypt"
            " where it is encrypted with a key of its own; a bucket whose requester pays needs requester_pays = true.",
        )
    if status == 412:
        return SourceChanged(f"{text}: the object is another version now", remedy="Fetch the model again.")
    if is_transient(status) and headers_of(e).get("content-type", "").startswith("text/html"):
        return SourceUnavailable(f"{text}, which is no answer of S3", remedy="Check s3.endpoint, and try again later.")
    if code in BUSY or is_transient(status):
        error = SourceUnavailable(f"{text}: the server is busy or in trouble", remedy=_AGAIN)
        error.retry_after = asked_to_wait(headers_of(e), time.time()) or None
        return error
    if code == "NotImplemented":
        return SourceUnavailable(f"{text}: the server cannot do this", remedy="Check that s3.endpoint speaks S3.")
    return InvalidArgument(
        f"{text} ({status}): the request is refused", remedy="Check s3.endpoint, s3.region, s3.addressing and the ref."
    )


def _region(e: b.ClientError, text: str) -> WeightdError:
    error = e.response.get("Error", {})
    said = str(error.get("Region") or headers_of(e).get("x-amz-bucket-region") or error.get("Endpoint") or "")
    if not said and (moved := headers_of(e).get("location", "")):
        return InvalidArgument(
            f"{text}: it redirects to {_origin(moved)}", remedy="Set s3.endpoint to where it leads, if that is meant."
        )
    told = f", it is in {said}" if re.fullmatch(r"[A-Za-z0-9.-]{1,255}", said) else ""
    return WrongRegion(
        f"{text}: the bucket is not in the region that was asked{told}",
        remedy="Set region, and endpoint if it has one of its own, in [s3] or under [[credentials]] for the bucket.",
    )


def _origin(url: str) -> str:
    parts = urlsplit(redact(url))
    return f"{parts.scheme}://{parts.netloc}"[:255] if parts.netloc else "another path"


def _skew(e: b.ClientError) -> str:
    try:
        server = email.utils.parsedate_to_datetime(headers_of(e).get("date", "")).timestamp()
    except ValueError:
        return "too far from"
    seconds = time.time() - server
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def _credentials(e: Exception) -> WeightdError | None:
    match e:
        case b.NoCredentialsError() | b.NoAuthTokenError():
            return CredentialsMissing("there are no credentials for S3", remedy=WHERE_FROM)
        case b.PartialCredentialsError():
            return CredentialsMissing(
                f"the credentials are incomplete: {str(e.kwargs.get('cred_var', ''))[:60]} is missing",
                remedy=WHERE_FROM,
            )
        case b.ProfileNotFound():
            return CredentialsMissing(
                f"there is no profile {str(e.kwargs.get('profile', ''))[:80]!r}",
                remedy="Check profile, AWS_PROFILE and AWS_CONFIG_FILE, and which user's ~/.aws the daemon reads.",
            )
        case b.UnauthorizedSSOTokenError() | b.SSOTokenLoadError() | b.TokenRetrievalError():
            return CredentialsExpired("the single sign-on session has ended", remedy="Log in again (aws sso login).")
        case RuntimeError() if "redentials were refreshed" in str(e):
            return CredentialsExpired(
                "what gives the credentials gives expired ones", remedy=f"Check what gives them. {WHERE_FROM}"
            )
        case json.JSONDecodeError():
            return CredentialsMissing(
                "what gives the credentials answers no JSON", remedy=f"Check what gives them. {WHERE_FROM}"
            )
        case b.CredentialRetrievalError() | b.MetadataRetrievalError() | b.RefreshWithMFAUnsupportedError():
            provider = str(e.kwargs.get("provider", "its role"))[:60]
            return CredentialsMissing(
                f"the credentials could not be had from {provider}", remedy=f"Check what gives them. {WHERE_FROM}"
            )
        case b.InvalidConfigError() | b.ConfigParseError() | b.InfiniteLoopConfigError() | b.ConfigNotFound():
            return CredentialsMissing("the AWS configuration cannot be used", remedy="Check ~/.aws/config.")
        case _:
            return None


def _setting(e: Exception) -> WeightdError | None:
    match e:
        case b.InvalidRegionError():
            return ConfigError("the region is not a valid name", remedy="Check region in [s3], and AWS_REGION.")
        case b.ParamValidationError() | b.EndpointProviderError() | b.NoRegionError() | ValueError():
            return ConfigError(
                "no request can be made for this ref with these settings",
                remedy="Check endpoint (https://host:port), region and addressing in [s3], and the bucket's name.",
            )
        case _:
            return None


def _network(e: Exception, endpoint: str) -> WeightdError:
    remedy = "Check s3.endpoint, AWS_ENDPOINT_URL, the network, and http.proxy."
    match e:
        case b.SSLError():
            return SourceUnavailable(
                f"no secure connection to {endpoint}",
                remedy="Check the certificate; a private authority is trusted through http.ca_file or SSL_CERT_FILE.",
            )
        case b.ProxyConnectionError():
            return SourceUnavailable(f"no connection to {endpoint} through the proxy", remedy=remedy)
        case b.ConnectTimeoutError() | b.EndpointConnectionError():
            return SourceUnavailable(f"no connection to {endpoint}", remedy=remedy)
        case b.ReadTimeoutError() | TimeoutError():
            return SourceUnavailable(f"{endpoint} does not answer in time", remedy=_AGAIN)
        case ResponseParserError():
            return SourceUnavailable(f"{endpoint} does not speak S3", remedy="Check s3.endpoint.")
        case _:
            return SourceUnavailable(f"{endpoint}: the request failed ({type(e).__name__})", remedy=_AGAIN)
