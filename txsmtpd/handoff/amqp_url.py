"""Parses the AMQP URIs of RabbitMQ's clients. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True)
class Address:
    """The address of a broker, with credentials.

    >>> Address.parse("amqps://mail:secret@mq.example.com/prod")
    Address(host='mq.example.com', port=5671, virtual_host='prod', user='mail', tls=True)
    """

    host: str
    port: int
    virtual_host: str
    user: str
    password: str = field(repr=False)
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse ``amqp[s]://[USER[:PASSWORD]@]HOST[:PORT][/VHOST]``. Default user: guest; default virtual host: /.

        :raises ValueError: if it is not an AMQP URI. The message does not contain the password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("not the URL of a broker, such as amqp://USER:PASSWORD@mq.example.com/VHOST")
        if parts.query or parts.fragment:
            raise ValueError("parameters in the URL of a broker are not supported; use options")
        path = parts.path.removeprefix("/")
        if "/" in path:
            raise ValueError("a slash in the name of a virtual host must be written as %2F")
        user = "guest" if parts.username is None else unquote(parts.username)
        password = user if parts.password is None else unquote(parts.password)
        return cls(
            parts.hostname,
            PORTS[parts.scheme] if port is None else port,
            unquote(path) or "/",
            user,
            password,
            parts.scheme == "amqps",
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
