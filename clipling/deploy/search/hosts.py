"""By whom and under which name a service may be asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from clipling.deploy.search.limits import App, Layer, Receive, Scope, Send, answer


class Hosts:
    """Names by which a service may be called. A page elsewhere whose name was made to lead here (DNS rebinding) has another."""

    def __init__(self, bound: str, names: Iterable[str] = ()) -> None:
        """bound: the address that is listened on. names: others, as a proxy in front passes them on."""
        self.loopback = is_loopback(bound)
        self.names = {"localhost", bound.lower(), *(name.lower() for name in names)}

    def allow(self, host: str) -> bool:
        name = host_name(host)
        if name is None:
            return False
        if name in self.names:
            return True
        try:  # an address is nobody's name: rebinding needs a name
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(host: str) -> str | None:
    """`localhost:8000` -> `localhost`, `[::1]:80` -> `::1`; None for what is no host."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if bracket else "x"
    else:
        name, _, port = host.partition(":")
    return name.lower() if name and (not port or (port.isascii() and port.isdigit())) else None


class Form(Layer):
    """The outer form of a request: one known host, no foreign origin for what changes anything, a query of bounded length."""

    def __init__(self, app: App, url: int, hosts: Hosts) -> None:
        super().__init__(app)
        self.url, self.hosts = url, hosts

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        given: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = given.get(b"host", [])
        if len(hosts) != 1 or not self.hosts.allow(hosts[0]):
            await answer(send, 421, "this service does not answer by that host name (clipling search serve --name NAME allows one)")
        elif len(scope.get("query_string", b"")) > self.url or len(scope["path"]) > self.url:
            await answer(send, 414, f"the address is longer than {self.url} bytes")
        elif scope["method"] not in ("GET", "HEAD") and not _own(given, hosts[0]):
            await answer(send, 403, "a page from elsewhere may not send this")
        else:
            await self.app(scope, receive, send)


def _own(given: dict[bytes, list[str]], host: str) -> bool:
    """Whether no page, or one of this service, made the request."""
    origins = given.get(b"origin", [])
    if given.get(b"sec-fetch-site", ["same-origin"])[0] not in ("same-origin", "none"):
        return False
    return all(origin.partition("://")[2].lower() == host.lower() for origin in origins)
