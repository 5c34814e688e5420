"""Other programs with several processes: ``WorkerService`` in a ``.tac``, and ``run(workers=)``."""

from __future__ import annotations

import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.service.workers.running import LETTER, Master, connect, process_of
from tests.support.programs import once
from txsmtpd.service import SMTPService, WorkerService

LOCAL = "tcp:0:interface=127.0.0.1"
MAKERS = """
from naming import Naming
from txsmtpd import SMTPFactory
from txsmtpd.observe.metrics import Metrics

def make_factory():
    return SMTPFactory(Naming(), metrics=Metrics("mail"))

def make_handler():
    return Naming()
"""
TAC = f"""
from twisted.application.service import Application
from txsmtpd.service import WorkerService

application = Application("mail")
server = WorkerService("makers:make_factory", "{LOCAL}", workers=2)
server.setServiceParent(application)

def tell():
    accepted = server.snapshot()["messages_total"]
    print("accepted", sum(value for labels, value in accepted if "accepted" in labels), flush=True)

from twisted.internet import reactor
reactor.addSystemEventTrigger("after", "shutdown", tell)
"""
TWISTD = "from twisted.scripts.twistd import run; run()"
RUN = f"import txsmtpd; txsmtpd.run('makers:make_handler', '{LOCAL}', workers=2)"


def make_sink() -> object:
    """A handler for tests in this process."""
    from txsmtpd.handlers import Sink

    return Sink()


class ProgramTests(SynchronousTestCase):
    """Real processes."""

    def test_application(self) -> None:
        """The service can be part of a Twisted application: workers serve, their log and their counts are available
        there, and they end with it."""
        words = ["-c", TWISTD, "--nodaemon", "--pidfile=", "--python=app.tac"]
        master = Master(self, words=words, files={"makers.py": MAKERS, "app.tac": TAC})
        port = master.port()
        clients = [connect(port) for _ in range(4)]
        serving = {*map(process_of, clients)}
        # On a loaded machine, a worker may accept several connections before the other one wakes up.
        while serving != {*master.pids()} and len(clients) < 100:
            clients.append(connect(port))
            serving.add(process_of(clients[-1]))
        self.assertEqual(serving, {*master.pids()})
        master.wait_for(r"worker 1 \(process \d+\): .*listening on")
        for client in clients:
            client.sendmail("a@example.com", "b@example.com", LETTER)
            client.quit()
        master.signal(signal.SIGTERM)
        master.wait_for("worker . .* has ended$", 2)
        master.process.wait()
        master.wait_for(f"accepted {len(clients)}")

    def test_run(self) -> None:
        """``run`` with workers reloads at SIGHUP, with the current module, and keeps the old workers if it cannot be
        imported."""
        master = Master(self, words=["-c", RUN], files={"makers.py": MAKERS})
        port = master.port()
        first = {*master.pids()}
        (master.folder / "makers.py").write_text("syntax error")
        master.signal(signal.SIGHUP)
        master.wait_for("the reload failed")
        master.wait_for("^txsmtpd: makers:make_handler: SyntaxError")
        with connect(port) as client:
            self.assertIn(process_of(client), first)
        (master.folder / "makers.py").write_text(MAKERS)
        master.signal(signal.SIGHUP)
        master.wait_for("all workers were replaced")
        with connect(port) as client:
            self.assertNotIn(process_of(client), first)
        master.stop()
        self.assertEqual(master.process.returncode, 0)


class WorkerServiceTests(SynchronousTestCase):
    """Without processes."""

    def test_one(self) -> None:
        """With one worker, this process serves: an SMTPService for each endpoint, each with its own factory."""
        service = WorkerService(f"{__name__}:make_sink", LOCAL, LOCAL, workers=1)
        first, second = service
        assert isinstance(first, SMTPService) and isinstance(second, SMTPService)
        self.assertIsNone(service.master)
        self.assertIsNot(first.factory, second.factory)
        self.successResultOf(service.when_ready())
        self.assertFalse(self.successResultOf(service.reload()))
        self.assertNotIn("messages_total", [name for name, series in service.snapshot().items() if series])

    def test_mistakes(self) -> None:
        """An error is raised immediately, and says what to do."""
        place = f"{__name__}:make_sink"
        for error, reason, arguments, number in [
            (TypeError, "module.server:make|mail.server:make_factory", (make_sink, LOCAL), 2),
            (ValueError, "mail.server:make_factory", ("makers", LOCAL), 2),
            (ValueError, "into a module", ("__main__:make", LOCAL), 2),
            (ValueError, "there is no nothing", (f"{__name__}:nothing", LOCAL), 2),
            (TypeError, "cannot be called", (f"{__name__}:LOCAL", LOCAL), 2),
            (ModuleNotFoundError, "no_such_module", ("no_such_module:make", LOCAL), 2),
            (ValueError, "1 to 256", (place, LOCAL), 0),
            (TypeError, "workers must be an int", (place, LOCAL), "2"),
            (TypeError, "give an endpoint", (place,), 2),
            (ValueError, "implicit_tls", (place, "tls:/etc/ssl:port=0"), 2),
            (ValueError, "not an endpoint", (place, "nonsense:1"), 2),
        ]:
            with self.assertRaisesRegex(error, reason):
                WorkerService(*arguments, workers=number)  # type: ignore[arg-type]  # what is tested

    def test_runWithOptions(self) -> None:
        """Factory options are refused if other processes create the factories."""
        import txsmtpd

        once()
        with self.assertRaisesRegex(TypeError, "give data_size_limit to the SMTPFactory"):
            txsmtpd.run(f"{__name__}:make_sink", LOCAL, workers=2, data_size_limit=1000)
