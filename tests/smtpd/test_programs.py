"""Existing programs for the old smtpd module, unchanged: threads, signals and loops, in real processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.service.test_commandline import CommandLineTestCase, Process, taken_port
from tests.support.programs import once

# The beginning of each program.
BEGINNING = """
import sys
from txsmtpd import smtpd

class Server(smtpd.SMTPServer):
    def process_message(self, peer, mailfrom, rcpttos, data, **kwargs):
        print("from", mailfrom, "to", rcpttos, len(data), "octets", flush=True)
        return self.received(data)

    def received(self, data):
        pass

def listening(server):
    print("port", server.socket.getsockname()[1], flush=True)
    return server
"""

# A program as in old tutorials. Only the two lines that name modules were changed.
TUTORIAL = """
import txsmtpd.smtpd as smtpd

class CustomSMTPServer(smtpd.SMTPServer):

    def process_message(self, peer, mailfrom, rcpttos, data, **kwargs):
        print('Receiving message from:', peer[0])
        print('Message addressed from:', mailfrom)
        print('Message addressed to  :', rcpttos)
        print('Message length        :', len(data), flush=True)
        return

server = CustomSMTPServer(('127.0.0.1', 0), None)
print("port", server.socket.getsockname()[1], flush=True)

try:
    smtpd.loop()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class ProgramTestCase(CommandLineTestCase):
    """Runs a program with the usual first lines."""

    def program(self, text: str) -> Process:
        Path(self.folder, "program.py").write_text(BEGINNING + text)
        return self.run_python("program.py")

    def port_of(self, process: Process) -> int:
        return int(process.line_with("port ").split()[1])

    def send(self, port: int, text: str = "Hello") -> str:
        """Send a message. Return the reply to it."""
        client = self.connect(port)
        client.begin_data()
        return client.say(f"{text}\r\n.")


class LoopTests(ProgramTestCase):
    """Programs without a reactor, which call loop()."""

    def test_tutorial(self) -> None:
        """A server as in tutorials receives messages, and Ctrl-C interrupts it."""
        Path(self.folder, "tutorial.py").write_text(TUTORIAL)
        process = self.run_python("tutorial.py")
        client = self.connect(self.port_of(process))
        self.assertEqual(client.deliver(), "250 OK\r\n")
        process.line_with("Receiving message from: 127.0.0.1")
        process.line_with("Message addressed from: a@a.example")
        process.line_with("Message addressed to  : ['b@b.example']")
        process.line_with("Message length        : 24")
        process.process.send_signal(signal.SIGINT)
        process.line_with("interrupted")
        self.assertEqual(process.wait(), 0)
        self.assertEqual(process.errors, [])

    def test_wakeup(self) -> None:
        """A signal wakes the loop up at any time. After the loop, the signal handlers are as before."""
        process = self.program("""
import signal

def wakes_up():
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return descriptor >= 0

class Signalled(Server):
    def received(self, data):
        print("in the loop:", wakes_up(), flush=True)
        self.close()

listening(Signalled(("localhost", 0), None))
smtpd.loop()
print("after the loop:", wakes_up(), flush=True)
""")
        client = self.connect(self.port_of(process))
        client.begin_data()
        client.say("Hello\r\n.")
        process.line_with("in the loop: True")
        process.line_with("after the loop: False")
        self.assertEqual(process.wait(), 0)

    def test_close(self) -> None:
        """A server that closes itself ends the loop, after the reply to its message."""
        process = self.program("""
class Once(Server):
    def received(self, data):
        self.close()

listening(Once(("localhost", 0), None))
smtpd.loop()
print("over", flush=True)
""")
        client = self.connect(self.port_of(process))
        client.begin_data()
        self.assertEqual(client.say("Hello\r\n."), "250 OK\r\n")
        self.assertEqual(client.reply()[:4], "421 ")
        process.line_with("over")
        self.assertEqual(process.wait(), 0)

    def test_thread(self) -> None:
        """The code of servers runs in the thread that has called loop()."""
        process = self.program("""
import threading

class Threads(Server):
    def received(self, data):
        print("in", threading.current_thread().name, flush=True)
        self.close()

def run():
    listening(Threads(("127.0.0.1", 0), None))
    smtpd.loop()

thread = threading.Thread(target=run, name="the-loop-thread")
thread.start()
thread.join()
server = listening(Threads(("127.0.0.1", 0), None))
smtpd.loop()
""")
        for expected in ("in the-loop-thread", "in MainThread"):
            self.assertEqual(self.send(self.port_of(process)), "250 OK\r\n")
            process.line_with(expected)
        self.assertEqual(process.wait(), 0)

    def test_closeFromAnotherThread(self) -> None:
        """As in test suites: the loop in a thread, closed from another one, repeatedly, on the same port."""
        process = self.program("""
import smtplib, threading

port = 0
for _ in range(20):
    server = Server(("127.0.0.1", port), None)
    port = server.socket.getsockname()[1]
    thread = threading.Thread(target=smtpd.loop, kwargs={"timeout": 0.1})
    thread.start()
    client = smtplib.SMTP("127.0.0.1", port)
    client.sendmail("a@example.com", ["b@example.com"], "Subject: test\\n\\nHello")
    server.close()
    thread.join(60)
    assert not thread.is_alive()
    assert client.noop()[0] == 421
    client.close()
print("twenty", threading.active_count(), flush=True)
""")
        process.line_with("twenty 1")
        self.assertEqual(process.wait(), 0)
        self.assertEqual(process.errors, [])

    def test_interruptedAtWork(self) -> None:
        """Ctrl-C also interrupts a wait in process_message. The client does not get 250."""
        process = self.program("""
import threading

class Busy(Server):
    def received(self, data):
        threading.Event().wait(60)

listening(Busy(("127.0.0.1", 0), None))
smtpd.loop()
""")
        client = self.connect(self.port_of(process))
        client.begin_data()
        client.socket.sendall(b"Hello\r\n.\r\n")
        process.line_with("from a@a.example")
        process.process.send_signal(signal.SIGINT)
        self.assertIn(client.reply()[:3], ("451", ""))
        self.assertEqual(process.wait(), -signal.SIGINT)
        self.assertEqual(process.errors[-1].strip(), "KeyboardInterrupt")

    def test_exit(self) -> None:
        """sys.exit() ends the program, in process_message and in a signal handler."""
        program = """
import signal

class Exiting(Server):
    def received(self, data):
        sys.exit(5)

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(6))
listening(Exiting(("127.0.0.1", 0), None))
smtpd.loop()
"""
        process = self.program(program)
        self.connect(self.port_of(process)).begin_data()
        process.process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 6)
        process = self.program(program)
        self.assertEqual(self.send(self.port_of(process))[:4], "451 ")
        self.assertEqual(process.wait(), 5)

    def test_exception(self) -> None:
        """An exception results in 451 for one message, and is printed. The server continues."""
        process = self.program("""
class Failing(Server):
    def received(self, data):
        if b"bad" in data:
            raise ValueError("bad data")

listening(Failing(("127.0.0.1", 0), None))
smtpd.loop()
""")
        port = self.port_of(process)
        self.assertEqual(self.send(port, "bad")[:4], "451 ")
        self.assertEqual(self.connect(port).deliver(), "250 OK\r\n")
        process.process.send_signal(signal.SIGINT)
        process.wait()
        self.assertIn("ValueError: bad data", "".join(process.errors))

    def test_backlog(self) -> None:
        """A client that connects before loop() is called waits, and is then served."""
        process = self.program("""
import socket

class Once(Server):
    def received(self, data):
        self.close()

server = listening(Once(("127.0.0.1", 0), None))
client = socket.create_connection(server.socket.getsockname())
client.sendall(b"HELO c\\r\\nMAIL FROM:<a@b>\\r\\nRCPT TO:<a@b>\\r\\nDATA\\r\\n.\\r\\nQUIT\\r\\n")
smtpd.loop()
print(client.makefile().read(), flush=True)
""")
        process.line_with("354 ")
        process.line_with("250 OK")
        self.assertEqual(process.wait(), 0)

    def test_taken(self) -> None:
        """An address in use is an OSError when the server is created."""
        with taken_port() as port:
            process = self.program(f"""
import errno
try:
    Server(("127.0.0.1", {port}), None)
except OSError as error:
    print("refused", error.errno == errno.EADDRINUSE, flush=True)
smtpd.loop()
print("nothing to serve", flush=True)
""")
            process.line_with("refused True")
            process.line_with("nothing to serve")
            self.assertEqual(process.wait(), 0)

    def test_map(self) -> None:
        """A loop waits for the servers of its own map, close_all closes them, and count limits the time of a loop."""
        process = self.program("""
mine = {}
one, other = Server(("127.0.0.1", 0), None), Server(("127.0.0.1", 0), None, map=mine)
assert list(mine.values()) == [other] and list(smtpd.socket_map.values()) == [one]
smtpd.loop(timeout=0.01, count=3)
smtpd.loop(timeout=0, count=1, map=mine)
smtpd.close_all(mine)
smtpd.loop(map=mine)
assert not mine and smtpd.socket_map
one.close()
one.close()
smtpd.loop()
print("over", flush=True)
""")
        process.line_with("over")
        self.assertEqual(process.wait(), 0)

    def test_toThread(self) -> None:
        """Blocking code may run in a thread, while others are served. The thread does not outlive the program."""
        process = self.program("""
import threading
from twisted.internet.threads import deferToThread

go_on = threading.Event()

class Slow(Server):
    def received(self, data):
        return deferToThread(self.store) if b"slow" in data else go_on.set()

    def store(self):
        go_on.wait()
        return "250 stored"

listening(Slow(("127.0.0.1", 0), None))
smtpd.loop()
""")
        port = self.port_of(process)
        slow = self.connect(port)
        slow.begin_data()
        slow.socket.sendall(b"slow\r\n.\r\n")
        process.line_with("from a@a.example")
        self.assertEqual(self.send(port, "quick"), "250 OK\r\n")
        self.assertEqual(slow.reply(), "250 stored\r\n")
        process.process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(), -signal.SIGINT)

    def test_proxy(self) -> None:
        """A proxy and its next server may share a loop. The program ends when both are closed."""
        process = self.program("""
class Last(Server):
    def received(self, data):
        self.close()
        first.close()

last = Last(("localhost", 0), None)
first = listening(smtpd.PureProxy(("127.0.0.1", 0), ("localhost", last.socket.getsockname()[1])))
smtpd.loop()
print("over", flush=True)
""")
        self.assertEqual(self.send(self.port_of(process)), "250 2.0.0 OK\r\n")
        process.line_with("from a@a.example")
        process.line_with("over")
        self.assertEqual(process.wait(), 0)
        self.assertEqual(process.errors, [])

    def test_proxyInThread(self) -> None:
        """A proxy that should relay mail from another thread raises an exception, and the client gets 451."""
        process = self.program("""
from twisted.internet.threads import deferToThread

class Proxy(smtpd.PureProxy):
    def process_message(self, *args, **kwargs):
        return deferToThread(super().process_message, *args, **kwargs)

listening(Proxy(("127.0.0.1", 0), ("localhost", 9)))
smtpd.loop()
""")
        self.assertEqual(self.send(self.port_of(process))[:4], "451 ")
        process.process.send_signal(signal.SIGINT)
        process.wait()
        self.assertIn("RuntimeError: pass mail on in the reactor's thread", "".join(process.errors))


class ReactorTests(ProgramTestCase):
    """Programs with a reactor."""

    def test_running(self) -> None:
        """If the reactor runs, a server serves as soon as it is created. loop() raises an exception that says so."""
        process = self.program("""
from twisted.internet import reactor

class Once(Server):
    def received(self, data):
        self.close()
        reactor.callLater(0, reactor.stop)

def begin():
    try:
        server = Once(("127.0.0.1", 0), None)
        smtpd.loop()
    except RuntimeError as error:
        print(error, flush=True)
    listening(server)

reactor.callWhenRunning(begin)
reactor.run()
print("over", flush=True)
""")
        process.line_with("and serves without loop()")
        self.assertEqual(self.send(self.port_of(process)), "250 OK\r\n")
        process.line_with("over")
        self.assertEqual(process.wait(), 0)

    def test_inAnotherThread(self) -> None:
        """If the reactor runs in another thread, servers serve there. loop() waits, and continues if it ends."""
        process = self.program("""
import smtplib, threading
from twisted.internet import reactor

class Threads(Server):
    def received(self, data):
        print("in", threading.current_thread().name, flush=True)
        if b"last" in data:
            self.close()

def run():
    reactor.run(installSignalHandlers=False)

thread = threading.Thread(target=run, name="reactor", daemon=True)
running = threading.Event()
reactor.callWhenRunning(running.set)
thread.start()
running.wait()
server = Threads(("127.0.0.1", 0), None)
listening(server)

def send(text):
    with smtplib.SMTP("127.0.0.1", server.socket.getsockname()[1]) as client:
        client.sendmail("a@example.com", ["b@example.com"], text)

def work():
    send("first")
    reactor.callFromThread(type(reactor).crash, reactor)
    thread.join()
    send("the last")

threading.Thread(target=work).start()
smtpd.loop()
print("over", flush=True)
""")
        process.line_with("in reactor")
        process.line_with("in MainThread")
        process.line_with("over")
        self.assertEqual(process.wait(), 0)


class CommandLineTests(CommandLineTestCase):
    """``twist smtpd --handler=smtpd:CLASS``."""

    SERVERS = """
from txsmtpd import smtpd

class Channel(smtpd.SMTPChannel):
    def smtp_RCPT(self, arg):
        if "nobody" in arg:
            self.push("550 nobody is here")
        else:
            super().smtp_RCPT(arg)

class Server(smtpd.SMTPServer):
    channel_class = Channel

    def process_message(self, peer, mailfrom, rcpttos, data, **kwargs):
        print("from", mailfrom, "data", type(data).__name__, "remote", self._remoteaddr, flush=True)

class Text(Server):
    def __init__(self, localaddr, remoteaddr):
        super().__init__(localaddr, remoteaddr, decode_data=True)

class Listening(Server):
    def __init__(self, localaddr, remoteaddr):
        super().__init__(("127.0.0.1", 0), remoteaddr)

class Abstract(smtpd.SMTPServer):
    pass
"""

    def setUp(self) -> None:
        super().setUp()
        Path(self.folder, "servers.py").write_text(self.SERVERS)

    def test_own(self) -> None:
        """A custom class serves, with its channels, on the endpoints of --listen."""
        process = self.smtpd("--handler=smtpd:servers.Server:relay.example:2525", "--listen=tcp:0:interface=127.0.0.1")
        port = process.port()
        client = self.connect(port)
        self.assertIn("Python SMTP proxy", client.reply())
        client.say("EHLO c")
        client.say("MAIL FROM:<a@a.example>")
        self.assertEqual(client.say("RCPT TO:<nobody@b.example>"), "550 nobody is here\r\n")
        self.assertEqual(self.connect(port).deliver(), "250 OK\r\n")
        process.line_with("from a@a.example data bytes remote ('relay.example', 2525)")

    def test_options(self) -> None:
        """The options of the class apply, and the command line takes precedence."""
        process = self.smtpd(
            *("--handler=smtpd:servers.Text", "--listen=tcp:0:interface=127.0.0.1"),
            *("--size=1000", "--ident=ours", "--hostname=mx.example"),
        )
        port = process.port()
        client = self.connect(port)
        self.assertEqual(client.reply(), "220 mx.example ours\r\n")
        client.socket.sendall(b"EHLO c\r\n")
        self.assertEqual(client._lines.readline(), b"250-mx.example\r\n")
        self.assertEqual(client._lines.readline(), b"250-SIZE 1000\r\n")
        self.assertEqual(self.connect(port).deliver(), "250 OK\r\n")
        process.line_with("data str remote ('localhost', 25)")

    def test_builtIn(self) -> None:
        """The module's own classes are found by their names."""
        process = self.smtpd("--handler=smtpd:DebuggingServer", "--listen=tcp:0:interface=127.0.0.1")
        self.connect(process.port()).deliver()
        process.line_with("b'X-Peer: 127.0.0.1'")

    def test_mistakes(self) -> None:
        """An error is one line with the reason, and status 64."""
        once()
        wrong: list[tuple[list[Any], str]] = [
            (["smtpd"], "the dotted name of a class"),
            (["smtpd:"], "the dotted name of a class"),
            (["smtpd:Nothing"], "txsmtpd.smtpd has no Nothing"),
            (["smtpd:servers.Nothing"], "servers has no Nothing"),
            (["smtpd:servers.Channel"], "is not a subclass of txsmtpd.smtpd.SMTPServer"),
            (["smtpd:servers.Abstract"], "must override process_message"),
            (["smtpd:SMTPServer"], "must override process_message"),
            (["smtpd:servers.Listening"], "listens on an address of its own"),
            (["smtpd:servers.Server:host:x"], "invalid port 'x'"),
            (["smtpd:servers.Server:host:1:2"], "too many arguments"),
            (["smtpd:servers.Server", "--listen-lmtp=unix:lmtp.sock"], "supports only SMTP"),
        ]
        for (handler, *options), reason in wrong:
            process = self.smtpd(f"--handler={handler}", *options)
            self.assertEqual(process.wait(), 64, handler)
            self.assertEqual(len(process.errors), 1, process.errors)
            self.assertIn(reason, process.errors[0])
