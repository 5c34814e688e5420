"""txsmtpd as users start it: the command ``txsmtpd`` with a built-in handler, and its log on standard error.

Arguments after ``--`` are additional options of the command, such as ``--log-level=error``.
"""

from __future__ import annotations

import sys

import options

from txsmtpd.service.console import main as txsmtpd


def command_line(more: list[str]) -> list[str]:
    """Convert the options of the benchmark's servers to options of the command."""
    told = options.read()
    words = ["--hostname=localhost"]
    words.append(f"--handler=mailbox:{told.maildir}" if told.maildir else "--handler=sink")
    listen = "listen-lmtp" if told.lmtp else "listen"
    words.append(f"--{listen}=tcp:{told.port}:interface=127.0.0.1:backlog=1024")
    if told.certificate:
        words.append(f"--tls={told.certificate}:{told.key}")
    return [*words, *more]


if __name__ == "__main__":
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sys.argv, more = sys.argv[:place], sys.argv[place + 1 :]
    txsmtpd(command_line(more))
