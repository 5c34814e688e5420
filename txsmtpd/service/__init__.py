"""Runs the server: the command line, its handlers, and services that listen and drain.

``twist smtpd`` uses :class:`Options` and :func:`makeService` from this package. Applications can use
:class:`SMTPService`, or :class:`WorkerService` for several processes. Nothing here imports the reactor before it is
needed, so that the program can choose it.
"""

from typing import TYPE_CHECKING, Any

from txsmtpd.service.listening import SMTPService
from txsmtpd.service.options import Options
from txsmtpd.service.server import makeService

if TYPE_CHECKING:
    from txsmtpd.service.workers.service import WorkerService

__all__ = ["Options", "SMTPService", "WorkerService", "makeService"]


def __getattr__(name: str) -> Any:
    """Import ``WorkerService`` only when it is used: a server of one process needs neither AMP nor shared memory."""
    if name == "WorkerService":
        from txsmtpd.service.workers.service import WorkerService

        return WorkerService
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
