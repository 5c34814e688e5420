"""The program ``txsmtpd``: ``twist smtpd`` by a name of its own, with the same options."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the server until it is told to stop.

    :param args: the options. Default: those of the process.
    """
    from twisted.application.twist._twist import Twist

    Twist.main(["txsmtpd", "smtpd", *(sys.argv[1:] if args is None else args)])
