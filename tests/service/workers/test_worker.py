"""Data that a worker shares with the others, without processes."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Client, handler
from tests.support.effort import calls_of
from tests.test_factory import factory
from txsmtpd import SMTPFactory
from txsmtpd.service.workers.connection_table import ConnectionTable
from txsmtpd.service.workers.sketch import Sketch
from txsmtpd.service.workers.worker import count_for_host

MESSAGE = TRANSACTION + b"DATA\r\nhi\r\n.\r\n"


class HostTests(SynchronousTestCase):
    """Counts over all workers."""

    def test_stress(self) -> None:
        """All workers are in stress mode when their connections together are near the limit, and leave it when there
        are fewer, on any worker."""
        table, sketch = ConnectionTable(2, 1), Sketch(2)
        self.addCleanup(table.close)
        self.addCleanup(sketch.close)
        workers = [factory(handler(), connection_limit=10) for _ in range(2)]
        for row, worker in enumerate(workers):
            count_for_host(worker, table, sketch, row, 0)
        clients = [[Client(factory=worker) for _ in range(4)] for worker in workers]
        for worker in workers:
            worker.reactor_late(0.0)
        self.assertEqual([worker.stress.active for worker in workers], [True, True])
        for client in clients[0]:
            client.talk(b"QUIT\r\n")
        for worker in workers:
            worker.reactor_late(0.0)
        self.assertEqual([worker.stress.active for worker in workers], [False, False])


class CostTests(SynchronousTestCase):
    """The cost of being one of several processes."""

    def setUp(self) -> None:
        self.table, self.sketch = ConnectionTable(4, 1), Sketch(4)
        self.addCleanup(self.table.close)
        self.addCleanup(self.sketch.close)

    def factories(self) -> tuple[SMTPFactory, SMTPFactory]:
        """The factory of a single process, and that of a worker."""
        limits = {"connection_limit": 100, "connection_limit_per_network": 100}
        alone, shared = (factory(handler(), **limits) for _ in range(2))
        count_for_host(shared, self.table, self.sketch, 1, 0)
        return alone, shared

    def calls(self, use: Callable[[SMTPFactory], Callable[[], object]]) -> tuple[int, int]:
        """The number of function calls in a single process and in a worker, after a warm-up. The smallest of several
        counts is taken, since a batch of commands that takes too long on a busy machine is interrupted."""
        alone, shared = (min(calls_of(use(each)) for _ in range(5)) for each in self.factories())
        return alone, shared

    def test_message(self) -> None:
        """A message over an open connection costs nothing more."""

        def use(made: SMTPFactory) -> Callable[[], object]:
            client = Client(factory=made)
            client.talk(GREETING)
            return lambda: client.talk(MESSAGE * 3)

        alone, shared = self.calls(use)
        self.assertGreater(alone, 100)
        self.assertEqual(shared, alone)

    def test_connection(self) -> None:
        """A connection costs little more: writing its count, and reading those of the others."""
        alone, shared = self.calls(lambda made: lambda: Client(factory=made).talk(GREETING + b"QUIT\r\n"))
        self.assertLess(shared, alone + 60)
