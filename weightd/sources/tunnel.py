"""Ask a proxy for a connection to an origin (RFC 9110 §9.3.6)."""

from __future__ import annotations

import http.client
import socket

from weightd.sources import net
from weightd.sources.answers import Answer
from weightd.sources.proxies import Proxy
from weightd.sources.urls import Origin


def open_tunnel(sock: socket.socket, origin: Origin, proxy: Proxy, agent: str) -> None:
    """Afterwards `sock`, which has a timeout, leads to `origin`.

    Raises AccessDenied or SourceUnavailable, which name the proxy.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}", f"User-Agent: {agent}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        response = Answer(sock, method="CONNECT")
        try:
            response.begin()
        finally:
            response.close()
    except (OSError, http.client.HTTPException) as e:
        raise net.of_tunnel(e, proxy.name, origin.header, sock.gettimeout() or 0.0) from None
    if not 200 <= response.status < 300:
        raise net.tunnel_refused(response.status, proxy.name, origin.header)
