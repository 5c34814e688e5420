"""Valid options that are probably mistakes: those that keep clients out, or leave passwords unprotected.

A protocol that was created without a factory logs them with :mod:`logging`, as aiosmtpd does. ``txsmtpd.run`` only
warns of options with which no client can authenticate. Factories raise exceptions for certain mistakes.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator

from txsmtpd.bridges.reactor_thread import LOGGER
from txsmtpd.settings import SHORT_PROXY_TIMEOUT, Settings, lacks_proxy_check

log = logging.getLogger(LOGGER)


def give_notice(settings: Settings) -> None:
    """Log the AUTH mechanisms, and the options that are probably mistakes."""
    for warning in [*_warnings(settings), *useless_auth(settings)]:
        log.warning("%s", warning)
    settings.warned.add("auth")
    if lacks_proxy_check(settings):
        log.error("proxy_protocol_timeout without proxy_from or handle_PROXY: every connection will be closed")
    log.info("Available AUTH mechanisms: %s", " ".join(settings.mechanisms) or "none")


def useless_auth(settings: Settings, in_tls: bool = False) -> Iterator[str]:
    """Return the options with which no client can authenticate, and their effect.

    :param in_tls: whether the endpoint provides TLS.
    """
    if settings.auth_required and not settings.mechanisms:
        yield "auth_required == True, but there is no authenticator: all mail will be rejected"
    if settings.mechanisms and settings.auth_require_tls and settings.tls_context is None and not in_tls:
        yield "auth_require_tls == True, but there is no tls_context: AUTH is never offered"


def _warnings(settings: Settings) -> Iterator[str]:
    context = getattr(settings.tls_context, "context", None)
    if isinstance(context, ssl.SSLContext):
        if context.verify_mode not in (ssl.CERT_NONE, ssl.CERT_OPTIONAL):
            yield (
                "tls_context.verify_mode not in (CERT_NONE, CERT_OPTIONAL): each client needs a certificate, which"
                " might cause client connection problems"
            )
        elif context.check_hostname:
            yield (
                "tls_context.check_hostname == True: it is meant for clients, and might cause client connection"
                " problems"
            )
    if settings.auth_required and not settings.auth_require_tls:
        yield "auth_required == True and auth_require_tls == False: clients may send passwords without TLS"
    if settings.proxy_protocol_timeout is not None and settings.proxy_protocol_timeout < SHORT_PROXY_TIMEOUT:
        yield f"proxy_protocol_timeout < {SHORT_PROXY_TIMEOUT}: a lost packet is enough to exceed it"
