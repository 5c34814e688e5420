"""Command-line options of the servers in Python. Servers in other languages have the same options."""

from __future__ import annotations

import argparse
import os
import resource
import sys


def read(*, lmtp: bool = True, maildir: bool = True) -> argparse.Namespace:
    """Parse the options. If the server does not support one, exit with EX_UNAVAILABLE."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", help="offer STARTTLS with it")
    parser.add_argument("--key")
    parser.add_argument("--lmtp", action="store_true")
    parser.add_argument("--maildir", help="deliver there, instead of forgetting the message")
    parser.add_argument("--no-fsync", action="store_true", help="do not wait for the disk")
    parser.add_argument("--direct", action="store_true", help="the floor: send replies at once")
    options = parser.parse_args()
    if (options.lmtp and not lmtp) or (options.maildir and not maildir):
        unavailable()
    if options.no_fsync:
        os.fsync = os.fdatasync = lambda descriptor: None
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return options


def unavailable() -> None:
    """Exit, because the server does not support an option."""
    sys.exit(os.EX_UNAVAILABLE)
