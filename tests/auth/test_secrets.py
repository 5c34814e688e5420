"""Secrets of clients appear in no log event, reply, repr or traceback."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from scramp import ScramClient
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import eventAsText, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support.auth import Connection, b64, plain
from txsmtpd import auth
from txsmtpd.auth import MISSING, AuthResult, LoginPassword, NameRealm

CANARY = "Canary4Pass+w0rd/in-the=coalmine"


def right(*arguments: Any) -> bool:
    return True


def wrong(*arguments: Any) -> bool:
    return False


async def late(*arguments: Any) -> bool:
    await Deferred()
    return True


def raises(*arguments: Any) -> bool:
    raise ValueError(f"what is {arguments[-1]!r}, {tuple(arguments[-1])}, {CANARY}?")


async def raises_chained(*arguments: Any) -> bool:
    try:
        return raises(*arguments)
    except ValueError as error:
        raise RuntimeError(f"it is {CANARY}", *arguments[-1]) from error


def nonsense(*arguments: Any) -> Any:
    return CANARY


def nonsense_in_result(*arguments: Any) -> Any:
    return AuthResult(success=CANARY)  # type: ignore[arg-type]


def badly_worded(*arguments: Any) -> Any:
    return AuthResult(success=False, message=CANARY)


def of_undecodable(*arguments: Any) -> Any:
    return (CANARY.encode() + b"\xff").decode("utf-8")


DECIDERS = [right, wrong, late, raises, raises_chained, nonsense, nonsense_in_result, badly_worded, of_undecodable]

BEARER = f"user=user\1auth=Bearer {CANARY.replace('=', '')}\1\1"
OAUTHBEARER = f"n,a=user,\1auth=Bearer {CANARY.replace('=', '')}\1\1"
LONG = b64(CANARY * 400)

DIALOGS: dict[str, list[bytes]] = {
    "PLAIN": [b"AUTH PLAIN " + plain("user", CANARY)],
    "PLAIN in small letters": [b"auth plain " + plain("user", CANARY)],
    "PLAIN asked": [b"AUTH PLAIN", plain("user", CANARY)],
    "PLAIN in clear": [b"AUTH PLAIN " + f"\\0user\\0{CANARY}".encode()],
    "PLAIN, too few fields": [b"AUTH PLAIN " + b64(f"user\0{CANARY}")],
    "PLAIN, too many fields": [b"AUTH PLAIN " + b64(f"\0user\0{CANARY}\0{CANARY}")],
    "PLAIN for another": [b"AUTH PLAIN " + plain("user", CANARY, "other")],
    "PLAIN, no base64": [b"AUTH PLAIN " + plain("user", CANARY) + b"!"],
    "PLAIN, no base64, asked": [b"AUTH PLAIN", plain("user", CANARY) + b"!"],
    "PLAIN, octets": [b"AUTH PLAIN \xff" + CANARY.encode()],
    "PLAIN, NUL": [b"AUTH PLAIN \0" + CANARY.encode()],
    "PLAIN, too long": [b"AUTH PLAIN " + LONG],
    "PLAIN asked, too long": [b"AUTH PLAIN", LONG],
    "PLAIN without end": [b"AUTH PLAIN", LONG * 5],
    "PLAIN, too many words": [b"AUTH PLAIN " + plain("user", CANARY) + b" " + CANARY.encode()],
    "PLAIN, tabs": [b"AUTH\tPLAIN\t" + plain("user", CANARY)],
    "PLAIN, a space before": [b" AUTH PLAIN " + plain("user", CANARY)],
    "PLAIN, no space": [b"AUTHPLAIN " + plain("user", CANARY)],
    "PLAIN, NUL before": [b"\0AUTH PLAIN " + plain("user", CANARY), b64(CANARY)],
    "PLAIN, BOM before": [b"\xef\xbb\xbfAUTH PLAIN " + plain("user", CANARY), CANARY.encode()],
    "XAUTH": [b"XAUTH PLAIN " + plain("user", CANARY), b64(CANARY)],
    "XAUTH LOGIN": [b"xauth LOGIN", b64("user"), b64(CANARY)],
    "X AUTH, tab": [b"X\tauth\tPLAIN\t" + plain("user", CANARY)],
    "PLAIN too long, then asked": [b"AUTH PLAIN " + b"A" * 13000, b64(CANARY), CANARY.encode()],
    "LOGIN, LF alone": [b"AUTH LOGIN\n" + b64("user"), b64(CANARY), CANARY.encode()],
    "LOGIN, LF alone in answers": [b"AUTH LOGIN", b64("user") + b"\n" + b64(CANARY), CANARY.encode()],
    "LOGIN, LF alone all through": [b"AUTH LOGIN\n" + b64("user") + b"\n" + b64(CANARY), b64(CANARY)],
    "LOGIN, long name": [b"AUTH LOGIN", b"A" * 13000, b64(CANARY), CANARY.encode()],
    "NONESUCH, long name": [b"AUTH NONESUCH", b"A" * 13000, b64(CANARY), CANARY.encode()],
    "NUL before, LF alone": [b"\0AUTH LOGIN\n" + b64("user"), b64(CANARY)],
    "PLAIN, another blank": ["AUTH PLAIN\u2003".encode() + plain("user", CANARY), b64(CANARY)],
    "PLAIN, given up": [b"AUTH PLAIN", b"*", b"NOOP"],
    "no mechanism": [b"AUTH " + plain("user", CANARY)],
    "no mechanism, in clear": [b"AUTH " + CANARY.encode()],
    "LOGIN": [b"AUTH LOGIN", b64("user"), b64(CANARY)],
    "LOGIN, initial response": [b"AUTH LOGIN " + b64("user"), b64(CANARY)],
    "LOGIN in clear": [b"AUTH LOGIN", b"user", CANARY.encode()],
    "LOGIN, given up": [b"AUTH LOGIN", b64(CANARY), b"*"],
    "LOGIN refused, client does not wait": [b"AUTH NONESUCH", b64("user"), b64(CANARY), CANARY.encode(), b"NOOP"],
    "LOGIN, no words": [b"AUTH LOGIN x y", CANARY.encode(), b64(CANARY)],
    "CRAM-MD5": [b"AUTH CRAM-MD5", b64(f"user {CANARY}")],
    "XOAUTH2": [b"AUTH XOAUTH2 " + b64(BEARER), b""],
    "XOAUTH2 asked": [b"AUTH XOAUTH2", b64(BEARER), b""],
    "XOAUTH2, malformed": [b"AUTH XOAUTH2", b64(BEARER[:-1]), b""],
    "OAUTHBEARER": [b"AUTH OAUTHBEARER " + b64(OAUTHBEARER), b"AQ=="],
    "OAUTHBEARER, given up": [b"AUTH OAUTHBEARER " + b64(OAUTHBEARER), b"*"],
    "SCRAM": [b"AUTH SCRAM-SHA-256 " + b64(f"n,,n=user,r={CANARY.replace('=', '')}"), b64(CANARY)],
    "ONE": [b"AUTH ONE " + b64(CANARY)],
    "ONE asked": [b"AUTH ONE", b64(CANARY)],
    "ONE, no base64": [b"AUTH ONE", CANARY.encode()],
}


class Handler:
    """A handler with its own mechanism, whose method leaks everything that it can."""

    def __init__(self, decide: Callable[..., Any]) -> None:
        self.decide = decide

    async def auth_ONE(self, server: Any, args: list[str]) -> Any:
        answer = args[1] if len(args) == 2 else await server.challenge_auth("?")
        if answer is MISSING:
            return MISSING
        result = self.decide([answer])
        return await result if isinstance(result, Awaitable) else result


class RudeHandler(Handler):
    """It also has a hook for exceptions, which raises the exception again."""

    def handle_exception(self, error: Exception) -> str:
        raise error


@implementer(ICredentialsChecker)
class Checker:
    """A checker that leaks everything that it can."""

    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials: Any) -> Any:
        if credentials.username == b"user":
            raise UnauthorizedLogin(f"not {credentials.password!r}")
        raise KeyError(credentials.password)


def traces(secret: str) -> list[str]:
    """Forms of the secret that must not be found anywhere: plain, encoded, and as other programs format it."""
    found = [secret, secret.replace("=", ""), secret[:12], secret[-12:]]
    for before in (
        "",
        "\0",
        "a\0",
        "ab\0",
    ):  # its base64 at three offsets, without the characters that depend on its neighbours
        encoded = base64.b64encode((before[-1:] * (len(before) % 3) + secret).encode()).decode()
        found.append(encoded[4:24])
    found += [each.upper() for each in found]
    return found


TRACES = traces(CANARY)


def values_of(event: dict[str, Any]) -> Iterator[str]:
    """Everything that an observer could format from a log event."""
    yield formatEvent(event)
    yield eventAsText(event, includeTraceback=True)
    for key, value in event.items():
        yield f"{key}: {value!s} {value!r}"
        if isinstance(value, Failure):
            yield value.getTraceback()
            yield value.getErrorMessage()
            yield repr(value.value)


class SecretTests(SynchronousTestCase):
    """A secret is sent in all possible ways."""

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def assertSilent(self, what: str, *texts: str) -> None:
        said = [*texts, *(text for event in self.events for text in values_of(event))]
        for text in said:
            for trace in TRACES:
                self.assertNotIn(trace, text, what)
        self.events.clear()

    def client(self, decide: Callable[..., Any], handler: type[Handler], **options: Any) -> Connection:
        mechanisms = [auth.CramMD5(), auth.XOAuth2(), auth.OAuthBearer(), auth.Scram("SHA-256", lambda name: None)]
        defaults = {"authenticator": decide, "auth_mechanisms": mechanisms, "auth_attempt_limit": None}
        return Connection(handler(decide), log_dialogue=True, log_messages=True, **(defaults | options))

    def test_everyMechanism(self) -> None:
        """Valid, invalid, cancelled, malformed and too long responses, with hooks that raise, leave no secret at any
        log level."""
        for decide in DECIDERS:
            for handler in (Handler, RudeHandler):
                for name, lines in DIALOGS.items():
                    client = self.client(decide, handler)
                    said = b"".join(each + b"\n" for line in lines for each in client.say(line))
                    said += b"".join(client.heard())
                    client.server.connectionLost(Failure(ConnectionLost()))
                    what = f"{name}, {decide.__name__}"
                    # A challenge of SCRAM quotes the client's nonce, which is not secret.
                    replies = b"\n".join(each for each in said.split(b"\n") if each[:4] != b"334 ")
                    self.assertSilent(what, replies.decode(), repr(client.session), repr(client.server))
                    self.flushLoggedErrors()

    def test_pipelined(self) -> None:
        for decide in DECIDERS:
            for name, lines in DIALOGS.items():
                client = self.client(decide, Handler)
                replies = b"\n".join(each for each in client.say(*lines) if each[:4] != b"334 ")
                client.server.connectionLost(Failure(ConnectionLost()))
                self.assertSilent(name, replies.decode())
                self.flushLoggedErrors()

    def test_inClear(self) -> None:
        """Refusals of AUTH without TLS, or without an authenticator, leave no secret either."""
        for options in ({"auth_require_tls": True}, {"authenticator": None, "auth_mechanisms": ()}):
            for name, lines in DIALOGS.items():
                client = self.client(right, Handler, **options)
                self.assertSilent(name, *(each.decode() for each in client.say(*lines)))

    def test_portal(self) -> None:
        """Checkers whose exceptions contain the secret."""
        for login in ("user", "other"):
            client = Connection(log_dialogue=True, portal=Portal(NameRealm(), [Checker()]))
            replies = client.say(b"AUTH PLAIN " + plain(login, CANARY))
            self.assertSilent(login, *(each.decode() for each in replies))

    def test_otherCommands(self) -> None:
        """HTTP requests whose address contains AUTH are still recognized as a foreign protocol."""
        client = Connection(log_dialogue=True)
        self.assertEqual(client.say(b"POST /auth HTTP/1.1")[0][:3], b"554")
        client = Connection(log_dialogue=True)
        self.assertEqual(client.say(b"XAUTH x"), [b"500 5.5.1 Command XAUTH not recognized"])

    def test_callLimit(self) -> None:
        """The reply about the limit of commands does not quote a line that only looks like a command."""
        client = Connection(log_dialogue=True, command_call_limit={"*": 0, "EHLO": 9})
        for line in (b"AUTH NONESUCH", CANARY.encode(), b64(CANARY)):
            self.assertSilent("limit", *(each.decode() for each in client.say(line)))

    def test_scram(self) -> None:
        """The keys of a successful SCRAM login."""
        keys = auth.ScramKeys.of(CANARY)
        client = Connection(log_dialogue=True, auth_mechanisms=[auth.Scram("SHA-256", lambda name: keys)])
        scram = ScramClient(["SCRAM-SHA-256"], "user", CANARY)
        (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64(scram.get_client_first()))
        scram.set_server_first(base64.b64decode(line[4:]).decode())
        final = b64(scram.get_client_final())
        client.say(final)
        self.assertEqual(client.say(b"")[0][:3], b"235")
        texts = "\n".join(text for event in self.events for text in values_of(event))
        for secret in (line[4:].decode(), final.decode(), base64.b64encode(keys.stored_key).decode()):
            self.assertNotIn(secret, texts)
        self.assertSilent("SCRAM", repr(keys))

    def test_credentials(self) -> None:
        self.assertSilent("repr", repr(LoginPassword(b"user", CANARY.encode())))

    def test_theEye(self) -> None:
        """The test would detect a leak: with a line that is not secret, the same events contain it."""
        client = Connection(log_dialogue=True)
        client.say(b"NOOP " + CANARY.encode())
        with self.assertRaises(self.failureException):
            self.assertSilent("NOOP")

    def test_theLogIsOfUse(self) -> None:
        """The log has the type and the place of an exception in place of its text."""
        client = Connection(authenticator=raises)
        client.say(b"AUTH PLAIN " + plain("user", CANARY))
        texts = "\n".join(formatEvent(event) for event in self.events)
        self.assertIn("AUTH failed: ValueError", texts)
        self.assertIn("test_secrets.py", texts)
        self.assertIn("in raises", texts)
