"""The program ``txsmtpd``: the same as ``twist smtpd``, with the same options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from txsmtpd.service.exit_status import name_command


def main(args: Sequence[str] | None = None) -> None:
    """Run the server until a signal stops it.

    :param args: the options. Default: the arguments of the process.
    """
    from twisted.application.twist._twist import Twist

    name_command("txsmtpd")
    Twist.main(["txsmtpd", "smtpd", *(sys.argv[1:] if args is None else args)])
