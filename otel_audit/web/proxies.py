"""Who the client is when proxies stand in between.

A forwarding header is a claim that anybody can make. This module promises to
believe it only as far as it was written by configured proxies: starting from
the peer of the connection it walks the header from the right, and the first
address that is not a trusted proxy is the client. Garbage never raises; the
walk ends there, at the last address that somebody trusted vouched for.

Only one of the two headers is ever read. A proxy that maintains one of them
passes the other one through as the client sent it, so to fall back from one
to the other would be to believe the client.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditSettingsError
from otel_audit.settings import FORWARDED_HEADERS, UNIX_PEER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MOST_HOPS: Final = 32  # a longer chain is made up, and each step costs time
_MOST_BYTES: Final = 8192  # 32 hops of the longest form fit; the rest was put there to be slow

_MAPPED_PREFIX: Final = "::ffff:"

# RFC 7239, section 4: pairs, `token "=" ( token / quoted-string )`, separated by ";",
# elements by ",". A quoted string may hold both separators. Every alternative starts
# with a different character and each quantifier is bounded by one, so it runs in linear time.
_FORWARDED_PIECE: Final = re.compile(
    r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s",;]*)\s*(;|,|$)|\s*(,|;)"""
)
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


class TrustedProxies:
    """The networks whose forwarding header is believed.

    ``client_ip`` MUST return an address that a trusted proxy or the connection
    itself reported, whatever the header says.
    """

    __slots__ = ("_networks", "_trusted", "_unix", "header")

    def __init__(self, networks: Iterable[str] = (), *, header: str = FORWARDED_HEADERS[0]) -> None:
        """Take addresses and CIDR networks, and ``unix`` for peers on a Unix socket.

        ``header`` is the one that the proxies maintain: ``x-forwarded-for`` or
        ``forwarded`` (RFC 7239). Raises `AuditSettingsError`.
        """
        lowered = header.lower()
        if lowered not in FORWARDED_HEADERS:
            message = (
                f"proxy_header={header!r} cannot be used: client addresses are read from "
                f"{' or '.join(FORWARDED_HEADERS)}; name the one that your proxy writes"
            )
            raise AuditSettingsError(message)
        self.header = lowered.encode("ascii")
        names = [networks] if isinstance(networks, str) else list(networks)
        self._unix = UNIX_PEER in names
        self._networks = tuple(_network(name) for name in names if name != UNIX_PEER)
        # One cache an instance: the answer depends on this list of networks.
        self._trusted = lru_cache(maxsize=1024)(self._is_trusted)

    def __bool__(self) -> bool:
        """Tell whether any proxy is trusted, so that the header need not be read else."""
        return self._unix or bool(self._networks)

    def client_ip(self, peer: str | None, values: Sequence[bytes]) -> str | None:
        """Return the client's address in canonical form, or None when nothing is known.

        ``peer`` is the other end of the connection, ``values`` are the header's
        lines in the order of arrival.
        """
        if peer:
            known = normalized(peer)
            if known is None or not self._trusted(known):
                return known
        elif self._unix:
            known = None
        else:
            return None
        for hop, address in enumerate(self._claims(values)):
            if address is None or hop == _MOST_HOPS:
                break
            known = address
            if not self._trusted(address):
                break
        return known

    def _is_trusted(self, address: str) -> bool:
        parsed = ip_address(address)
        return any(_contains(network, parsed) for network in self._networks)

    def _claims(self, values: Sequence[bytes]) -> Iterator[str | None]:
        """Yield the claimed addresses from the nearest to the farthest; None for garbage."""
        text = b",".join(values)[-_MOST_BYTES:].decode("latin-1")
        if self.header == b"forwarded":
            yield from (_node(claim) for claim in reversed(forwarded_for(text)))
        else:
            yield from (_node(claim) for claim in reversed(text.split(",")))


def forwarded_for(text: str) -> list[str]:
    """Return the ``for`` parameter of each element of a ``Forwarded`` header (RFC 7239).

    Elements without one, and whatever does not follow the grammar, give "".
    """
    found: list[str] = []
    current = ""
    position = 0
    while position < len(text):
        match = _FORWARDED_PIECE.match(text, position)
        if match is None:
            # Where elements begin and end is unknown from here on, so nothing to the left of
            # the next readable comma may lend its credit to anything.
            found.append("")
            current = ""
            comma = text.find(",", position)
            position = len(text) if comma < 0 else comma + 1
            continue
        position = match.end()
        if match[1] is not None and match[1].lower() == "for":
            current = _unquoted(match[2])
        if "," in (match[3], match[4]):
            found.append(current)
            current = ""
    found.append(current)
    return found


@lru_cache(maxsize=4096)
def normalized(address: str) -> str | None:
    """Return the canonical text of an IP address (RFC 5952), or None when it is none.

    An IPv4 address in IPv6 clothes, as dual-stack listeners report it, is
    undressed, so that one client has one name. A zone (``%eth0``, RFC 4007)
    means something on one host only, may hold any text, and is left out.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(name.strip(), strict=False)
    except ValueError as error:
        message = (
            f"trusted proxy {name!r} cannot be used: {error}; expected an address such as "
            f"10.0.0.7, a network such as 10.0.0.0/8, or {UNIX_PEER!r}"
        )
        raise AuditSettingsError(message) from None


def _contains(network: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> bool:
    return address.version == network.version and address in network


def _node(claim: str) -> str | None:
    """Read a node: an address, with or without port, IPv6 in brackets (RFC 7239, section 6).

    ``unknown`` and obfuscated identifiers (``_hidden``) are no addresses.
    """
    text = claim.strip()
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        is_node = bool(bracket) and (not port or port.startswith(":"))
        return normalized(address) if is_node else None
    if text.count(":") == 1:
        text = text.partition(":")[0]
    return normalized(text)


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        return _QUOTED_PAIR.sub(r"\1", value[1:-1])
    return value
