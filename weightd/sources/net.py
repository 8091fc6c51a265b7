"""Faults of the network, named once for both sides of HTTP. Every text here is free of credentials."""

from __future__ import annotations

import http.client
import os
import socket
import ssl

from weightd.core.errors import AccessDenied, SourceUnavailable, WeightdError
from weightd.core.ranges import is_transient

LATER = "Try again later."
PROXY = "Check http.proxy in the configuration, or HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment."


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
        remedy="Check the certificate; a private authority is trusted through http.ca_file or SSL_CERT_FILE.",
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


def through(proxy: str) -> str:
    """What follows an address that is reached by `proxy`, which here and below is its name."""
    return f" through the proxy {proxy}"


def of_proxy_connect(e: OSError, proxy: str, timeout: float) -> WeightdError:
    """No connection to the proxy itself."""
    if isinstance(e, socket.gaierror):
        reason = "its name cannot be resolved"
    elif isinstance(e, TimeoutError):
        reason = f"nothing answered within {timeout:g} s"
    else:
        reason = os.strerror(e.errno) if e.errno else type(e).__name__
    return SourceUnavailable(f"no connection to the proxy {proxy}: {reason}", remedy=PROXY)


def of_tunnel(e: OSError | http.client.HTTPException, proxy: str, to: str, timeout: float) -> WeightdError:
    """The proxy gave no answer, or none that is HTTP, when it was asked for a connection."""
    if isinstance(e, TimeoutError):
        reason = f"gave no answer within {timeout:g} s"
    elif isinstance(e, OSError):
        reason = "broke off the connection"
    else:
        reason = "sent no valid HTTP answer"
    return SourceUnavailable(f"the proxy {proxy}, asked for {to}, {reason}", remedy=PROXY)


def tunnel_refused(status: int, proxy: str, to: str) -> WeightdError:
    """What it answered to CONNECT, other than 2xx."""
    if status == 407:
        return proxy_denied(proxy)
    text = f"the proxy {proxy}, asked for {to}, answered {status}"
    if status in (401, 403, 451):
        return AccessDenied(f"{text}: it refuses this origin", remedy=f"Have it allowed there. {PROXY}")
    return SourceUnavailable(text, remedy=LATER if is_transient(status) else PROXY)


def proxy_denied(proxy: str) -> WeightdError:
    """407."""
    return AccessDenied(
        f"the proxy {proxy} answered 407: it refuses the user and password, or wants some",
        remedy=f"Give those of the proxy {proxy}: http://user:password@host:port in http.proxy or HTTPS_PROXY.",
    )
