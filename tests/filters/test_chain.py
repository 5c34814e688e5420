"""Custom filters in front of handlers: their input, their effects, and their failures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from tests.filters.support import Keeper, StreamingKeeper
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, codes
from txsmtpd import SMTP, Extension, SMTPFactory, syntax
from txsmtpd.filters import ACCEPT, DISCARD, FilterError, Verdict
from txsmtpd.handlers import Mailbox
from txsmtpd.lmtp import LMTP
from txsmtpd.reply import Refused
from txsmtpd.smtpd import SMTPServer


class Filter:
    """A filter with the given functions: ``Filter(RCPT=function)`` has a ``filter_RCPT``, without self."""

    def __init__(self, name: str = "test", on_failure: str = "tempfail", **stages: Any) -> None:
        self.name = name
        self.on_failure = on_failure
        for stage, function in stages.items():
            setattr(self, f"filter_{stage}", function)


def says(result: Any) -> Any:
    """A stage that returns this result, or raises it if it is an exception."""

    async def stage(*arguments: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return stage


class FilterTests(SynchronousTestCase):
    """One server, one client, some filters."""

    def client(self, *filters: Any, handler: Any = None, **options: Any) -> Client:
        """A client that has sent EHLO to a server with these filters."""
        self.handler = Keeper() if handler is None else handler
        greeting = b"LHLO c.test\r\n" if issubclass(options.get("protocol", SMTP), LMTP) else GREETING
        client = Client(self.handler, filters=filters, **options)
        self.assertEqual(codes(client.talk(greeting))[-1], 250)
        return client

    def content(self) -> bytes:
        """The one message that the handler has received."""
        if isinstance(self.handler, Keeper):
            (content,) = self.handler.content
            return content
        (receiver,) = self.handler.receivers
        self.assertEqual((receiver.finished, receiver.aborted), (1, []))
        return receiver.octets


class StageTests(FilterTests):
    """What filters see, and when."""

    def test_order(self) -> None:
        """Each stage of each filter is called in order. A later filter sees the changes of earlier ones."""
        seen: list[Any] = []

        def note(name: str, stage: str) -> Any:
            async def called(server: Any, session: Any, envelope: Any, *more: Any) -> None:
                seen.append((name, stage, *(each for each in more if isinstance(each, str))))
                if stage == "message":
                    more[0].add_header("X-Seen", name)
                    seen.append(await more[0].read())

            return called

        stages = ("CONNECT", "HELO", "MAIL", "RCPT", "DATA", "headers", "message")
        filters = [Filter(name, **{stage: note(name, stage) for stage in stages}) for name in ("one", "two")]
        client = self.client(*filters)
        self.assertEqual(client.send_message(b"\r\nHello\r\n").text, "2.0.0 kept")
        self.assertEqual(
            seen,
            [
                *(("one", "CONNECT"), ("two", "CONNECT")),
                *(("one", "HELO", "client.test"), ("two", "HELO", "client.test")),
                *(("one", "MAIL", "a@example.com"), ("two", "MAIL", "a@example.com")),
                *(("one", "RCPT", "b@example.com"), ("two", "RCPT", "b@example.com")),
                *(("one", "DATA"), ("two", "DATA")),
                *(("one", "headers"), ("one", "message"), b"X-Seen: one\r\n\r\nHello\r\n"),
                *(("two", "headers"), ("two", "message"), b"X-Seen: two\r\nX-Seen: one\r\n\r\nHello\r\n"),
            ],
        )
        self.assertEqual(self.content(), b"X-Seen: two\r\nX-Seen: one\r\n\r\nHello\r\n")
        verdicts = self.handler.envelopes[0].filters
        self.assertEqual(list(verdicts), ["one", "two"])
        self.assertEqual(verdicts["one"], Verdict(headers=(("X-Seen", "one"),)))

    def test_plainFunctions(self) -> None:
        """A stage may be a plain function, or return a Deferred."""
        waiting: Deferred[Any] = Deferred()
        client = self.client(Filter(MAIL=lambda *arguments: None, RCPT=lambda *arguments: waiting))
        self.assertEqual(codes(client.talk(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n")), [250])
        waiting.callback("550 5.7.1 no")
        self.assertEqual(codes(client.heard()), [550])

    def test_refusals(self) -> None:
        """A filter may refuse at each stage, with a status or with Refused. The handler does not get the message."""
        for stage, expected in (
            ("HELO", [550, 503, 503, 503]),
            ("MAIL", [250, 550, 503, 503]),
            ("RCPT", [250, 250, 550, 503]),
            ("DATA", [250, 250, 250, 550]),
        ):
            for refusal in "550 5.7.1 no", Refused("550 5.7.1 no"):
                with self.subTest(stage=stage, refusal=refusal):
                    handler = Keeper()
                    client = Client(handler, filters=[Filter(**{stage: says(refusal)})])
                    client.talk(b"")
                    self.assertEqual(codes(client.talk(GREETING + TRANSACTION + b"DATA\r\n"))[-4:], expected)
        for stage in "headers", "message":
            for handler in Keeper(), StreamingKeeper():
                client = self.client(Filter(**{stage: says("554 5.7.1 spam")}), handler=handler)
                self.assertEqual(client.send_message().text, "5.7.1 spam")
                self.assertEqual(getattr(handler, "content", []) or getattr(handler, "receivers", []), [])
                self.assertEqual(client.send_message().code, 554)

    def test_connectRefused(self) -> None:
        """A client that a filter rejects gets 554 in place of the greeting, and then 503."""
        client = Client(Keeper(), filters=[Filter(CONNECT=says("554 5.7.1 go away"))])
        self.assertEqual(codes(client.welcome + client.talk(GREETING)), [554, 503])

    def test_handlerFirstAtRcpt(self) -> None:
        """A filter is called for recipients that the handler has accepted. A recipient that the filter refuses is not
        added."""
        seen: list[str] = []

        class Picky(Keeper):
            async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
                if address.startswith("no"):
                    return "550 5.1.1 not here"
                envelope.rcpt_tos.append(address)
                return "250 2.1.5 OK"

        def filter_RCPT(server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str | None:
            seen.append(address)
            return "450 4.7.1 later" if address.startswith("later") else None

        client = self.client(Filter(RCPT=filter_RCPT), handler=Picky())
        rcpts = b"".join(b"RCPT TO:<%b@example.com>\r\n" % name for name in (b"no", b"later", b"yes"))
        self.assertEqual(codes(client.talk(b"MAIL FROM:<a@example.com>\r\n" + rcpts)), [250, 550, 450, 250])
        self.assertEqual(seen, ["later@example.com", "yes@example.com"])
        client.talk(b"DATA\r\n" + MESSAGE + b".\r\n")
        self.assertEqual(self.handler.envelopes[0].rcpt_tos, ["yes@example.com"])

    def test_accept(self) -> None:
        """A filter that accepts is not called for the rest of the message, but for the next one."""
        calls: list[str] = []

        def at(stage: str, result: Any) -> Any:
            return lambda *arguments: calls.append(stage) or result

        client = self.client(Filter(MAIL=at("MAIL", ACCEPT), RCPT=at("RCPT", None), message=at("message", None)))
        for _ in range(2):
            self.assertEqual(client.send_message().code, 250)
        self.assertEqual(calls, ["MAIL", "MAIL"])
        self.assertEqual(self.handler.content, [MESSAGE, MESSAGE])

    def test_acceptConnection(self) -> None:
        """A filter that accepts the connection is not called again."""
        client = self.client(Filter(CONNECT=says(ACCEPT), HELO=says("550 no"), message=says("550 no")))
        self.assertEqual(client.send_message().code, 250)
        self.assertEqual(self.content(), MESSAGE)

    def test_discard(self) -> None:
        """A message that a filter discards gets 250. It is not delivered, and no other filter is called."""
        for stage in "MAIL", "RCPT", "DATA", "headers", "message":
            for handler in Keeper(), StreamingKeeper():
                with self.subTest(stage=stage):
                    another = Filter("two", message=says("550 5.7.1 no"))
                    client = self.client(Filter(**{stage: says(DISCARD)}), another, handler=handler)
                    self.assertEqual(client.send_message().code, 250)
                    self.assertEqual(getattr(handler, "content", []) or getattr(handler, "receivers", []), [])

    def test_untouched(self) -> None:
        """For stages without filters, the handler's hooks are called directly."""
        handler = StreamingKeeper()
        settings = SMTPFactory(handler, filters=[Filter(CONNECT=says(None))]).settings
        self.assertEqual(settings.hooks.keys(), {"CONNECT", "MAIL"})
        self.assertEqual(SMTPFactory(handler).settings.open_message, handler.open_message)
        self.assertEqual(dict(SMTPFactory(handler).settings.hooks), {})

    def test_rset(self) -> None:
        """A filter is notified of the end of each transaction, whatever its cause, and of the end of the connection."""
        calls: list[str] = []
        note = {stage: (lambda *more, stage=stage: calls.append(stage)) for stage in ("RSET", "DISCONNECT")}
        client = self.client(Filter(message=says(None), **note))
        client.talk(TRANSACTION + b"RSET\r\n")
        self.assertEqual(calls, ["RSET"])
        client.send_message()
        self.assertEqual(calls, ["RSET", "RSET"])
        client.vanish(ConnectionDone())
        self.assertEqual(calls, ["RSET", "RSET", "DISCONNECT"])

    def test_endOfMessage(self) -> None:
        """The end of a message ends the transaction for each filter, whichever stages it has."""
        for stage in "MAIL", "RCPT", "DATA", "headers", "message":
            for handler in Keeper(), StreamingKeeper():
                calls: list[str] = []
                client = self.client(
                    Filter(**{stage: says(None), "RSET": lambda *more, calls=calls: calls.append("RSET")}),
                    handler=handler,
                )
                client.send_message()
                self.assertEqual(calls, ["RSET"], stage)
                client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b"." * 2000 + b"\r\n.\r\n")
                self.assertEqual(calls, ["RSET"] * 2, (stage, "refused"))

    def test_everyEnd(self) -> None:
        """Whatever ends a transaction, each filter that was called for MAIL is notified once, before the next MAIL."""
        large = b"x" * 2000
        ends = {
            "RSET": b"RSET\r\n",
            "greeting": GREETING,
            "message": b"DATA\r\n" + MESSAGE + b".\r\n",
            "bare line feed": b"DATA\r\na\nb\r\n.\r\n",
            "large": b"DATA\r\n" + large + b"\r\n.\r\n",
            "chunks": b"BDAT 3\r\na\r\nBDAT 3 LAST\r\nb\r\n",
            "large last chunk": b"BDAT 2000 LAST\r\n" + large,
            "large chunk": b"BDAT 2000\r\n" + large + b"BDAT 0 LAST\r\n",
            "large second chunk": b"BDAT 3\r\na\r\nBDAT 2000 LAST\r\n" + large,
            "wrong chunk": b"BDAT 3 FIRST\r\na\r\nBDAT 0 LAST\r\n",
            "no reply": b"PING\r\n",
            "far too large": b"BDAT 2000000 LAST\r\n",
            "QUIT": b"QUIT\r\n",
            "nothing": b"",
        }

        class Ping(Extension):
            keyword = "PING"

            @syntax("PING")
            async def smtp_PING(self, server: Any, arg: Any) -> Any:
                return object()

        for (name, octets), stage, answer, handler in itertools.product(
            ends.items(),
            ("MAIL", "DATA", "message"),
            (None, "550 no", DISCARD),
            (Keeper, StreamingKeeper),
        ):
            calls: list[str] = []

            def note(name: str, result: Any = None, calls: list[str] = calls) -> Any:
                def called(*arguments: Any) -> Any:
                    calls.append(name)
                    return result

                return called

            asking = {each: note(each) for each in ("MAIL", "RSET", "DISCONNECT")} | {stage: note(stage, answer)}
            client = self.client(Filter(**asking), handler=handler(), data_size_limit=1000, extensions=[Ping()])
            client.talk(TRANSACTION + octets)
            if not client.closed:
                client.talk(TRANSACTION + b"RSET\r\n")
            client.vanish(ConnectionDone())
            self.flushLoggedErrors()
            counted = [each for each in calls if each in ("MAIL", "RSET", "DISCONNECT")]
            expected = ["MAIL", "RSET"] * (len(counted) // 2) + ["DISCONNECT"]
            self.assertEqual(counted, expected, (name, stage, answer, handler))

    def test_ownMail(self) -> None:
        """A subclass may refuse MAIL without ending the transaction. Filters are notified before the next MAIL."""

        class Own(SMTP):
            async def smtp_MAIL(self, arg: str | None) -> Any:
                return await self._call_handler_hook("MAIL", "a@example.com", [])

        calls: list[str] = []
        note = {stage: (lambda *more, stage=stage: calls.append(stage)) for stage in ("MAIL", "RSET")}
        keeper: Any = Keeper()
        keeper.handle_MAIL = lambda *more: "550 5.7.1 not you"
        client = self.client(Filter(**note), protocol=Own, handler=keeper)
        self.assertEqual(client.codes(b"MAIL FROM:<a@example.com>\r\n" * 2), [550, 550])
        self.assertEqual(calls, ["MAIL", "RSET", "MAIL"])
        client.vanish(ConnectionDone())
        self.assertEqual(calls, ["MAIL", "RSET"] * 2)

    def test_newSession(self) -> None:
        """If STARTTLS ends the transaction, filters are notified with the session to which it belonged."""
        sessions: list[Any] = []
        note = {stage: lambda server, session, *more: sessions.append(session) for stage in ("MAIL", "RSET")}
        client = self.client(Filter(**note))
        client.talk(TRANSACTION)
        client.server._reset_session()
        before, after = sessions
        self.assertIs(before, after)
        self.assertIsNot(client.server.session, before)

    def test_droppedRecipients(self) -> None:
        """A message that has no recipients left ends the transaction for the filters, too."""
        calls: list[str] = []
        handler = Keeper()

        async def dropping(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
            envelope.drop(address)
            return "250 ok"

        handler.handle_RCPT = dropping  # type: ignore[attr-defined]  # hooks are optional
        client = self.client(Filter(RSET=lambda *arguments: calls.append("RSET")), handler=handler)
        self.assertEqual(client.send_message().code, 250)
        self.assertEqual(calls, ["RSET"])

    def test_greetedAgain(self) -> None:
        """A new greeting ends the transaction, and the filters are notified."""
        calls: list[str] = []
        client = self.client(Filter(RSET=lambda *arguments: calls.append("RSET")))
        client.talk(TRANSACTION + GREETING)
        self.assertEqual(calls, ["RSET"])
        client.talk(TRANSACTION + b"HELO c.test\r\n")
        self.assertEqual(calls, ["RSET", "RSET"])
        client.talk(GREETING)
        self.assertEqual(calls, ["RSET", "RSET"])


class ChangeTests(FilterTests):
    """What filters may change."""

    def change(self, function: Any, handler: Any = None, message: bytes = MESSAGE, **options: Any) -> Client:
        """Send a message through a filter that changes it in this way."""
        client = self.client(Filter(message=lambda *arguments: function(arguments[-1])), handler=handler, **options)
        self.reply = client.send_message(message)
        return client

    def test_headers(self) -> None:
        """Fields are added at the top or the bottom, changed and removed. Everything else keeps its exact octets."""

        def function(message: Any) -> None:
            message.add_header("X-Top", "1\nX-Not: a field of its own")
            message.append_header("X-Last", "2")
            message.change_header("subject", "new")
            message.change_header("Odd", None, -1)
            message.remove_header("Gone")

        sent = b"Gone: 1\r\nSubject: test\r\nOdd :a\r\n\tb\r\nodd: c\r\ngone: 2\r\n\r\nBody \r\n\r\n"
        for handler in Keeper(), StreamingKeeper():
            self.change(function, handler, sent)
            self.assertEqual(
                self.content(),
                b"X-Top: 1\r\n\tX-Not: a field of its own\r\nSubject: new\r\nOdd :a\r\n\tb\r\nX-Last: 2\r\n"
                b"\r\nBody \r\n\r\n",
            )

    def test_noHeader(self) -> None:
        """A message without a header, or without an empty line after it, keeps its text."""
        for sent, expected in (
            (b"\r\ntext\r\n", b"X-A: 1\r\n\r\ntext\r\n"),
            (b"text\r\n", b"X-A: 1\r\n\r\ntext\r\n"),
            (b"A: b\r\ntext\r\n", b"X-A: 1\r\nA: b\r\n\r\ntext\r\n"),
            (b" folded\r\n\r\n", b"X-A: 1\r\n\r\n folded\r\n\r\n"),
            (b"A: b\r\n", b"X-A: 1\r\nA: b\r\n\r\n"),
        ):
            with self.subTest(sent=sent):
                self.change(lambda message: message.add_header("X-A", "1"), message=sent)
                self.assertEqual(self.content(), expected)
                self.change(lambda message: None, message=sent)
                self.assertEqual(self.content(), sent)

    def test_body(self) -> None:
        """A body is replaced. The header stays the same."""
        self.change(lambda message: message.replace_body(b"another\r\n"))
        self.assertEqual(self.content(), b"Subject: test\r\n\r\nanother\r\n")

    def test_envelope(self) -> None:
        """The sender and the recipients are changed before the handler gets the message."""

        def function(message: Any) -> None:
            message.change_sender("", ["RET=HDRS"])
            message.add_recipient("c@example.com", ["NOTIFY=NEVER"])
            message.add_recipient("c@example.com")
            message.remove_recipient("b@example.com")
            message.remove_recipient("nobody@example.com")

        self.change(function)
        (envelope,) = self.handler.envelopes
        self.assertEqual((envelope.mail_from, envelope.mail_options), ("", ["RET=HDRS"]))
        self.assertEqual((envelope.rcpt_tos, envelope.rcpt_options), (["c@example.com"], ["NOTIFY=NEVER"]))

    def test_nobodyLeft(self) -> None:
        """A message whose recipients were all removed is accepted, and not delivered."""
        self.change(lambda message: message.remove_recipient("b@example.com"))
        self.assertEqual(self.reply.code, 250)
        self.assertEqual(self.handler.content, [])

    def test_replies(self) -> None:
        """Over LMTP, each recipient that the client has named gets a reply, even if the filters have changed the
        recipients."""
        handler = StreamingKeeper(["250 2.1.5 one", "451 4.3.0 two"])
        filters = [Filter(message=lambda *arguments: arguments[-1].add_recipient("c@example.com"))]
        client = self.client(*filters, handler=handler, protocol=LMTP)
        client.talk(TRANSACTION + b"RCPT TO:<d@example.com>\r\nDATA\r\n")
        self.assertEqual(codes(client.talk(MESSAGE + b".\r\n")), [451, 451])

    def test_quarantine(self) -> None:
        """A quarantined message has a header field with the reason. The handler's hook decides what else happens."""
        self.change(lambda message: message.quarantine("odd"))
        self.assertEqual(self.content(), b"X-Quarantine: odd\r\n" + MESSAGE)
        self.assertEqual(self.handler.envelopes[0].filters["test"].action, "quarantine")
        verdict = Verdict("quarantine", reason="very odd")
        self.change(lambda message: verdict)
        self.assertEqual(self.content(), b"X-Quarantine: very odd\r\n" + MESSAGE)
        self.assertEqual(self.handler.envelopes[0].filters["test"].reason, "very odd")
        other = StreamingKeeper()
        for result, text in (
            ("250 2.0.0 put aside", "2.0.0 put aside"),
            (other.open_message(None, None, None), "2.0.0 streamed"),
        ):
            asked: list[str] = []
            handler = Keeper()
            handler.handle_QUARANTINE = lambda *more, result=result, asked=asked: asked.append(more[-1]) or result  # type: ignore[attr-defined]
            self.change(lambda message: message.quarantine("odd"), handler)
            self.assertEqual((asked, handler.content, self.reply.text), (["odd"], [], text))
        self.assertEqual(other.receivers[0].octets, b"X-Quarantine: odd\r\n" + MESSAGE)

    def test_forgeries(self) -> None:
        """Fields that only this server may add are removed before filters see the message. Other fields are kept."""
        sent = (
            b"Authentication-Results: mx.example.com; dkim=pass\r\n"
            b"Authentication-Results: other.example; spf=pass\r\n"
            b'authentication-results: (a comment) "MX.example.com" 1;\r\n spf=pass\r\n'
            b"X-Quarantine: forged\r\n\r\nHello\r\n"
        )
        self.change(lambda message: None, message=sent, hostname="mx.example.com")
        self.assertEqual(self.content(), b"Authentication-Results: other.example; spf=pass\r\n\r\nHello\r\n")

    def test_verdict(self) -> None:
        """The verdict of a filter is in the envelope."""
        verdict = Verdict(score=4.5, symbols={"A": 4.5}, details={"raw": 1})
        self.change(lambda message: verdict)
        self.assertEqual(self.handler.envelopes[0].filters, {"test": verdict})


class FailureTests(FilterTests):
    """Filters that fail."""

    def test_tempfail(self) -> None:
        """If a filter fails, mail is refused temporarily by default. The connection continues."""
        for stage, place in ("MAIL", 1), ("RCPT", 2), ("DATA", 3):
            client = self.client(Filter(**{stage: says(FilterError("down"))}))
            self.assertEqual(codes(client.talk(TRANSACTION + b"DATA\r\n"))[place - 1], 451)
        client = self.client(Filter(message=says(FilterError("down"))))
        self.assertEqual(client.send_message().text, "4.7.1 A filter is not available, try again later")
        self.assertEqual(self.handler.content, [])

    def test_tempfailAtConnect(self) -> None:
        """A filter that fails before any transaction closes the connection with 421."""
        for stage, expected in ("CONNECT", [421]), ("HELO", [220, 421]):
            client = Client(Keeper(), filters=[Filter(**{stage: says(FilterError("down"))})])
            self.assertEqual(codes(client.welcome + client.talk(GREETING)), expected)
            self.assertTrue(client.closed)

    def test_accept(self) -> None:
        """With on_failure="accept", mail is accepted, and the handler can see the failure."""
        for stage in "CONNECT", "HELO", "MAIL", "RCPT", "DATA", "headers", "message":
            client = self.client(Filter(on_failure="accept", **{stage: says(FilterError("down"))}))
            self.assertEqual(client.send_message().code, 250)
            self.assertEqual(self.content(), MESSAGE)
            expected = {} if stage in ("CONNECT", "HELO") else {"test": Verdict("failed", reason="down")}
            self.assertEqual(self.handler.envelopes[0].filters, expected)

    def test_bugs(self) -> None:
        """Any exception is a failure, and so is an invalid result. The log names the stage."""
        for wrong in ValueError("a bug"), "250 2.0.0 no decision", 42:
            client = self.client(Filter(message=says(wrong)))
            self.assertEqual(client.send_message().code, 451)
            (failure,) = self.flushLoggedErrors(ValueError, TypeError)
            self.assertIn(failure.type, (ValueError, TypeError))

    def test_toldAsCoroutine(self) -> None:
        """The method that ends a transaction may be a coroutine function. Its failure is logged."""
        client = self.client(Filter(MAIL=says(None), RSET=says(ValueError("a bug"))))
        self.assertEqual(codes(client.talk(TRANSACTION + b"RSET\r\n"))[-1], 250)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_slow(self) -> None:
        """A filter that takes too long has failed, even if it ignores the cancellation."""
        for stage, seconds in ("MAIL", 30), ("message", 300):
            for obedient in True, False:
                waiting: Deferred[Any] = Deferred(None if obedient else lambda each: each.callback(None))
                client = self.client(Filter(**{stage: lambda *more, waiting=waiting: waiting}), hook_timeout=None)
                client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n" if stage == "message" else TRANSACTION[:27])
                self.assertEqual(client.wait(seconds - 1, step=1), b"")
                self.assertEqual(codes(client.wait(2, step=1)), [451])

    def test_clientLeaves(self) -> None:
        """When a client disconnects, the filter that its message waits for is cancelled."""
        cancelled: list[Any] = []
        waiting: Deferred[Any] = Deferred(cancelled.append)
        client = self.client(Filter(message=lambda *more: waiting))
        client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        client.vanish(ConnectionDone())
        self.assertEqual(cancelled, [waiting])
        self.flushLoggedErrors()

    def test_leavesWhileSending(self) -> None:
        """An incomplete message reaches neither filters nor the handler."""
        handler = StreamingKeeper()
        client = self.client(Filter(message=says(ValueError("never called"))), handler=handler)
        client.talk(TRANSACTION + b"DATA\r\nSubject: a\r\n\r\nhalf")
        client.vanish(ConnectionDone())
        self.assertEqual(handler.receivers, [])

    def test_wrong(self) -> None:
        """An object that is not a filter is refused when the factory is created, with the reason."""
        for filters, text in (
            ("rspamd", "must be a list"),
            ([object()], "is not a filter"),
            ([Filter], "must be an object"),
            ([Filter(MSG=says(None))], "filter_MSG .* is not a stage"),
            ([Filter(RCPT=lambda server, session: None)], r"filter_RCPT of .* must be filter_RCPT\(server, session, "),
            ([Filter(RCPT="550 no")], "filter_RCPT of .* is not a method"),
            ([Filter(on_failure="ignore", MAIL=says(None))], "on_failure of the filter test"),
        ):
            with self.assertRaisesRegex((TypeError, ValueError), text):
                SMTPFactory(None, filters=filters)

    def test_noTimeLeft(self) -> None:
        """All filters together have less time than the server's timeout, so that on_failure takes effect."""
        waiting = [Deferred() for _ in range(3)]
        filters = [
            Filter(on_failure="accept", message=lambda *more, each=each: each)  # type: ignore[misc]
            for each in waiting
        ]
        client = self.client(*filters, hook_timeout=100)
        client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        self.assertEqual(codes(client.wait(91, step=1)), [250])
        self.assertEqual(self.content(), MESSAGE)

    def test_oldServers(self) -> None:
        """Servers of the smtpd module do not support filters, because they never wait."""
        with self.assertRaisesRegex(ValueError, "servers of the smtpd module do not support filters"):
            SMTPServer(None, None, filters=[Filter(MAIL=says(None))])

    def test_names(self) -> None:
        """Filters with the same name get distinct names."""
        client = self.client(*(Filter("same", message=says(None)) for _ in range(3)))
        client.send_message()
        self.assertEqual(list(self.handler.envelopes[0].filters), ["same", "same-2", "same-3"])


class StreamTests(FilterTests):
    """Messages that are larger than what is kept in memory."""

    LARGE = MESSAGE + (b"0123456789" * 95 + b"\r\n") * 6000

    def test_large(self) -> None:
        """A large message is kept in a file, and stays the same. The handler may slow it down."""
        handler = StreamingKeeper()
        handler.pauses = True
        client = self.client(Filter(message=says(None)), handler=handler)
        client.talk(TRANSACTION + b"DATA\r\n" + self.LARGE + b".\r\n")
        (receiver,) = handler.receivers
        for _ in range(200):
            if receiver.finished:
                break
            self.assertLess(len(receiver.octets), len(self.LARGE) + 1)
            receiver.producer.resumeProducing()
        self.assertEqual(receiver.octets, self.LARGE)
        self.assertEqual(codes(client.heard()), [250])

    @given(
        st.lists(
            st.sampled_from([b"A: b", b"A : c", b"", b" x", b"\ty", b".", b"..", b"text", b"a:", b"\xff"]), max_size=12
        ),
        st.lists(st.integers(1, 200), max_size=6),
        st.booleans(),
    )
    def test_anyMessage(self, lines: list[bytes], cuts: list[int], whole: bool) -> None:
        """A filter without changes leaves each message unchanged, however it is split."""
        message = b"".join(line + b"\r\n" for line in lines)
        stuffed = b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in lines)
        for handler in Keeper(), StreamingKeeper():
            stage = {"message" if whole else "headers": says(None)}
            client = self.client(Filter(**stage), handler=handler)
            client.talk(TRANSACTION + b"DATA\r\n")
            client.say(stuffed + b".\r\n", cuts)
            self.assertEqual(codes(client.heard()), [250])
            self.assertEqual(self.content(), message)

    def test_read(self) -> None:
        """Filters may read a large message any number of times."""
        sizes: list[Any] = []

        async def filter_message(server: Any, session: Any, envelope: Any, message: Any) -> None:
            sizes.append(sum([len(piece) async for piece in message.body()]))
            sizes.append(len(await message.read()))
            sizes.append(message.size)

        self.client(Filter(message=filter_message)).send_message(self.LARGE)
        self.assertEqual(sizes, [len(self.LARGE) - 17, len(self.LARGE), len(self.LARGE)])
        self.assertEqual(self.content(), self.LARGE)

    def test_headersOnly(self) -> None:
        """If a filter only examines headers, the body is passed on as it arrives."""
        handler = StreamingKeeper()
        waiting: Deferred[Any] = Deferred()

        async def filter_headers(server: Any, session: Any, envelope: Any, message: Any) -> None:
            await waiting
            message.add_header("X-Seen", message.header.get("subject") or "")

        client = self.client(Filter(headers=filter_headers), handler=handler)
        client.talk(TRANSACTION + b"DATA\r\nSubject: te")
        client.talk(b"st\r\n\r\nearly ")
        self.assertEqual(handler.receivers, [])
        waiting.callback(None)
        self.assertEqual(handler.receivers[0].octets, b"X-Seen: test\r\nSubject: test\r\n\r\nearly ")
        client.talk(b"late\r\n.\r\n")
        self.assertEqual(self.content(), b"X-Seen: test\r\nSubject: test\r\n\r\nearly late\r\n")

    def test_headersOnlyPressure(self) -> None:
        """The handler's receiver may still slow the client down, from the first octets on."""
        handler = StreamingKeeper()
        handler.pauses = True
        client = self.client(Filter(headers=says(None)), handler=handler)
        client.talk(TRANSACTION + b"DATA\r\nSubject: test\r\n\r\none\r\n")
        client.talk(b"two\r\n.\r\n")
        (receiver,) = handler.receivers
        self.assertNotIn(b"two", receiver.octets)
        while not receiver.finished:
            receiver.producer.resumeProducing()
        self.assertEqual(receiver.octets, b"Subject: test\r\n\r\none\r\ntwo\r\n")

    def test_headersRefused(self) -> None:
        """The refusal of such a filter is the reply to the message."""
        handler = StreamingKeeper()
        client = self.client(Filter(headers=says("554 5.6.0 no")), handler=handler)
        self.assertEqual(client.send_message(self.LARGE).text, "5.6.0 no")
        self.assertEqual(handler.receivers, [])
        self.assertEqual(client.send_message().code, 554)

    def test_headerWithoutEnd(self) -> None:
        """The memory for a header is limited."""
        endless = (b"X: " + b"y" * 900 + b"\r\n") * 400, b"X: " + b"y" * 300_000 + b"\r\n"
        for header in endless:
            client = self.client(Filter(message=says(None)), header_size_limit=None)
            self.assertEqual(client.send_message(header).code, 552)

    def test_noHeaderAndLong(self) -> None:
        """A long text without a header does not count as a long header."""
        for text in (b"text\r\n" * 60_000, b"y" * 300_000 + b"\r\n", b"A: b\r\n" + b"text\r\n" * 60_000):
            self.client(Filter(message=says(None)), header_size_limit=None).send_message(text)
            self.assertEqual(self.content(), text)

    def test_mailbox(self) -> None:
        """A mailbox behind a filter stores the changed message, octet for octet."""
        folder = self.mktemp()
        marks = Filter(message=lambda *arguments: arguments[-1].add_header("X-Mark", "1"))
        client = self.client(marks, handler=Mailbox(folder, durable=False))
        self.assertEqual(client.send_message(self.LARGE).code, 250)
        (path,) = Path(folder, "new").iterdir()
        expected = b"X-Mark: 1\r\n" + self.LARGE
        self.assertTrue(path.read_bytes().endswith(b"\n" + expected.replace(b"\r\n", b"\n")))

    def test_receiverAborted(self) -> None:
        """A handler's receiver is notified if the client disconnects while the message is passed to it."""
        handler = StreamingKeeper()
        handler.pauses = True
        client = self.client(Filter(message=says(None)), handler=handler)
        client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        client.vanish(ConnectionDone())
        (receiver,) = handler.receivers
        self.assertEqual((receiver.finished, len(receiver.aborted)), (0, 1))
        self.flushLoggedErrors()
