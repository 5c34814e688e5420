"""Options of AUTH: password checkers and required authentication."""

from __future__ import annotations

import warnings

from twisted.python.usage import UsageError

from txsmtpd.service.checkers import make_checker, portal_of
from txsmtpd.service.options.table import Chosen, Given, Group, Option, refusing
from txsmtpd.service.options.values import count, or_none, seconds, some

OPTIONS = (
    Option(
        name="auth",
        metavar="CHECKER",
        many=True,
        help="Password checker, such as file:/path. See --help-auth.",
    ),
    Option(name="require-auth", help="Reject mail from clients that have not authenticated."),
    Option(name="auth-without-tls", help="Allow AUTH without TLS."),
    Option(
        name="auth-failure-limit",
        metavar="N",
        help="Failed authentications before the connection is closed.",
        setting="auth_failure_limit",
        read=or_none(count),
    ),
    Option(
        name="auth-attempt-limit",
        metavar="N",
        help="AUTH commands allowed in one connection.",
        setting="auth_attempt_limit",
        read=or_none(some),
    ),
    Option(
        name="auth-failure-delay",
        metavar="TIME",
        help="Delay of the reply to a failed authentication.",
        setting="auth_failure_delay",
        read=seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Make a portal of all checkers."""
    checkers = chosen.all("auth")
    required, without_tls = chosen.flag("require-auth"), chosen.flag("auth-without-tls")
    if not checkers:
        for given in required, without_tls:
            if given is not None:
                raise UsageError(f"{given.where}: requires --auth, which names the password checker")
        return
    found = []
    for given in checkers:
        # Error messages must not quote the rest of the text, which may contain passwords.
        with refusing(Given(given.where, given.text.partition(":")[0])):
            found.append(make_checker(given.text))
    if without_tls is None and "tls_context" not in chosen.settings:
        raise UsageError(
            f"{checkers[0].where}: passwords would be sent without TLS; add --tls, or --auth-without-tls to allow it"
        )
    if without_tls is not None:
        # This warning is for programs. Users of the command line have given the option that allows it, and the process
        # has no other settings.
        warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS", UserWarning)
    chosen.settings.update(
        portal=portal_of(found), auth_required=required is not None, auth_require_tls=without_tls is None
    )


GROUP = Group(title="Authentication", options=OPTIONS, read=read)
