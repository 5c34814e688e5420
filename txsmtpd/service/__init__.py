"""What runs the server: the command line, its handlers, and services that listen and drain.

``twist smtpd`` asks this package for :class:`Options` and :func:`makeService`. An application with services of its own
takes :class:`SMTPService` from here, or :class:`WorkerService` for several processes. Nothing here imports the reactor
before it is needed, so that whoever starts the program chooses it.
"""

from txsmtpd.service.listening import SMTPService
from txsmtpd.service.options import Options
from txsmtpd.service.server import makeService
from txsmtpd.service.workers.service import WorkerService

__all__ = ["Options", "SMTPService", "WorkerService", "makeService"]
