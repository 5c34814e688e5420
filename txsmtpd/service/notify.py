"""What systemd is told about the service, and expects to be told (sd_notify, systemd.service ``Type=notify``).

One datagram a message to the socket that ``NOTIFY_SOCKET`` names. No library is needed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

from twisted.logger import Logger

log = Logger(namespace="txsmtpd")


class Notifier:
    """Tells systemd what the service does.

    :param address: the path of systemd's socket; ``@`` stands for the NUL of an abstract one.
    :param watchdog: seconds within which :meth:`watchdog` must be called, again and again; None: it need not.
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self.watchdog_period = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier | None:
        """The one that the environment asks for, or None. It is taken out of the environment: processes that this one
        starts have nothing to tell.

        :param pid: the process that systemd wants to hear of, if it says so.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        period = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", str(pid))
        if not address.startswith(("/", "@")):
            return None
        watchdog = int(period) / 1e6 if period.isdecimal() and int(period) and watched == str(pid) else None
        return cls(address, watchdog)

    def ready(self, status: str = "") -> None:
        """All addresses are listened on; after a reload: it is done."""
        self._send("READY=1", f"MAINPID={os.getpid()}", status=status)

    def reloading(self) -> None:
        """A reload begins. ``Type=notify-reload`` needs the time to tell it from an earlier one."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float, status: str = "") -> None:
        """The service ends.

        :param seconds: how long that may take, whatever ``TimeoutStopSec`` is.
        """
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", status=status)

    def status(self, status: str) -> None:
        """What ``systemctl status`` shows, in one line."""
        self._send(status=status)

    def watchdog(self) -> None:
        """The service lives."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str, status: str = "") -> None:
        if status:
            lines += (f"STATUS={' '.join(status.split())}",)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warn("cannot notify systemd: {error}", error=error.strerror or str(error))
            self._failed = True
        else:
            self._failed = False
