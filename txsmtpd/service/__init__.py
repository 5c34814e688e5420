"""Runs the server: the command line, its handlers, and services that listen and drain.

``twist smtpd`` uses :class:`Options` and :func:`makeService` from this package. Applications can use
:class:`SMTPService`, or :class:`WorkerService` for several processes. Nothing here imports the reactor before it is
needed, so that the program can choose it.
"""

from txsmtpd.service.listening import SMTPService
from txsmtpd.service.options import Options
from txsmtpd.service.server import makeService
from txsmtpd.service.workers.service import WorkerService

__all__ = ["Options", "SMTPService", "WorkerService", "makeService"]
