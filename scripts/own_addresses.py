"""Addresses by which other machines may reach this one. Standard library only; nothing is sent."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from pathlib import Path

ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""An address of each family that nobody has (RFC 5737, RFC 3849): the way there is the default route."""
FIB_TRIE, IF_INET6 = Path("/proc/net/fib_trie"), Path("/proc/net/if_inet6")
GLOBAL = "00"
"""Scope of an IPv6 address that others can use without naming one of their own interfaces."""


def own_addresses() -> list[str]:
    """Return the address that the default route leaves from, or without one all that this machine has."""
    for family, nobody in ELSEWHERE:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((nobody, 9))
            return [str(probe.getsockname()[0])]
    found = [ipaddress.ip_address(address) for address in _of_interfaces()]
    return [str(a) for a in dict.fromkeys(found) if not (a.is_loopback or a.is_link_local or a.is_unspecified)]


def _of_interfaces() -> list[str]:
    """Return the addresses of the network's interfaces: from Linux, elsewhere those that the machine's name has."""
    try:
        local = re.findall(r"\|-- (\S+)\s+/32 host LOCAL", FIB_TRIE.read_text())
    except OSError:
        with contextlib.suppress(OSError):
            return [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)]
        return []
    with contextlib.suppress(OSError):  # no IPv6
        for digits, _, _, scope, *_ in map(str.split, IF_INET6.read_text().splitlines()):
            if scope == GLOBAL:
                local.append(str(ipaddress.IPv6Address(int(digits, 16))))
    return local
