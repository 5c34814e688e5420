"""Notifies systemd of the state of the service (sd_notify(3), ``Type=notify`` in systemd.service(5)).

Each notification is one datagram to the socket that ``NOTIFY_SOCKET`` names. No library is needed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

from twisted.logger import Logger

log = Logger(namespace="txsmtpd")


class Notifier:
    """Sends notifications to systemd.

    :param address: the path of systemd's socket; a leading ``@`` stands for the NUL of an abstract socket.
    :param watchdog: the longest time in seconds between two calls of :meth:`watchdog`. None: there is no watchdog.
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self.watchdog_period = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier | None:
        """Return the notifier that the environment asks for, or None.

        :param environ: its variables are removed, since child processes must not send notifications.
        :param pid: the ID of this process. The watchdog is off if systemd names another one.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        period = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", str(pid))
        if not address.startswith(("/", "@")):
            return None
        watchdog = int(period) / 1e6 if period.isdecimal() and int(period) and watched == str(pid) else None
        return cls(address, watchdog)

    def ready(self, status: str = "") -> None:
        """Report that the server listens on all addresses, or that a reload has ended."""
        self._send("READY=1", f"MAINPID={os.getpid()}", status=status)

    def reloading(self) -> None:
        """Report that a reload begins, with its time, which ``Type=notify-reload`` requires."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float, status: str = "") -> None:
        """Report that the service stops.

        :param seconds: the time that this may take, even if ``TimeoutStopSec`` is shorter.
        """
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", status=status)

    def status(self, status: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(status=status)

    def watchdog(self) -> None:
        """Report that the service is alive."""
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
