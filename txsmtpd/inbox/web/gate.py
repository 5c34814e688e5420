"""Checks the Host and the origin of requests. Plain functions of header values.

A page of another site can make a browser send requests to this server. If that site points its own name to this
address (DNS rebinding), the browser even treats them as same-origin. So host names are checked first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def host_name(host: str) -> str | None:
    """Return the name in a Host field, in lower case and without the port, or None if it is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].lower().removesuffix(".")


def host_is_ours(host: str, names: Collection[str] = ()) -> bool:
    """Return True if a Host field names this server: an IP address, localhost, a name without dots, or a configured
    name.

    Names in the public DNS have a dot, so no other site can point any of these to this server.
    """
    name = host_name(host)
    if name is None:
        return False
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        # Browsers treat a name that ends in a number as an IP address, which has many spellings.
        return "." not in name and not name.startswith("[") and not re.fullmatch("0x[0-9a-f]*|[0-9]+", name)
    return True


def origin_is_ours(host: str, origins: Sequence[str], fetch_site: str | None, allowed: Collection[str] = ()) -> bool:
    """Return True if a request may change something, or receive events.

    :param host: the Host field.
    :param origins: the Origin fields.
    :param fetch_site: the Sec-Fetch-Site field, which scripts cannot set, or None.
    :param allowed: other allowed origins.
    """
    if len(origins) > 1:
        return False
    if origins and origins[0].lower() in allowed:
        return True
    if fetch_site not in (None, "same-origin", "none"):
        return False
    if not origins:
        return True
    # Compare whole origins. Behind a proxy that terminates TLS, the scheme may differ.
    return origins[0].lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def make_origin(text: str) -> str:
    """Normalize an origin to the form that browsers send.

    :raises ValueError: if it is not an origin.
    """
    origin = text.strip().lower().removesuffix("/")
    match = re.fullmatch(r"(https?)://([^/?#@\s*]+)", origin)
    if match is None or host_name(match[2]) is None:
        raise ValueError("not an origin such as http://localhost:3000")
    return origin.removesuffix(":80" if match[1] == "http" else ":443")


def make_host(text: str) -> str:
    """Normalize a host name of this server.

    :raises ValueError: if it is not a host name.
    """
    name = host_name(text.strip())
    if name is None or name != text.strip().lower().removesuffix("."):
        raise ValueError("not a host name such as mail.example.com")
    return name
