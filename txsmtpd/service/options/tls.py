"""Options of TLS: the server's certificate and client certificates."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.python.usage import UsageError

from txsmtpd.service.exit_status import complain
from txsmtpd.service.options.table import Chosen, Group, Option, refusing
from txsmtpd.service.options.values import name, some_seconds
from txsmtpd.settings import Settings
from txsmtpd.tls.certificates import Certificates, load_authorities

AUTO = "auto"  # instead of a path: make a certificate

OPTIONS = (
    Option(
        name="tls",
        metavar="CERT[:KEY]",
        help="Certificate file, or a directory of them; or auto, for a temporary certificate in memory.",
    ),
    Option(name="require-starttls", help="Reject mail from clients without TLS."),
    Option(
        name="ca-out",
        metavar="FILE",
        help="File for the CA certificate of --tls=auto, for clients to trust.",
    ),
    Option(
        name="tls-client-ca",
        metavar="FILE",
        help="CA file for client certificates.",
    ),
    Option(name="require-client-certificate", help="Reject clients without a certificate of --tls-client-ca."),
    Option(
        name="tls-handshake-timeout",
        metavar="TIME",
        help="Timeout of the TLS handshake.",
        setting="tls_handshake_timeout",
        read=some_seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Load the certificate."""
    certificate = chosen.one("tls")
    client_ca = chosen.one("tls-client-ca")
    required = chosen.flag("require-client-certificate")
    starttls = chosen.flag("require-starttls")
    ca_out = chosen.one("ca-out")
    chosen["authority"] = None
    if certificate is None:
        for given in (*chosen.all("listen-tls"), client_ca, required, starttls, ca_out):
            if given is not None:
                raise UsageError(f"{given}: requires --tls, which names the certificate")
        return
    if required is not None and client_ca is None:
        raise UsageError(f"{required}: requires --tls-client-ca, which names their authorities")
    if client_ca is not None:
        with refusing(client_ca):
            load_authorities(name(client_ca.text))
    chosen.settings["require_starttls"] = starttls is not None
    if certificate.text == AUTO:
        if client_ca is not None:
            raise UsageError(f"{client_ca}: --tls={AUTO} does not request client certificates; use --tls=CERT")
        chosen.settings["tls_context"] = _own_certificate(chosen)
        return
    if ca_out is not None:
        raise UsageError(f"{ca_out}: requires --tls={AUTO}")
    with refusing(certificate):
        path, key = certificate_files(certificate.text)
        certificates = Certificates(
            path,
            key,
            client_ca=client_ca and client_ca.text,
            require_client_certificate=required is not None,
        )
    chosen.settings["tls_context"] = certificates
    chosen["reload"].append(certificates.reload)


def _own_certificate(chosen: Chosen) -> Any:
    """Return a certificate for the names of this host, made in memory."""
    from txsmtpd.tls.authority import LOCAL_NAMES, Authority, share_certificate, shared_certificate

    if chosen["worker"] is not None:  # all workers use the certificate that the master has made
        return shared_certificate(chosen["worker"].certificate)
    authority = Authority("txsmtpd --tls=auto")
    hostname = (Settings.make(None, {"hostname": chosen.settings.get("hostname")}).hostname or "localhost").strip("[]")
    names = tuple(dict.fromkeys((*LOCAL_NAMES, hostname.removeprefix("IPv6:"))))
    chosen["authority"] = authority, names
    issued = authority.issue(*names)
    if chosen["workers"] > 1:
        chosen["shared_certificate"] = share_certificate(issued)
    return issued


def finish(chosen: Chosen) -> None:
    """Write the file of the certificate authority, which clients must trust, after all options have been checked."""
    if chosen["authority"] is None:
        return
    authority, names = chosen["authority"]
    ca_out = chosen.one("ca-out")
    where = "not saved; clients that verify certificates need it, see --ca-out=FILE"
    if ca_out is not None:
        with refusing(ca_out):
            try:
                authority.write(name(ca_out.text))
            except OSError as error:
                raise ValueError(error.strerror) from error
        where = ca_out.text
    told = f"--tls={AUTO}: temporary certificate for {', '.join(names)}; CA certificate: {where}"
    complain(told, sys.stderr)


def certificate_files(text: str) -> tuple[str, str | None]:
    """Split ``CERT[:KEY]`` into the file or directory of the certificate, and the file of the key or None.

    :raises ValueError: if one of them is empty.
    """
    if not text:
        raise ValueError("a certificate is needed: CERT[:KEY], or a DIRECTORY")
    if ":" not in text or os.path.exists(text):
        return text, None
    certificate, _, key = text.rpartition(":")
    if not certificate or not key:
        raise ValueError(f"the file of the {'key' if certificate else 'certificate'} is missing: give CERT[:KEY]")
    return certificate, key


GROUP = Group(title="TLS", options=OPTIONS, read=read, finish=finish)
