"""Notifies systemd of the state of the service (sd_notify(3), ``Type=notify`` in systemd.service(5)).

Each notification is one datagram to the socket that ``NOTIFY_SOCKET`` names. No library is needed. A change of the
state that cannot be sent, because systemd is busy and the socket's queue is full, is sent before the next notification:
without READY, systemd would end the service.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping

from twisted.logger import Logger

log = Logger(namespace="txsmtpd")

KEPT = 8  # maximum number of unsent changes of the state; older ones are outdated by then
FOREVER = 2**64 - 1  # microseconds; systemd's value for "infinity"


class Notifier:
    """Sends notifications to systemd.

    :param address: the path of systemd's socket; a leading ``@`` stands for the NUL of an abstract socket.
    :param watchdog: the longest time in seconds between two calls of :meth:`watchdog`. None: there is no watchdog.
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self.watchdog_period = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False
        self._unsent: deque[bytes] = deque(maxlen=KEPT)

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier | None:
        """Return the notifier that the environment asks for, or None.

        :param environ: its variables are removed, since child processes must not send notifications.
        :param pid: the ID of this process. The watchdog is off if systemd names another one.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        period = _microseconds(environ.pop("WATCHDOG_USEC", ""))
        watched = environ.pop("WATCHDOG_PID", str(pid))
        if not address.startswith(("/", "@")):
            return None
        return cls(address, period / 1e6 if period and watched == str(pid) else None)

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
        if self._send_unsent():
            self._deliver(_datagram(status=status))

    def watchdog(self) -> None:
        """Report that the service is alive."""
        if self._send_unsent():
            self._deliver(_datagram("WATCHDOG=1"))

    def _send(self, *lines: str, status: str = "") -> None:
        """Report a change of the state. If that is not possible now, it is sent before the next notification."""
        self._unsent.append(_datagram(*lines, status=status))
        self._send_unsent()

    def _send_unsent(self) -> bool:
        """Send the changes that wait, in order. Return False if some still wait."""
        while self._unsent and self._deliver(self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def _deliver(self, datagram: bytes) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(datagram, self._address)
        except OSError as error:
            if not self._failed:
                log.warn("cannot notify systemd: {error}", error=error.strerror or str(error))
            self._failed = True
        else:
            self._failed = False
        return not self._failed


def _datagram(*lines: str, status: str = "") -> bytes:
    if status:
        lines += (f"STATUS={' '.join(status.split())}",)
    return "\n".join(lines).encode()


def _microseconds(text: str) -> int:
    """Return the period of the watchdog, as sd_watchdog_enabled(3) reads it. 0: there is no watchdog."""
    period = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0
    return period if period < FOREVER else 0
