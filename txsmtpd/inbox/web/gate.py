"""Who may ask: the Host that a request names, and the origin that it comes from. Plain functions of header values.

A page of another site can make a browser send requests here. If it has let its own name point to this address (DNS
rebinding), the browser even thinks that they are of the same origin; so names are checked first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def host_name(host: str) -> str | None:
    """The name in a Host field, in lower case, without the port; None if it is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].lower().removesuffix(".")


def host_is_ours(host: str, names: Collection[str] = ()) -> bool:
    """Whether a Host field names this server: by an IP address, as localhost, by a name without dots, or by one that
    was configured.

    A name of the public DNS has a dot, so nobody else can let one of these point here.
    """
    name = host_name(host)
    if name is None:
        return False
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        # What ends in a number is an address to a browser, in one of many spellings.
        return "." not in name and not name.startswith("[") and not re.fullmatch("0x[0-9a-f]*|[0-9]+", name)
    return True


def origin_is_ours(host: str, origins: Sequence[str], fetch_site: str | None, allowed: Collection[str] = ()) -> bool:
    """Whether a request may change something, or listen.

    :param host: the Host field.
    :param origins: the Origin fields.
    :param fetch_site: the field Sec-Fetch-Site, which scripts cannot set; None without one.
    :param allowed: other origins that may.
    """
    if len(origins) > 1:
        return False
    if origins and origins[0].lower() in allowed:
        return True
    if fetch_site not in (None, "same-origin", "none"):
        return False
    if not origins:
        return True
    # Whole origins are compared. Behind a proxy that ends TLS, the scheme may be the other one.
    return origins[0].lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def make_origin(text: str) -> str:
    """An origin as browsers write it.

    :raises ValueError: if it is none.
    """
    origin = text.strip().lower().removesuffix("/")
    match = re.fullmatch(r"(https?)://([^/?#@\s*]+)", origin)
    if match is None or host_name(match[2]) is None:
        raise ValueError("not an origin such as http://localhost:3000")
    return origin.removesuffix(":80" if match[1] == "http" else ":443")


def make_host(text: str) -> str:
    """A name for this server.

    :raises ValueError: if it is none.
    """
    name = host_name(text.strip())
    if name is None or name != text.strip().lower().removesuffix("."):
        raise ValueError("not a host name such as mail.example.com")
    return name
