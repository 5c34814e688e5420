"""AUTH (RFC 4954): the command, the exchange, the authenticator, and the mechanisms that are offered."""

from __future__ import annotations

import base64
import itertools
import warnings
from typing import Any

from twisted.cred.checkers import FilePasswordDB, ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from tests.support import Client, LoggingTestCase
from tests.support.auth import GOOD, INVALID, OK, WRONG, Connection, Tls, b64, friend, plain
from txsmtpd import SMTPFactory, auth
from txsmtpd.auth import MISSING, AuthResult, LoginPassword, PortalAuthenticator, auth_mechanism
from txsmtpd.engine.lines import ENDLESS_LINE
from txsmtpd.engine.notices import useless_auth
from txsmtpd.extensions import Auth
from txsmtpd.extensions.auth import TOO_MANY_FAILURES
from txsmtpd.interfaces import IAuthMechanism
from txsmtpd.settings import Settings
from txsmtpd.smtp import SMTP, sanitize
from txsmtpd.testing import PretendedTLS
from txsmtpd.wire.grammar import encode_xtext

GOODBYE = TOO_MANY_FAILURES.octets.rstrip()


class CommandTests(SynchronousTestCase):
    """The checks of the command, in their order, and the replies."""

    def test_success(self) -> None:
        """The right password gets 235, and the session has the user."""
        client = Connection(authenticator=friend)
        self.assertIsNone(client.session.authenticated)
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])
        self.assertIs(client.session.authenticated, True)
        self.assertEqual(client.session.auth_data, LoginPassword(b"user", b"sesame"))
        self.assertEqual(client.session.login_data, b"user")

    def test_failure(self) -> None:
        """A wrong password gets 535, and the session is not authenticated."""
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG), [INVALID])
        self.assertIs(client.session.authenticated, False)
        self.assertIsNone(client.session.auth_data)

    def test_afterFailure(self) -> None:
        """A client may try again after a failure."""
        client = Connection(authenticator=friend)
        client.say(b"AUTH PLAIN " + WRONG)
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])

    def test_caseOfMechanism(self) -> None:
        """The mechanism's name may be in lower case (RFC 4422 3.1 requires upper case, but clients differ)."""
        self.assertEqual(Connection(authenticator=friend).say(b"auth Plain " + GOOD), [OK])

    def test_notGreeted(self) -> None:
        client = Connection(authenticator=friend, ehlo=False)
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [b"503 5.5.1 Send EHLO first"])

    def test_greetedWithHelo(self) -> None:
        """AUTH is an extension: it requires EHLO, not HELO."""
        client = Connection(authenticator=friend, ehlo=False)
        client.say(b"HELO client.test")
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD)[0][:9], b"500 5.5.1")

    def test_inClear(self) -> None:
        """Without TLS, AUTH is neither offered nor accepted, and the authenticator is not called (RFC 4954 4)."""
        client = Connection(authenticator=friend, auth_require_tls=True)
        self.assertIsNone(client.offered())
        refusal = b"538 5.7.11 Encryption required for requested authentication mechanism"
        self.assertEqual(client.say(b"AUTH LOGIN"), [refusal])
        self.assertEqual(client.say(b"AUTH NONESUCH"), [refusal])
        self.assertIsNone(client.session.authenticated)

    def test_insideTls(self) -> None:
        client = Connection(authenticator=friend, auth_require_tls=True)
        client.session.ssl = Tls()
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])

    def test_twice(self) -> None:
        """An authenticated client cannot authenticate again (RFC 4954 4)."""
        client = Connection(authenticator=friend)
        client.say(b"AUTH PLAIN " + GOOD)
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [b"503 5.5.1 Already authenticated"])
        self.assertIs(client.session.authenticated, True)

    def test_insideTransaction(self) -> None:
        """AUTH is not permitted in a mail transaction, and does not end it (RFC 4954 4)."""
        client = Connection(authenticator=friend)
        client.say(b"MAIL FROM:<a@example.com>")
        self.assertEqual(
            client.say(b"AUTH PLAIN " + GOOD), [b"503 5.5.1 AUTH is not permitted during a mail transaction"]
        )
        self.assertEqual(client.say(b"RCPT TO:<b@example.com>"), [b"250 2.1.5 OK"])

    def test_arguments(self) -> None:
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH")[0][:9], b"501 5.5.4")
        self.assertEqual(client.say(b"AUTH PLAIN a b")[0][:9], b"501 5.5.4")

    def test_unknownMechanism(self) -> None:
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH GSSAPI"), [b"504 5.5.4 Unrecognized authentication type"])

    def test_otherAlphabets(self) -> None:
        """Mechanism names are ASCII. Only spaces separate them from what follows, not other white space."""
        for line in ("AUTH PLA\u0131N ", "AUTH PLAIN\u2003", "AUTH PLAIN\u00a0"):
            client = Connection(authenticator=friend)
            self.assertEqual(client.say(line.encode() + GOOD)[0][:9], b"504 5.5.4", line)
        for line in (b"AUTH  PLAIN  ", b"AUTH PLAIN "):
            self.assertEqual(Connection(authenticator=friend).say(line + GOOD), [OK], line)

    def test_nobodyDecides(self) -> None:
        """Without an authenticator, AUTH is not offered, and the command is not implemented."""
        client = Connection()
        self.assertIsNone(client.offered())
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD)[0][:9], b"502 5.5.1")
        self.assertNotIn(b"AUTH", client.say(b"HELP")[0])
        self.assertEqual(client.say(b"MAIL FROM:<a@example.com> AUTH=<>")[0][:3], b"555")

    def test_help(self) -> None:
        client = Connection(authenticator=friend)
        self.assertIn(b" AUTH ", client.say(b"HELP")[0])
        self.assertEqual(client.say(b"HELP auth"), [b"214 2.0.0 Syntax: AUTH <mechanism> [initial-response]"])
        client.say(b"AUTH PLAIN " + GOOD)
        self.assertNotIn(b"AUTH", client.say(b"HELP")[0])

    def test_helpInClear(self) -> None:
        """HELP lists AUTH only if the client may use it."""
        client = Connection(authenticator=friend, auth_require_tls=True)
        self.assertNotIn(b"AUTH", client.say(b"HELP")[0])
        client.session.ssl = Tls()
        self.assertIn(b" AUTH ", client.say(b"HELP")[0])

    def test_ehloKeepsIt(self) -> None:
        client = Connection(authenticator=friend)
        client.say(b"AUTH PLAIN " + GOOD, b"EHLO client.test", b"RSET")
        self.assertIs(client.session.authenticated, True)


class RequiredTests(SynchronousTestCase):
    """``auth_required``."""

    def client(self) -> Connection:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Connection(authenticator=friend, auth_required=True)

    def test_refused(self) -> None:
        """Commands that require authentication get 530 (RFC 4954 6), even if they have other errors."""
        client = self.client()
        for line in (b"MAIL FROM:<a@example.com>", b"RCPT TO:<a@example.com>", b"DATA", b"VRFY a", b"HELP", b"EXPN a"):
            self.assertEqual(client.say(line), [b"530 5.7.0 Authentication required"], line)

    def test_allowed(self) -> None:
        client = self.client()
        for line in (b"NOOP", b"RSET", b"EHLO client.test"):
            self.assertEqual(client.say(line)[-1][:3], b"250", line)

    def test_greetingFirst(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Connection(authenticator=friend, auth_required=True, ehlo=False)
        self.assertEqual(client.say(b"MAIL FROM:<a@example.com>")[0][:3], b"503")

    def test_afterwards(self) -> None:
        client = self.client()
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])
        self.assertEqual(client.say(b"MAIL FROM:<a@example.com>"), [b"250 2.1.0 OK"])

    def test_overriddenCommand(self) -> None:
        """A subclass that overrides MAIL still requires AUTH."""

        class Audited(SMTP):
            async def smtp_MAIL(self, arg: str | None) -> Any:
                return await super().smtp_MAIL(arg)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Connection(protocol=Audited, authenticator=friend, auth_required=True)
        self.assertEqual(client.say(b"MAIL FROM:<a@example.com>")[0][:3], b"530")

    def test_warning(self) -> None:
        """Requiring AUTH although passwords are sent without TLS causes one warning, not one for each connection."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = Connection(authenticator=friend, auth_required=True)
            client.factory.buildProtocol(None)
        self.assertEqual([each.category for each in caught], [UserWarning])

    def test_checkAuthNeeded(self) -> None:
        """A subclass's own command can call check_auth_needed."""

        class Server(SMTP):
            async def smtp_STATS(self, arg: str | None) -> Any:
                if await self.check_auth_needed("STATS"):
                    return None
                return "250 none"

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Connection(protocol=Server, authenticator=friend, auth_required=True)
        self.assertEqual(client.say(b"STATS"), [b"530 5.7.0 Authentication required"])
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD, b"STATS"), [OK, b"250 none"])


class ExchangeTests(SynchronousTestCase):
    """Challenges and responses."""

    def test_challenge(self) -> None:
        """Without an initial response, the server sends a challenge. The challenge of PLAIN is empty."""
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH PLAIN"), [b"334 "])
        self.assertEqual(client.say(GOOD), [OK])

    def test_login(self) -> None:
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH LOGIN"), [b"334 VXNlciBOYW1lAA=="])
        self.assertEqual(client.say(b64("user")), [b"334 UGFzc3dvcmQA"])
        self.assertEqual(client.say(b64("sesame")), [OK])

    def test_loginInitialResponse(self) -> None:
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH LOGIN " + b64("user")), [b"334 UGFzc3dvcmQA"])
        self.assertEqual(client.say(b64("sesame")), [OK])

    def test_loginChallenges(self) -> None:
        """The texts of LOGIN's challenges are attributes of the server."""

        class Server(SMTP):
            AuthLoginUsernameChallenge = "Username:"
            AuthLoginPasswordChallenge = "Password:"

        client = Connection(protocol=Server, authenticator=friend)
        self.assertEqual(client.say(b"AUTH LOGIN"), [b"334 VXNlcm5hbWU6"])
        self.assertEqual(client.say(b64("user")), [b"334 UGFzc3dvcmQ6"])

    def test_abort(self) -> None:
        """``*`` ends the exchange (RFC 4954 4). Commands follow it."""
        client = Connection(authenticator=friend)
        for lines in ([b"AUTH PLAIN"], [b"AUTH LOGIN"], [b"AUTH LOGIN", b64("user")]):
            client.say(*lines)
            self.assertEqual(client.say(b"*"), [b"501 5.7.0 Authentication aborted"])
            self.assertEqual(client.say(b"NOOP"), [b"250 2.0.0 OK"])
        self.assertIs(client.session.authenticated, False)

    def test_badBase64(self) -> None:
        """A response that is not strictly base64 is refused. It is not corrected."""
        for word in (b"dXNlcg==!!!", b"dXNlcg", b"dXNlcg=", b"=", b"dXN lcg==", b" dXNlcg==", b"dXNlcg== ", b"=dXNlcg=",
                     b"dXNlcg==dXNlcg==", b"\xff\xfe", b"d\x00XN"):  # fmt: skip
            client = Connection(authenticator=friend)
            client.say(b"AUTH LOGIN")
            self.assertEqual(client.say(word), [b"501 5.5.2 Invalid base64"], word)
            self.assertEqual(client.say(b"NOOP"), [b"250 2.0.0 OK"])

    def test_badInitialResponse(self) -> None:
        for word in (b"*", b"dXNlcg", b"!!!!", "\u00fc".encode()):
            client = Connection(authenticator=friend)
            self.assertEqual(client.say(b"AUTH PLAIN " + word), [b"501 5.5.2 Invalid base64"], word)

    def test_emptyInitialResponse(self) -> None:
        """``=`` is the empty initial response (RFC 4954 4)."""

        class Handler:
            async def auth_EMPTY(self, server: Any, args: list[str]) -> AuthResult:
                return AuthResult(success=args == ["EMPTY", "="])

        @implementer(IAuthMechanism)
        class Echo:
            name = "ECHO"

            async def authenticate(self, exchange: auth.Exchange) -> AuthResult:
                return AuthResult(success=await exchange.challenge() == b"")

        client = Connection(Handler(), auth_mechanisms=[Echo()])
        self.assertEqual(client.say(b"AUTH ECHO ="), [OK])
        self.assertEqual(Connection(Handler()).say(b"AUTH EMPTY ="), [OK])

    def test_emptyAnswer(self) -> None:
        """An empty line is an ordinary response: here, an empty name, which is not passed to the authenticator."""
        asked: list[Any] = []
        client = Connection(authenticator=lambda *arguments: asked.append(arguments) or True)
        client.say(b"AUTH LOGIN")
        self.assertEqual(client.say(b""), [b"334 UGFzc3dvcmQA"])
        self.assertEqual(client.say(b""), [INVALID])
        self.assertEqual(asked, [])

    def test_pipelined(self) -> None:
        """In one segment, the responses follow AUTH, and then commands."""
        client = Connection(authenticator=friend)
        replies = client.say(b"AUTH LOGIN", b64("user"), b64("sesame"), b"NOOP", b"MAIL FROM:<a@example.com>")
        self.assertEqual(replies, [b"334 VXNlciBOYW1lAA==", b"334 UGFzc3dvcmQA", OK, b"250 2.0.0 OK", b"250 2.1.0 OK"])

    def test_cutAnywhere(self) -> None:
        """The replies do not depend on how the input is split, even if the authenticator takes time."""
        octets = b"".join(
            line + b"\r\n"
            for line in (b"AUTH LOGIN", b64("user"), b64("xyzzy"), b"NOOP", b"AUTH PLAIN", b"*", b"AUTH LOGIN",
                         b"!", b"AUTH PLAIN " + GOOD, b"NOOP", b"QUIT")
        )  # fmt: skip
        expected = [
            b"334 VXNlciBOYW1lAA==", b"334 UGFzc3dvcmQA", INVALID, b"250 2.0.0 OK", b"334 ",
            b"501 5.7.0 Authentication aborted", b"334 VXNlciBOYW1lAA==", b"501 5.5.2 Invalid base64", OK,
            b"250 2.0.0 OK", b"221 2.0.0 Goodbye",
        ]  # fmt: skip

        for late in (False, True):
            waiting: list[Deferred[None]] = []

            async def decide(*arguments: Any, late: bool = late, waiting: Any = waiting) -> bool:
                if late:
                    waiting.append(Deferred())
                    await waiting[-1]
                return friend(*arguments)

            def drained(client: Connection, waiting: Any = waiting) -> list[bytes]:
                while waiting:
                    waiting.pop().callback(None)
                return client.heard()

            for cut in range(len(octets)):
                client = Connection(authenticator=decide)
                replies = client.send(octets[:cut]) + drained(client) + client.send(octets[cut:]) + drained(client)
                self.assertEqual(replies, expected, cut)
                self.assertTrue(client.transport.disconnecting)
            client = Connection(authenticator=decide)
            replies = [line for octet in octets for line in client.send(bytes([octet])) + drained(client)]
            self.assertEqual(replies, expected)

    def test_questionAfterWaiting(self) -> None:
        """A mechanism may wait for something else between its challenges."""
        waiting: list[Deferred[None]] = []

        @implementer(IAuthMechanism)
        class Slow:
            name = "SLOW"

            async def authenticate(self, exchange: auth.Exchange) -> AuthResult:
                said = [await exchange.challenge(b"1")]
                waiting.append(Deferred())
                await waiting[-1]
                said.append(await exchange.challenge(b"2"))
                return AuthResult(success=said == [b"one", b"two"])

        lines = [b"AUTH SLOW", b64("one"), b64("two"), b"NOOP"]
        expected = [b"334 MQ==", b"334 Mg==", OK, b"250 2.0.0 OK"]
        for before in range(len(lines) + 1):
            client = Connection(auth_mechanisms=[Slow()])
            replies = client.say(*lines[:before])
            if waiting:
                waiting.pop().callback(None)
            replies += client.heard() + client.say(*lines[before:])
            if waiting:
                waiting.pop().callback(None)
            self.assertEqual(replies + client.heard(), expected, before)

    def test_longAnswer(self) -> None:
        """Lines of 12,288 octets are accepted. A longer line is refused, and no part of it is executed as a command."""
        client = Connection(authenticator=friend)
        word = b"A" * 12288
        client.say(b"AUTH LOGIN")
        self.assertEqual(client.say(word), [b"334 UGFzc3dvcmQA"])
        self.assertEqual(client.say(word), [INVALID])
        client.say(b"AUTH LOGIN")
        self.assertEqual(
            client.say(word + b"A", b"NOOP"), [b"500 5.5.6 Authentication exchange line is too long", b"250 2.0.0 OK"]
        )

    def test_longInitialResponse(self) -> None:
        """The command may be as long as a response, since tokens are long."""
        client = Connection(authenticator=friend)
        self.assertEqual(client.say(b"AUTH PLAIN " + b64("\0user\0" + "x" * 9000)), [INVALID])
        self.assertEqual(client.say(b"AUTH PLAIN " + b"A" * 12288)[0][:3], b"500")
        self.assertEqual(client.say(b"NOOP " + b"A" * 600), [b"500 5.5.2 Command line too long"])

    def test_endlessAnswer(self) -> None:
        """A response without an end closes the connection."""
        client = Connection(authenticator=friend)
        client.say(b"AUTH LOGIN")
        self.assertEqual(client.send(b"A" * (ENDLESS_LINE + 10)), [b"421 4.7.0 Line too long, closing connection"])
        self.assertTrue(client.transport.disconnecting)

    def test_bareNewline(self) -> None:
        client = Connection(authenticator=friend)
        client.say(b"AUTH LOGIN")
        self.assertEqual(client.send(b64("user") + b"\n")[0][:9], b"500 5.5.2")
        self.assertEqual(client.say(b"NOOP"), [b"250 2.0.0 OK"])

    def test_serverFirst(self) -> None:
        """If the server sends the first message, an initial response is refused (RFC 4954 4)."""
        client = Connection(authenticator=friend, auth_mechanisms=[auth.CramMD5()])
        self.assertEqual(client.say(b"AUTH CRAM-MD5 AAAA")[0][:9], b"501 5.7.0")


class TimeTests(SynchronousTestCase):
    """Timeouts during AUTH, and clients that disconnect."""

    def test_idleClient(self) -> None:
        """While the server waits for a response, the client's timeout applies."""
        client = Connection(authenticator=friend, timeout=300, hook_timeout=10)
        client.say(b"AUTH LOGIN")
        client.clock.advance(200)
        self.assertEqual(client.say(b64("user")), [b"334 UGFzc3dvcmQA"])
        client.clock.advance(299)
        self.assertEqual(client.heard(), [])
        client.clock.advance(1)
        self.assertEqual(client.heard(), [b"421 4.4.2 Idle timeout, closing connection"])
        self.assertTrue(client.transport.disconnecting)

    def test_slowAuthenticator(self) -> None:
        """While the authenticator runs, the server's timeout applies."""
        cancelled: list[Any] = []
        client = Connection(authenticator=lambda *_: Deferred(cancelled.append), timeout=5, hook_timeout=10)
        client.say(b"AUTH LOGIN", b64("user"))
        client.clock.advance(4)
        client.say(b64("sesame"))
        client.clock.advance(9)
        self.assertEqual(client.heard(), [])
        client.clock.advance(1)
        self.assertEqual(client.heard()[0][:9], b"451 4.3.0")
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(client.say(b"NOOP"), [b"250 2.0.0 OK"])
        self.assertIs(client.session.authenticated, False)
        self.flushLoggedErrors()

    def test_goneWhileAsked(self) -> None:
        """If a client disconnects during AUTH, the authenticator is cancelled and nothing is left."""
        for lines in ([b"AUTH LOGIN"], [b"AUTH LOGIN", b64("user")], [b"AUTH PLAIN"]):
            client = Connection(authenticator=friend)
            client.say(*lines)
            client.server.connectionLost(Failure(ConnectionLost()))
            self.assertEqual(client.clock.getDelayedCalls(), [])
            self.assertEqual(client.factory.connections, set())

    def test_goneWhileDeciding(self) -> None:
        cancelled: list[Any] = []
        client = Connection(authenticator=lambda *_: Deferred(cancelled.append))
        client.say(b"AUTH PLAIN " + GOOD)
        client.server.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_goneWhileDelayed(self) -> None:
        client = Connection(authenticator=friend, auth_failure_delay=5)
        client.say(b"AUTH PLAIN " + WRONG)
        client.server.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_halfClosed(self) -> None:
        """A client that has closed its side before its response gets a reply that says so."""
        for late in (False, True):
            client = Connection(authenticator=friend)
            if late:
                client.say(b"AUTH LOGIN")
            else:
                client.server.dataReceived(b"AUTH LOGIN\r\n")
            client.server.readConnectionLost()
            self.assertEqual(client.heard()[-1][:9], b"501 5.7.0")
            self.assertTrue(client.transport.disconnecting)

    def test_halfClosedBehindAnswers(self) -> None:
        """Responses that were sent before the client closed its side are processed."""
        client = Connection(authenticator=friend)
        client.server.dataReceived(b"AUTH LOGIN\r\n" + b64("user") + b"\r\n" + b64("sesame") + b"\r\n")
        client.server.readConnectionLost()
        self.assertEqual(client.heard()[-1], OK)
        self.assertTrue(client.transport.disconnecting)

    def test_clientDoesNotRead(self) -> None:
        """An exchange continues when a client that has stopped reading reads again."""
        client = Connection(authenticator=friend)
        client.say(b"AUTH LOGIN")
        client.server.pauseProducing()
        self.assertEqual(client.say(b64("user")), [])
        client.server.resumeProducing()
        self.assertEqual(client.heard(), [b"334 UGFzc3dvcmQA"])

    def test_delay(self) -> None:
        """The reply to a wrong password is delayed. The reply to the right one is not."""
        client = Connection(authenticator=friend, auth_failure_delay=5)
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG, b"NOOP"), [])
        client.clock.advance(4.9)
        self.assertEqual(client.heard(), [])
        client.clock.advance(0.1)
        self.assertEqual(client.heard(), [INVALID, b"250 2.0.0 OK"])
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])


class GuessingTests(SynchronousTestCase):
    """Limits on failed attempts."""

    def test_failures(self) -> None:
        """The third wrong password closes the connection."""
        client = Connection(authenticator=friend)
        attempt = b"AUTH PLAIN " + WRONG
        self.assertEqual(client.say(attempt, attempt, attempt, b"AUTH PLAIN " + GOOD), [INVALID, INVALID, GOODBYE])
        self.assertTrue(client.transport.disconnecting)

    def test_hundred(self) -> None:
        """Of a hundred wrong passwords sent at once, the authenticator gets three."""
        asked: list[bytes] = []

        async def authenticator(*arguments: Any) -> bool:
            asked.append(arguments[-1].password)
            return False

        client = Connection(authenticator=authenticator)
        replies = client.say(*(b"AUTH PLAIN " + plain("user", f"guess{n}") for n in range(100)))
        self.assertEqual(replies, [INVALID, INVALID, GOODBYE])
        self.assertEqual(asked, [b"guess0", b"guess1", b"guess2"])

    def failures(self, about: str = " failed for ") -> list[str]:
        """Collect the log events of failures."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            text = formatEvent(event)
            if about in text:
                lines.append(text.partition(" ")[2])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_loggedAtOnce(self) -> None:
        """A failure is counted and logged before the reply is delayed, with the client and the user name."""
        lines = self.failures()
        client = Connection(authenticator=friend, auth_failure_delay=5, auth_failure_limit=1)
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG), [])
        self.assertEqual(lines, ["authentication by PLAIN failed for 'user', client 192.168.1.1:54321"])
        self.assertEqual(client.server._auth.failures, 1)
        client.server.connectionLost(Failure(ConnectionLost()))
        client.clock.advance(10)
        self.assertEqual(len(lines), 1)

    def test_loggedOfMechanisms(self) -> None:
        """The user name is logged, escaped, if it is known. Passwords and tokens are not logged."""
        lines = self.failures()
        deny = lambda *_: False  # noqa: E731
        mechanisms = [auth.CramMD5(), auth.XOAuth2(), auth.Scram("SHA-256", {}.get)]
        client = Connection(authenticator=deny, auth_mechanisms=mechanisms, auth_failure_limit=None)
        client.say(b"AUTH LOGIN", b64("J\u00fcr'gen\u200b"), b64("xyzzy"))
        client.say(b"AUTH CRAM-MD5", b64("user " + "0" * 32))
        (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64("n,,n=tim,r=a"))
        nonce = base64.b64decode(line[4:]).decode().partition(",")[0]
        client.say(b64(f"c=biws,{nonce},p=AAAA"))
        client.say(b"AUTH PLAIN " + b64("\0user\0"))
        client.say(b"AUTH XOAUTH2 " + b64("user=bob\1auth=Bearer xyzzy\1\1"))
        self.assertEqual(
            lines,
            [
                f"authentication by {what}, client 192.168.1.1:54321"
                for what in (
                    "LOGIN failed for " + ascii("J\u00fcr'gen\u200b"),
                    "CRAM-MD5 failed for 'user'",
                    "SCRAM-SHA-256 failed for 'tim'",
                    "PLAIN failed for an unknown user",
                    "XOAUTH2 failed for 'bob'",  # logged before the final reply
                )
            ],
        )
        client.say(b"")
        self.assertEqual((len(lines), client.server._auth.failures), (5, 5))

    def test_successLogged(self) -> None:
        """A login is logged with the user name, escaped, and without the password."""
        lines = self.failures("authenticated by ")
        for name, mechanisms in ("user", []), ("J\u00fcr'gen\u200b", []), ("bob", [auth.XOAuth2()]):
            client = Connection(authenticator=lambda *_: True, auth_mechanisms=mechanisms)
            if mechanisms:
                client.say(b"AUTH XOAUTH2 " + b64(f"user={name}\1auth=Bearer xyzzy\1\1"))
            else:
                client.say(b"AUTH LOGIN", b64(name), b64("xyzzy"))
        self.assertEqual(
            lines,
            [
                "authenticated by LOGIN as 'user', client 192.168.1.1:54321",
                "authenticated by LOGIN as " + ascii("J\u00fcr'gen\u200b") + ", client 192.168.1.1:54321",
                "authenticated by XOAUTH2 as 'bob', client 192.168.1.1:54321",
            ],
        )

    def test_successOfOwnMechanisms(self) -> None:
        """The login of a mechanism of a handler is logged, if the result contains it."""

        class Handler:
            def __init__(self, auth_data: object) -> None:
                self.auth_data = auth_data

            async def auth_OWN(self, server: Any, args: Any) -> AuthResult:
                return AuthResult(success=True, auth_data=self.auth_data)

        lines = self.failures("authenticated by ")
        for auth_data in LoginPassword(b"tim", b"xyzzy"), "xyzzy", None, LoginPassword(b"", b""):
            Connection(Handler(auth_data)).say(b"AUTH OWN")
        shown = ("'tim'", *["a user without a name"] * 3)
        self.assertEqual(lines, [f"authenticated by OWN as {each}, client 192.168.1.1:54321" for each in shown])

    def test_attempts(self) -> None:
        """Attempts that fail before the authenticator are counted, too."""
        client = Connection(authenticator=friend, error_limit=None, error_delay=0)
        replies = [client.say(b"AUTH LOGIN", b"*")[-1][:3] for _ in range(11)]
        self.assertEqual(replies, [b"501"] * 10 + [b"421"])
        self.assertTrue(client.transport.disconnecting)

    def test_noLimits(self) -> None:
        client = Connection(authenticator=friend, auth_failure_limit=None, auth_attempt_limit=None, error_limit=None)
        replies = client.say(*[b"AUTH PLAIN " + WRONG] * 100)
        self.assertEqual(replies, [INVALID] * 100)


class AuthenticatorTests(SynchronousTestCase):
    """Which results of an authenticator are accepted."""

    def test_arguments(self) -> None:
        asked: list[Any] = []

        def authenticator(*arguments: Any) -> AuthResult:
            asked.append(arguments)
            return AuthResult(success=True, auth_data="somebody")

        client = Connection(authenticator=authenticator)
        self.assertEqual(client.say(b"AUTH LOGIN " + b64("user"), b64("sesame"))[-1], OK)
        self.assertEqual(
            asked, [(client.server, client.session, client.server.envelope, "LOGIN", LoginPassword(b"user", b"sesame"))]
        )
        self.assertEqual(client.session.auth_data, "somebody")

    def decided(self, authenticator: Any) -> bytes:
        """The reply to credentials that this authenticator checks."""
        client = Connection(authenticator=authenticator)
        (reply,) = client.say(b"AUTH PLAIN " + WRONG)
        self.assertEqual(client.session.authenticated, reply == OK)
        return reply

    def test_coroutine(self) -> None:
        """A coroutine is awaited. Its result decides, not the coroutine object, which is true."""

        async def no(*arguments: Any) -> AuthResult:
            return AuthResult(success=False)

        async def yes(*arguments: Any) -> bool:
            return True

        self.assertEqual(self.decided(no), INVALID)
        self.assertEqual(self.decided(yes), OK)

    def test_deferred(self) -> None:
        self.assertEqual(self.decided(lambda *_: succeed(False)), INVALID)
        self.assertEqual(self.decided(lambda *_: succeed(AuthResult(success=True))), OK)

    def test_hidden(self) -> None:
        """A coroutine that returns a coroutine does not authenticate the client either."""

        async def no(*arguments: Any) -> bool:
            return False

        async def forgetful(*arguments: Any) -> Any:
            forgotten.append(no(*arguments))
            return forgotten[-1]

        forgotten: list[Any] = []
        self.assertEqual(self.decided(forgetful), b"454 4.7.0 Temporary authentication failure")
        forgotten.pop().close()

    def test_truthiness(self) -> None:
        """A result other than an AuthResult, True or False does not authenticate the client."""
        for result in (None, 1, 0, "yes", b"", object(), LoginPassword(b"a", b"b"), AuthResult(success=1)):  # type: ignore[arg-type]
            self.assertEqual(
                self.decided(lambda *_, result=result: result), b"454 4.7.0 Temporary authentication failure", result
            )

    def test_failing(self) -> None:
        """An authenticator that raises an exception has made no decision."""
        self.assertEqual(self.decided(lambda *_: 1 / 0)[:9], b"451 4.3.0")
        self.assertEqual(self.decided(lambda *_: fail(ValueError()))[:9], b"451 4.3.0")

    def test_message(self) -> None:
        """The result may contain the reply, if that agrees with the result."""
        self.assertEqual(self.decided(lambda *_: AuthResult(success=False, message="535 5.7.8 No")), b"535 5.7.8 No")
        self.assertEqual(
            self.decided(lambda *_: AuthResult(success=False, message="454 4.7.0 Later")), b"454 4.7.0 Later"
        )
        self.assertEqual(self.decided(lambda *_: AuthResult(success=False, message="235 2.7.0 Yes")), INVALID)
        self.assertEqual(self.decided(lambda *_: AuthResult(success=True, message="535 5.7.8 No")), OK)
        self.assertEqual(self.decided(lambda *_: AuthResult(success=False, message="nonsense")), INVALID)

    def test_notHandled(self) -> None:
        self.assertEqual(self.decided(lambda *_: AuthResult(success=False, handled=False)), INVALID)

    def test_callback(self) -> None:
        """The deprecated auth_callback."""
        for result, reply in (
            (True, OK),
            (False, INVALID),
            (None, INVALID),
            ("yes", b"454 4.7.0 Temporary authentication failure"),
        ):
            asked: list[Any] = []

            async def callback(*arguments: Any, result: Any = result, asked: Any = asked) -> Any:
                asked.append(arguments)
                return result

            client = Connection(auth_callback=callback)
            self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [reply])
            self.assertEqual(asked, [("PLAIN", b"user", b"sesame")])

    def test_authenticatorBeforeCallback(self) -> None:
        client = Connection(authenticator=friend, auth_callback=lambda *_: self.fail())
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])

    def test_options(self) -> None:
        """Invalid options are refused when the factory is created."""
        for options in (
            {"authenticator": "friend"}, {"auth_callback": 1}, {"auth_required": None}, {"auth_require_tls": 1},
            {"auth_exclude_mechanism": "PLAIN"}, {"auth_mechanisms": ["PLAIN"]}, {"auth_failure_limit": "3"},
            {"auth_failure_delay": None}, {"protocol_mechanisms": {}},
            {"authenticator": friend, "portal": Portal(None)},  # type: ignore[arg-type]
        ):  # fmt: skip
            self.assertRaises(TypeError, Settings.make, None, options)


class HiddenTests(LoggingTestCase):
    """AUTH that is never offered."""

    def told(self, *clients: Client) -> int:
        """Return how often the log reports it, after the greetings of these clients."""
        for client in clients:
            client.talk(b"EHLO a\r\nEHLO a\r\nHELP\r\n")
        return sum("AUTH is not offered" in line for line in self.logged("warn"))

    def test_noTls(self) -> None:
        """A factory with an authenticator but without TLS logs once that AUTH needs TLS, and what to do."""
        factory = SMTPFactory(authenticator=friend)
        self.assertEqual(self.told(Client(factory=factory), Client(factory=factory)), 1)
        [line] = self.logged("warn")
        self.assertIn("give tls_context, or auth_require_tls=False", line)

    def test_otherwise(self) -> None:
        """Nothing is logged if the client can start TLS, uses TLS, need not use it, or if no client can
        authenticate."""
        tls: dict[str, Any] = {"authenticator": friend, "tls_context": PretendedTLS()}
        self.assertEqual(self.told(Client(**tls)), 0)
        self.assertEqual(self.told(Client(**tls, implicit_tls=True)), 0)
        self.assertEqual(self.told(Client(authenticator=friend, auth_require_tls=False)), 0)
        self.assertEqual(self.told(Client()), 0)
        client = Client(authenticator=friend)
        client.server.session.ssl = Tls()  # type: ignore[assignment]  # from the endpoint
        self.assertEqual(self.told(client), 0)

    def test_wordsOfRun(self) -> None:
        """``run`` warns when it starts, but not if its endpoint provides TLS."""
        settings = SMTPFactory(authenticator=friend).settings
        self.assertEqual(len([*useless_auth(settings)]), 1)
        self.assertEqual([*useless_auth(settings, in_tls=True)], [])


class OfferTests(SynchronousTestCase):
    """AUTH in the reply to EHLO."""

    def test_builtIn(self) -> None:
        self.assertEqual(Connection(authenticator=friend).offered(), b"AUTH LOGIN PLAIN")

    def test_excluded(self) -> None:
        client = Connection(authenticator=friend, auth_exclude_mechanism=["login"])
        self.assertEqual(client.offered(), b"AUTH PLAIN")
        self.assertEqual(client.say(b"AUTH LOGIN")[0][:3], b"504")

    def test_allExcluded(self) -> None:
        """EHLO has no line AUTH if there are no mechanisms."""
        self.assertIsNone(Connection(authenticator=friend, auth_exclude_mechanism=["LOGIN", "PLAIN"]).offered())

    def test_own(self) -> None:
        client = Connection(auth_mechanisms=[auth.CramMD5()], authenticator=friend)
        self.assertEqual(client.offered(), b"AUTH CRAM-MD5 LOGIN PLAIN")

    def test_available(self) -> None:
        """EXTERNAL is offered to clients with a certificate."""
        client = Connection(auth_mechanisms=[auth.External(friend)])
        self.assertIsNone(client.offered())
        client.session.ssl = Tls()
        self.assertIsNone(client.offered())
        client.session.ssl.peer_certificate = "a certificate"
        self.assertEqual(client.offered(), b"AUTH EXTERNAL")

    def test_nobodyDecides(self) -> None:
        """A mechanism is offered only if something can check its credentials."""
        mechanisms = [auth.CramMD5(), auth.XOAuth2(), auth.OAuthBearer(), auth.External()]
        client = Connection(auth_mechanisms=mechanisms)
        self.assertIsNone(client.offered())
        self.assertEqual(client.say(b"AUTH CRAM-MD5")[0][:3], b"502")
        client = Connection(auth_mechanisms=mechanisms, auth_callback=lambda *_: True)
        client.session.ssl = Tls()
        client.session.ssl.peer_certificate = "a certificate"
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        client = Connection(auth_mechanisms=[*mechanisms, auth.Scram("SHA-256", {}.get)])
        self.assertEqual(client.offered(), b"AUTH SCRAM-SHA-256")
        client = Connection(auth_mechanisms=[auth.CramMD5(), auth.XOAuth2(friend)])
        self.assertEqual(client.offered(), b"AUTH XOAUTH2")

    def test_portalDecides(self) -> None:
        """A portal checks the credentials for which it has checkers."""

        @implementer(ICredentialsChecker)
        class Hashed:
            credentialInterfaces = (IUsernamePassword,)

            def requestAvatarId(self, credentials: Any) -> bytes:
                return b"user"

        mechanisms = [auth.CramMD5(), auth.XOAuth2()]
        client = Connection(auth_mechanisms=mechanisms, portal=Portal(auth.NameRealm(), [Hashed()]))
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        portal = Portal(auth.NameRealm(), [InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame")])
        self.assertEqual(Connection(auth_mechanisms=mechanisms, portal=portal).offered(), b"AUTH CRAM-MD5 LOGIN PLAIN")

    def test_hookDecides(self) -> None:
        """handle_AUTH may decide about any mechanism."""

        class Handler:
            def handle_AUTH(self, *arguments: Any) -> str:
                return "235 2.7.0 OK"

        client = Connection(Handler(), auth_mechanisms=[auth.CramMD5()])
        self.assertEqual(client.offered(), b"AUTH CRAM-MD5 LOGIN PLAIN")

    def test_availableFails(self) -> None:
        """A mechanism whose available() raises an exception is not offered, and the exception is logged."""

        class Broken(auth.CramMD5):
            def available(self, session: Any) -> bool:
                raise KeyError("broken")

        client = Connection(auth_mechanisms=[Broken()], authenticator=friend)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(client.greeting[0][:4], b"250-")
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        self.assertEqual(client.say(b"AUTH CRAM-MD5")[0][:3], b"504")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)

    def test_interfaces(self) -> None:
        """All mechanisms provide their interface."""
        for mechanism in (auth.Plain(), auth.Login(), auth.CramMD5(), auth.XOAuth2(), auth.OAuthBearer(),
                          auth.External(friend), auth.Scram("SHA-256", {}.get)):  # fmt: skip
            verifyObject(IAuthMechanism, mechanism)

    def test_replaced(self) -> None:
        """A mechanism with the name of a built-in one replaces it."""

        @implementer(IAuthMechanism)
        class Mine:
            name = "PLAIN"

            async def authenticate(self, exchange: auth.Exchange) -> AuthResult:
                return AuthResult(success=True, auth_data="mine")

        client = Connection(auth_mechanisms=[Mine()], authenticator=friend)
        client.say(b"AUTH PLAIN")
        self.assertEqual(client.session.auth_data, "mine")


class SubmitterTests(SynchronousTestCase):
    """The parameter AUTH of MAIL (RFC 4954 5)."""

    def test_claim(self) -> None:
        """The parameter is parsed, and counts as an unknown user if the client is not trusted."""
        for value in (b"<>", b"e+3Dmc2@example.com", b"a@example.com"):
            client = Connection(authenticator=friend)
            self.assertEqual(client.say(b"MAIL FROM:<a@example.com> AUTH=" + value), [b"250 2.1.0 OK"])
            self.assertEqual(client.server.envelope.mail_options, ["AUTH=<>"])

    def test_malformed(self) -> None:
        client = Connection(authenticator=friend)
        for value in (b" AUTH", b" AUTH=", b" AUTH=+0D+0A", b" AUTH=+zz", b" AUTH=a+"):
            self.assertEqual(client.say(b"MAIL FROM:<a@example.com>" + value)[0][:9], b"501 5.5.4", value)

    def test_trusted(self) -> None:
        """A subclass of Auth may trust clients. The value stays encoded."""

        class Trusting(Auth):
            def trusts(self, envelope: Any, mailbox: str) -> bool:
                return mailbox == "e=mc2@example.com"

        client = Connection(authenticator=friend, extensions=[Trusting()])
        client.say(b"MAIL FROM:<a@example.com> AUTH=e+3Dmc2@example.com")
        self.assertEqual(client.server.envelope.mail_options, ["AUTH=e+3Dmc2@example.com"])

    def test_length(self) -> None:
        """AUTH= makes MAIL up to 500 octets longer."""
        client = Connection(authenticator=friend)
        value = encode_xtext("a" * 440 + "@example.com").encode()
        self.assertEqual(client.say(b"MAIL FROM:<" + b"a" * 50 + b"@example.com> AUTH=" + value), [b"250 2.1.0 OK"])


class MethodTests(SynchronousTestCase):
    """``auth_MECHANISM`` methods of a handler or of the server's class."""

    def test_handler(self) -> None:
        class Handler:
            async def auth_X__TOKEN(self, server: Any, args: list[str]) -> AuthResult:
                answer = await server.challenge_auth("Token?")
                return AuthResult(success=answer == b"sesame", auth_data="x")

        client = Connection(Handler())
        self.assertEqual(client.offered(), b"AUTH X-TOKEN")
        self.assertEqual(client.say(b"AUTH X-TOKEN"), [b"334 VG9rZW4/"])
        self.assertEqual(client.say(b64("sesame")), [OK])
        self.assertEqual(client.session.auth_data, "x")

    def test_server(self) -> None:
        """The handler's method takes precedence over the class's."""

        class Server(SMTP):
            def auth_ONE(self, server: Any, args: list[str]) -> AuthResult:
                return AuthResult(success=self is server, auth_data="server")

            auth_TWO = auth_ONE

        class Handler:
            def auth_TWO(self, server: Any, args: list[str]) -> Deferred[AuthResult]:
                return succeed(AuthResult(success=True, auth_data="handler"))

        for name, data in ((b"ONE", "server"), (b"TWO", "handler")):
            client = Connection(Handler(), protocol=Server)
            self.assertEqual(client.offered(), b"AUTH ONE TWO")
            self.assertEqual(client.say(b"AUTH " + name), [OK])
            self.assertEqual(client.session.auth_data, data)

    def test_withoutFactory(self) -> None:
        """A protocol that is created without a factory finds the methods of its class."""

        class Server(SMTP):
            def auth_ONE(self, server: Any, args: list[str]) -> AuthResult:
                return AuthResult(success=True)

        self.assertEqual(list(Server(None).settings.mechanisms), ["ONE"])

    def test_decorator(self) -> None:
        class Handler:
            @auth_mechanism("x-one")
            async def auth_mine(self, server: Any, args: list[str]) -> AuthResult:
                return AuthResult(success=args == ["X-ONE", "YQ=="])

        self.assertEqual(Connection(Handler()).say(b"AUTH x-One YQ=="), [OK])
        self.assertRaises(ValueError, auth_mechanism, "x one")
        self.assertRaises(ValueError, auth_mechanism, "")

    def test_notCallable(self) -> None:
        """Attributes that are not methods are not mechanisms."""

        class Backend:
            def __call__(self, server: Any, args: list[str]) -> AuthResult:
                return AuthResult(success=True)

        class Handler:
            auth_backend = "ldap"
            auth_other = Backend()
            auth_ = 1

        self.assertIsNone(Connection(Handler()).offered())

    def results(self, result: Any) -> tuple[bytes, Any]:
        class Handler:
            def auth_OLD(self, server: Any, args: list[str]) -> Any:
                return result

        client = Connection(Handler())
        (reply,) = client.say(b"AUTH OLD")
        return reply, client.session.authenticated

    def test_legacyResults(self) -> None:
        """Results in aiosmtpd's older forms. A success authenticates the session, too."""
        self.assertEqual(self.results(MISSING), (INVALID, False))
        self.assertEqual(self.results(False), (INVALID, False))
        self.assertEqual(self.results(None), (INVALID, False))
        for nobody in (0, "", b"", {}, [], ()):
            self.assertEqual(self.results(nobody), (INVALID, False), nobody)
        self.assertEqual(self.results("user"), (OK, True))
        self.assertEqual(self.results(True), (OK, True))
        self.assertEqual(self.results(AuthResult(success=False)), (INVALID, False))

    def test_handled(self) -> None:
        """If a method has pushed its reply, no other reply is sent."""

        class Handler:
            async def auth_OLD(self, server: Any, args: list[str]) -> None:
                server.session.authenticated = True
                await server.push("235 2.7.0 Welcome")

            async def auth_NEW(self, server: Any, args: list[str]) -> AuthResult:
                await server.push("535 5.7.8 Not you")
                return AuthResult(success=False)

        client = Connection(Handler())
        self.assertEqual(client.say(b"AUTH OLD", b"NOOP"), [b"235 2.7.0 Welcome", b"250 2.0.0 OK"])
        self.assertIs(client.session.authenticated, True)
        client = Connection(Handler())
        self.assertEqual(client.say(*[b"AUTH NEW"] * 4), [b"535 5.7.8 Not you"] * 3)
        self.assertTrue(client.transport.disconnecting)

    def test_gaveUp(self) -> None:
        """A client that cancels gets one reply, whatever the method returns, and is not authenticated."""
        for result in (MISSING, None, False, "anybody", AuthResult(success=False), AuthResult(success=True)):

            class Handler:
                async def auth_OLD(self, server: Any, args: list[str], result: Any = result) -> Any:
                    answer = await server.challenge_auth("", encode_to_b64=False)
                    assert answer is MISSING
                    return result

            for answer, reply in ((b"*", b"501 5.7.0"), (b"!", b"501 5.5.2")):
                client = Connection(Handler())
                self.assertEqual(client.say(b"AUTH OLD"), [b"334 "])
                first, second = client.say(answer, b"NOOP")
                self.assertEqual((first[:9], second), (reply, b"250 2.0.0 OK"))
                self.assertIs(client.session.authenticated, False)

    def test_rawChallenge(self) -> None:
        class Handler:
            async def auth_RAW(self, server: Any, args: list[str]) -> Any:
                return await server.challenge_auth(b64("raw"), encode_to_b64=False)

        client = Connection(Handler())
        self.assertEqual(client.say(b"AUTH RAW"), [b"334 " + b64("raw")])
        self.assertEqual(client.say(b64("me")), [OK])
        self.assertEqual(client.session.auth_data, b"me")

    def test_lineEndInChallenge(self) -> None:
        """A challenge with a line end is not sent, because the client would take the rest for another reply."""
        for challenge in ("eA==\r\n235 2.7.0 OK", "eA==\n", "\reA=="):

            class Handler:
                async def auth_ONE(self, server: Any, args: list[str], challenge: str = challenge) -> Any:
                    return await server.challenge_auth(challenge, encode_to_b64=False)

            client = Connection(Handler())
            self.assertEqual([each[:3] for each in client.say(b"AUTH ONE")], [b"451"])
            self.assertEqual(client.say(b"NOOP"), [b"250 2.0.0 OK"])

    def test_logClientResponse(self) -> None:
        """log_client_response has no effect except a warning."""

        class Handler:
            async def auth_LOGGED(self, server: Any, args: list[str]) -> Any:
                return await server.challenge_auth("", log_client_response=True)

        client = Connection(Handler())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client.say(b"AUTH LOGGED")
        self.assertEqual([each.category for each in caught], [UserWarning])

    def test_hook(self) -> None:
        """handle_AUTH replaces the mechanisms."""

        class Handler:
            async def handle_AUTH(self, server: Any, session: Any, envelope: Any, args: list[str]) -> Any:
                if args[0] == "LOGIN":
                    return MISSING
                session.authenticated = args[1] == "AAAA"
                return "235 2.7.0 Hello" if session.authenticated else "535 5.7.8 No"

        client = Connection(Handler())
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        self.assertEqual(client.say(b"AUTH GSSAPI")[0][:3], b"504")
        self.assertEqual(client.say(b"AUTH PLAIN BBBB"), [b"535 5.7.8 No"])
        self.assertEqual(client.say(b"AUTH LOGIN", b64("user"), b64("sesame"))[-1], INVALID)
        self.assertEqual(client.say(b"AUTH PLAIN AAAA"), [b"235 2.7.0 Hello"])
        self.assertIs(client.session.authenticated, True)


class IUser(Interface):
    """An avatar."""


class Realm:
    """A realm that records who is logged in."""

    def __init__(self) -> None:
        self.present: list[bytes] = []

    def requestAvatar(self, avatarId: bytes, mind: object, *interfaces: Any) -> Any:
        self.present.append(avatarId)
        return interfaces[0], f"avatar of {avatarId.decode()}", lambda: self.present.remove(avatarId)


class PortalTests(SynchronousTestCase):
    """A portal of twisted.cred makes the decision."""

    def setUp(self) -> None:
        self.realm = Realm()
        self.portal = Portal(self.realm, [InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame")])

    def test_password(self) -> None:
        client = Connection(portal=self.portal)
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN")
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG), [INVALID])
        self.assertEqual(client.say(b"AUTH PLAIN " + plain("nobody", "sesame")), [INVALID])
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])
        self.assertEqual(client.session.auth_data, "avatar of user")

    def test_logout(self) -> None:
        """The avatar is logged out when the connection is lost."""
        client = Connection(portal=self.portal)
        client.say(b"AUTH PLAIN " + GOOD)
        self.assertEqual(self.realm.present, [b"user"])
        client.server.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.realm.present, [])

    def test_file(self) -> None:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write("user:sesame\n")
        client = Connection(portal=Portal(self.realm, [FilePasswordDB(path)]))
        self.assertEqual(client.say(b"AUTH PLAIN " + WRONG, b"AUTH PLAIN " + GOOD), [INVALID, OK])

    def test_cramMD5(self) -> None:
        """Checkers that know passwords can verify a challenge response."""
        client = Connection(portal=self.portal, auth_mechanisms=[auth.CramMD5()])
        import hmac
        from base64 import b64decode

        for password, reply in ((b"xyzzy", INVALID), (b"sesame", OK)):
            (challenge,) = client.say(b"AUTH CRAM-MD5")
            digest = hmac.new(password, b64decode(challenge[4:]), "md5").hexdigest()
            self.assertEqual(client.say(b64(f"user {digest}")), [reply])
        self.assertEqual(client.session.auth_data, "avatar of user")

    def test_interface(self) -> None:
        """The realm can be asked for a custom interface."""
        asked: list[Any] = []

        class Particular(Realm):
            def requestAvatar(self, avatarId: bytes, mind: object, *interfaces: Any) -> Any:
                asked.extend(interfaces)
                return super().requestAvatar(avatarId, mind, *interfaces)

        portal = Portal(Particular(), self.portal.checkers.values())
        client = Connection(authenticator=PortalAuthenticator(portal, IUser))
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [OK])
        self.assertEqual(asked, [IUser])

    def test_noCheckerForPasswords(self) -> None:
        """Without a checker for passwords, no mechanism that needs passwords is offered."""
        self.assertIsNone(Connection(portal=Portal(self.realm)).offered())

    def test_unhandled(self) -> None:
        """Credentials that no checker accepts are an error of the server."""

        @implementer(IAuthMechanism)
        class Odd:
            """A mechanism that does not declare the class of its credentials."""

            name = "PLAIN"

            async def authenticate(self, exchange: auth.Exchange) -> auth.BearerToken:
                return auth.BearerToken("user", "token")

        client = Connection(portal=Portal(self.realm), auth_mechanisms=[Odd()])
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD)[0][:3], b"451")

    def test_firstOf(self) -> None:
        """Several checkers for one kind of credentials are asked in turn."""
        checkers = [
            InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame"),
            InMemoryUsernamePasswordDatabaseDontUse(other=b"mustard"),
        ]
        portal = Portal(auth.NameRealm(), [auth.FirstOf(checkers)])
        for login, password in (("user", "sesame"), ("other", "mustard")):
            client = Connection(portal=portal)
            self.assertEqual(client.say(b"AUTH PLAIN " + plain(login, password)), [OK])
            self.assertEqual(client.session.auth_data, login)
        self.assertEqual(Connection(portal=portal).say(b"AUTH PLAIN " + plain("user", "mustard")), [INVALID])

    def test_late(self) -> None:
        """A checker may return a Deferred."""
        waiting: Deferred[Any] = Deferred()

        class Late(InMemoryUsernamePasswordDatabaseDontUse):
            def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
                return waiting

        client = Connection(portal=Portal(self.realm, [Late()]))
        self.assertEqual(client.say(b"AUTH PLAIN " + GOOD), [])
        waiting.errback(UnauthorizedLogin())
        self.assertEqual(client.heard(), [INVALID])


class ThreadTests(TestCase):
    """Authenticators that block."""

    async def test_inThread(self) -> None:
        """An authenticator that blocks runs in a thread, and the reactor continues."""
        import threading

        seen: list[Any] = []

        def slow(*arguments: Any) -> AuthResult:
            seen.append(threading.current_thread())
            return AuthResult(success=True, auth_data=arguments[-1].login)

        result = await auth.in_thread(slow)(None, None, None, "PLAIN", LoginPassword(b"user", b"sesame"))
        self.assertEqual(result.auth_data, b"user")
        self.assertIsNot(seen[0], threading.main_thread())

    async def test_checker(self) -> None:
        """A checker that blocks can run in a thread, too, with the same result."""
        checker = auth.InThread(InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame"))
        self.assertEqual(await checker.requestAvatarId(LoginPassword(b"user", b"sesame")), b"user")
        with self.assertRaises(UnauthorizedLogin):
            await checker.requestAvatarId(LoginPassword(b"user", b"xyzzy"))

        class Waits(InMemoryUsernamePasswordDatabaseDontUse):
            def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
                return Deferred()

        with self.assertRaises(TypeError):
            await auth.InThread(Waits()).requestAvatarId(LoginPassword(b"user", b"sesame"))


class ValueTests(SynchronousTestCase):
    """Credentials and results as values."""

    def test_loginPassword(self) -> None:
        """The repr never contains a password, and shows any login."""
        for login in (b"user", b"\xff\xfe", b"a'b", b"\r\n"):
            value = LoginPassword(login, b"sesame\xff")
            for text in (repr(value), str(value), f"{value}", f"{value!s:>80}", f"{[value]}"):
                self.assertNotIn("sesame", text)
                self.assertTrue(text.isascii() and text.isprintable())
        shown = "AuthResult(success=True, handled=True, message=None, auth_data=...)"
        self.assertEqual(repr(AuthResult(success=True, auth_data="secret")), shown)
        self.assertEqual(repr(LoginPassword(b"user", b"x")), "LoginPassword(login='user', password=...)")
        login, password = LoginPassword(b"user", b"x")
        self.assertEqual((login, password), (b"user", b"x"))

    def test_otherCredentials(self) -> None:
        for value in (
            auth.BearerToken("user", "sesame"), auth.ChallengeResponse(b"user", b"sesame", b"sesame"),
            AuthResult(success=True, auth_data="sesame"), auth.ScramKeys.of("sesame"),
        ):  # fmt: skip
            self.assertNotIn("sesame", repr(value))

    def test_missing(self) -> None:
        self.assertFalse(MISSING)
        self.assertIn("MISSING", repr(MISSING))

    def test_sanitize(self) -> None:
        for line, shown in {
            b"AUTH PLAIN AAAA": b"AUTH PLAIN ********",
            b"auth plain AAAA BBBB": b"auth plain ********",
            b"AUTH PLAIN": b"AUTH PLAIN",
            b"AUTH": b"AUTH",
            b"AUTH  ": b"AUTH  ",
            b"AUTH AHVzZXIAc2VzYW1l": b"AUTH ********",
            b"AUTHPLAIN x": b"AUTH ********",
            b"AUTH\tPLAIN\tx": b"AUTH\tPLAIN ********",
            b" AUTH x": b" AUTH x",
            b" AUTH PLAIN yZ": b" AUTH PLAIN ********",
            b"MAIL FROM:<a@b> AUTH=<>": b"MAIL FROM:<a@b> AUTH=<>",
        }.items():
            self.assertEqual(sanitize(line), shown)

    def test_pairs(self) -> None:
        """All credentials compare as twisted.cred requires."""
        for mine, theirs in itertools.product((b"a", b"b"), repeat=2):
            self.assertEqual(LoginPassword(b"u", mine).checkPassword(theirs), mine == theirs)
