"""Faults of the network, named once for both sides of HTTP. Every text here is free of credentials."""

from __future__ import annotations

import http.client
import os
import socket
import ssl

from weightd.core.errors import SourceUnavailable, WeightdError

LATER = "Try again later."


class Crawling(TimeoutError):
    """Bytes come, and too few to wait for the rest."""


def unresolved(host: str) -> WeightdError:
    """DNS has no address."""
    return SourceUnavailable(f"the host name {host!r} cannot be resolved", remedy="Check the spelling and DNS.")


def refused(host: str, port: int, reason: str) -> WeightdError:
    """Nothing listens, or no route."""
    return SourceUnavailable(
        f"no connection to {host} port {port}: {reason}", remedy="Check that the origin runs and can be reached."
    )


def connect_timeout(host: str, port: int, seconds: float) -> WeightdError:
    """The handshake did not end."""
    return SourceUnavailable(
        f"no connection to {host} port {port} within {seconds:g} s", remedy="Check the network, firewall and proxy."
    )


def tls_failed(host: str, reason: str) -> WeightdError:
    """A certificate that does not hold, or no TLS at all."""
    return SourceUnavailable(
        f"no secure connection to {host}: {reason}",
        remedy="Check the certificate; a private authority is trusted through SSL_CERT_FILE.",
    )


def stalled(where: str, seconds: float) -> WeightdError:
    """The connection is open and silent."""
    return SourceUnavailable(f"{where} stalled: nothing came for {seconds:g} s", remedy=LATER)


def crawled(where: str, seconds: float) -> WeightdError:
    """The connection is open and not silent, and brings next to nothing."""
    return SourceUnavailable(f"{where} crawls: next to nothing came in {seconds:g} s", remedy=LATER)


def broke_off(where: str) -> WeightdError:
    """The connection ended in the middle of something."""
    return SourceUnavailable(f"{where} broke off the connection", remedy=LATER)


def not_http(where: str) -> WeightdError:
    """What came is no HTTP/1.1 answer."""
    return SourceUnavailable(f"{where} sent no valid HTTP answer", remedy="Check that the port speaks HTTP.")


def aborted(where: str) -> WeightdError:
    """Our own doing."""
    return SourceUnavailable(f"the transfer from {where} was aborted")


def ended_early(where: str, got: int, wanted: int) -> WeightdError:
    """A body, or file, shorter than promised."""
    return SourceUnavailable(f"{where} ended after {got} of {wanted} bytes", remedy=LATER)


def ssl_reason(e: ssl.SSLError) -> str:
    """What OpenSSL says, in words."""
    if isinstance(e, ssl.SSLCertVerificationError):
        return e.verify_message or "the certificate does not hold"
    return (e.reason or "TLS failed").lower().replace("_", " ")


def of_read(e: OSError | http.client.HTTPException, where: str, timeout: float) -> WeightdError:
    """A fault on an open connection."""
    if isinstance(e, Crawling):
        return crawled(where, timeout)
    if isinstance(e, TimeoutError):
        return stalled(where, timeout)
    if isinstance(e, http.client.HTTPException) and not isinstance(
        e, http.client.RemoteDisconnected | http.client.IncompleteRead
    ):
        return not_http(where)
    return broke_off(where)


def of_connect(e: OSError, host: str, port: int, timeout: float) -> WeightdError:
    """A fault before a connection was open."""
    if isinstance(e, socket.gaierror):
        return unresolved(host)
    if isinstance(e, TimeoutError):
        return connect_timeout(host, port, timeout)
    if isinstance(e, ssl.SSLError):
        return tls_failed(host, ssl_reason(e))
    return refused(host, port, os.strerror(e.errno) if e.errno else type(e).__name__)
