"""What a worker inherits from its master. Imported by each process of the command line, so it imports little."""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from txsmtpd.service.exit_status import COMMAND, command_name, name_command

if TYPE_CHECKING:
    from txsmtpd.service.workers.sockets import InheritedSocket

VARIABLE = "_TXSMTPD_WORKER"
FIRST = 3  # the first descriptor that is inherited


@dataclass(frozen=True)
class Inherited:
    """What a worker inherits from its master."""

    slot: int  #: the number of the worker, from 0
    row: int  #: its row in the table of connections and in the sketch
    rows: int  #: the number of rows
    sockets: int  #: the number of listening sockets; they are the first inherited descriptors
    channel: int  #: descriptor of the channel to the master
    certificate: int | None = None  #: descriptor of the certificate of --tls=auto
    command: str = COMMAND  #: the command that the user has typed; messages to the user begin with it

    taken: list[int] = field(default_factory=list, compare=False)  #: the sockets that have an endpoint

    @property
    def table(self) -> int:
        """The descriptor of the table of connections."""
        return FIRST + self.sockets

    @property
    def sketch(self) -> int:
        """The descriptor of the sketch."""
        return FIRST + self.sockets + 1

    @property
    def report(self) -> int:
        """The descriptor of the memory file for the traceback of a crash. The master logs it."""
        return self.channel + 1

    def take_endpoint(self, description: str) -> InheritedSocket:
        """Return the endpoint of the next socket. The master binds the sockets in the order of the options.

        :raises ValueError: if there are no more.
        """
        from twisted.internet import reactor

        from txsmtpd.service.workers.sockets import InheritedSocket

        descriptor = FIRST + len(self.taken)
        if len(self.taken) >= self.sockets:
            raise ValueError("the master has passed no socket for it")
        self.taken.append(descriptor)
        return InheritedSocket(reactor, descriptor)


def inherited(environ: Mapping[str, str] = os.environ) -> Inherited | None:
    """Return what this process inherits from a master, or None if it is not a worker. Call it first in the process:
    the messages of the worker then begin like those of its master."""
    value = environ.get(VARIABLE)
    if value is None:
        return None
    found = Inherited(**json.loads(value))
    name_command(found.command)
    for descriptor in range(FIRST, found.report + 1):
        with suppress(OSError):  # it is closed already
            os.set_inheritable(descriptor, False)  # a child process of a handler must not keep the address in use
    faulthandler.enable(found.report)  # writes a traceback when the master aborts this process, also while it starts
    return found


@dataclass
class Inheritance:
    """What workers inherit besides the sockets.

    :ivar certificate: descriptor of the certificate of ``--tls=auto``, or None.
    """

    certificate: int | None = None
    descriptors: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.descriptors = [] if self.certificate is None else [self.certificate]

    def describer(self, slot: int, row: int, rows: int, sockets: int) -> Callable[[int], str]:
        """Return a function that takes the channel's descriptor and returns the text that :func:`inherited` reads."""
        certificate = None if self.certificate is None else FIRST + sockets + 2

        def describe(channel: int) -> str:
            return json.dumps(asdict(Inherited(slot, row, rows, sockets, channel, certificate, command_name())))

        return describe
