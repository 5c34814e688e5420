"""The chain of filters in front of a handler. It wraps the handler's hooks.

A server without filters does not use it, and a stage without filters costs nothing. :mod:`txsmtpd.filters.receiver`
holds a message until its filters have decided.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from txsmtpd.engine.meter import report_decider
from txsmtpd.filters.interfaces import IFilter
from txsmtpd.filters.message import FilteredMessage
from txsmtpd.filters.receiver import DiscardedMessage, FilteredReceiver, WholeMessage
from txsmtpd.filters.timing import within
from txsmtpd.filters.verdict import ACCEPT, FilterError, StillDownError, Verdict, Verdicts
from txsmtpd.reply import OK, Refused, Reply, parse_status

log = Logger(namespace="txsmtpd.filters")

Hooks = Mapping[str, Callable[..., Any]]
OpenMessage = Callable[[Any, Any, Any], Any]

PREFIX = "filter_"
STAGES = ("CONNECT", "HELO", "MAIL", "RCPT", "DATA", "headers", "message", "RSET", "DISCONNECT")
OF_CONNECTION = ("CONNECT", "HELO")
ON_FAILURE = ("tempfail", "accept")
COMMAND_TIMEOUT = 30.0  # seconds
MESSAGE_TIMEOUT = 300.0
SHARE = 0.9  # fraction of the server's time limit for a reply; the rest is for the handler
UNAVAILABLE = Reply(451, "4.7.1", "A filter is not available, try again later")
CLOSING = Reply(421, "4.7.1", "A filter is not available, try again later")


class Link:
    """A filter, with what the chain needs to know about it.

    :raises TypeError: if it is not a filter.
    :raises ValueError: if its *on_failure* is invalid.
    """

    def __init__(self, filter: Any, taken: Iterable[str], wrap: Callable[[Any], Any]) -> None:
        if isinstance(filter, type):
            raise TypeError(f"a filter must be an object, not its class; write {filter.__name__}(...)")
        self.hooks: dict[str, Callable[..., Any]] = {}
        for name in dir(filter):
            if name.startswith(PREFIX):
                stage = name.removeprefix(PREFIX)
                if stage not in STAGES:
                    known = ", ".join(PREFIX + each for each in STAGES)
                    raise TypeError(f"{name} of {filter!r} is not a stage of filters; there are {known}")
                method = getattr(filter, name)
                _check_parameters(filter, name, method)
                self.hooks[stage] = wrap(method)
        if not self.hooks:
            raise TypeError(f"{filter!r} is not a filter: it has no method such as filter_message")
        self.name = _unique(getattr(filter, "name", None) or type(filter).__name__, taken)
        on_failure = getattr(filter, "on_failure", "tempfail")
        if on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure of the filter {self.name} must be 'tempfail' or 'accept', not {on_failure!r}")
        self.accepts_on_failure = on_failure == "accept"
        self.command_timeout = getattr(filter, "command_timeout", COMMAND_TIMEOUT)
        self.message_timeout = getattr(filter, "message_timeout", MESSAGE_TIMEOUT)
        self.authserv_id = getattr(filter, "authserv_id", None)
        self.trouble: str | None = None  # the last failure, until it works again
        self.trouble_at = ""  # the stage of that failure

    def timeout(self, stage: str) -> float | None:
        """Return its time limit for a stage, in seconds."""
        return self.message_timeout if stage == "message" else self.command_timeout


def _check_parameters(filter: Any, name: str, method: Any) -> None:
    declared: Any = IFilter[name]
    wanted = f"{name}{declared.getSignatureString()}"
    if not callable(method):
        raise TypeError(f"{name} of {filter!r} is not a method; it must be {wanted}")
    try:
        inspect.signature(method).bind(*declared.getSignatureInfo()["positional"])
    except ValueError:
        return  # its signature is unknown
    except TypeError as error:
        raise TypeError(f"{name} of {filter!r} must be {wanted}: {error}") from None


def _unique(name: str, taken: Iterable[str]) -> str:
    known = set(taken)
    names = (f"{name}-{number}" for number in range(2, len(known) + 3))
    return name if name not in known else next(each for each in names if each not in known)


class Chain:
    """The filters of a server, in order.

    :param filters: providers of :class:`~txsmtpd.filters.interfaces.IFilter`.
    :raises TypeError: if one is not a filter.
    :raises ValueError: if one has invalid options.
    """

    def __init__(self, filters: Iterable[Any]) -> None:
        if isinstance(filters, str) or not isinstance(filters, Iterable):
            raise TypeError(f"filters must be a list of filters, not {filters!r}")
        self._filters = tuple(filters)
        self.links: list[Link] = []
        self._numbers = itertools.count(1)
        self._accepted: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

    def compose(
        self,
        hooks: Hooks,
        open_message: OpenMessage | None,
        clock: Callable[[], Any],
        wrap: Callable[[Any], Any] = lambda hook: hook,
    ) -> tuple[Hooks, OpenMessage | None]:
        """Return the combined hooks of the chain and a handler.

        :param hooks: the handler's hooks.
        :param open_message: the handler's ``open_message``, if it streams messages.
        :param clock: returns the IReactorTime to use.
        :param wrap: wraps a method of a filter.
        """
        self.links = []
        for filter in self._filters:
            self.links.append(Link(filter, [link.name for link in self.links], wrap))
        self._hooks = hooks
        self._open_message = open_message
        self.clock = clock
        ours = (
            ("CONNECT", ("CONNECT",), self._connect),
            ("HELO", ("HELO",), self._helo),
            ("EHLO", ("HELO",), self._ehlo),
            ("MAIL", STAGES, self._mail),  # creates the verdicts
            ("RCPT", ("RCPT",), self._rcpt),
            ("DISCONNECT", ("RSET", "DISCONNECT"), self._disconnect),
        )
        composed = {**hooks, **{name: hook for name, stages, hook in ours if any(map(self._at, stages))}}
        opens = any(self._at(stage) for stage in ("MAIL", "RCPT", "DATA", "headers", "message"))
        return composed, self.open_message if opens else open_message

    def _at(self, stage: str) -> list[Link]:
        return [link for link in self.links if stage in link.hooks]

    # Called by the server

    async def _connect(self, server: Any, session: Any, envelope: Any) -> Any:
        self._accepted.pop(server, None)
        await self._of_connection("CONNECT", server, session, envelope)
        return await self._inner("CONNECT", server, session, envelope)

    async def _helo(self, server: Any, session: Any, envelope: Any, hostname: str) -> Any:
        await self._of_connection("HELO", server, session, envelope, hostname)
        if "HELO" in self._hooks:
            status = await self._inner("HELO", server, session, envelope, hostname)
        else:
            status = Reply(250, None, server.hostname)
        return status

    async def _ehlo(self, server: Any, session: Any, envelope: Any, hostname: str, *responses: Any) -> Any:
        await self._of_connection("HELO", server, session, envelope, hostname)
        status = responses[0] if responses else None
        if "EHLO" in self._hooks:
            status = await self._inner("EHLO", server, session, envelope, hostname, *responses)
        return status

    async def _of_connection(self, stage: str, server: Any, session: Any, envelope: Any, *arguments: Any) -> None:
        accepted = self._accepted.get(server, ())
        latest = self._latest(server)
        for link in self._at(stage):
            if link.name not in accepted:
                decision = await self._ask(link, stage, latest, server, session, envelope, *arguments)
                if decision is ACCEPT:
                    self._accepted.setdefault(server, set()).add(link.name)

    async def _mail(self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]) -> Any:
        self.transaction_over(server, session, envelope)  # a subclass's smtp_MAIL may not have ended the last one
        envelope.filters = verdicts = Verdicts(f"{session.id}.{next(self._numbers)}")
        verdicts.finished |= self._accepted.get(server, set())
        await self._of_transaction("MAIL", server, session, envelope, address, mail_options)
        if "MAIL" in self._hooks:
            return await self._inner("MAIL", server, session, envelope, address, mail_options)
        return server.begin_transaction(address, mail_options)

    async def _rcpt(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]) -> Any:
        # Call the handler first, so that filters see only accepted recipients.
        if "RCPT" in self._hooks:
            status = await self._inner("RCPT", server, session, envelope, address, rcpt_options)
        else:
            status = server.add_recipient(address, rcpt_options)
        if _is_positive(status):
            await self._of_transaction("RCPT", server, session, envelope, address, rcpt_options)
        return status

    async def _of_transaction(self, stage: str, server: Any, session: Any, envelope: Any, *arguments: Any) -> None:
        latest = self._latest(server)
        for link in self._at(stage):
            await self.ask(link, stage, latest, server, session, envelope, *arguments)

    def _latest(self, server: Any) -> float | None:
        """Return the time by which all filters must have answered, before the server's own time limit."""
        seconds = server.settings.hook_timeout
        return None if seconds is None else self.clock().seconds() + SHARE * seconds

    def _disconnect(self, server: Any, session: Any, envelope: Any, cause: Any) -> Any:
        self.transaction_over(server, session, envelope)
        self._tell("DISCONNECT", server, session, envelope, cause)
        hook = self._hooks.get("DISCONNECT")
        return None if hook is None else hook(server, session, envelope, cause)

    def transaction_over(self, server: Any, session: Any, envelope: Any) -> None:
        """Notify the filters of the end of a transaction, once for each MAIL for which they were called.

        The server calls this at the end of each transaction, and after each rejected MAIL.
        """
        verdicts = envelope.filters
        if isinstance(verdicts, Verdicts) and not verdicts.over:
            verdicts.over = True
            self._tell("RSET", server, session, envelope)

    def _tell(self, stage: str, *arguments: Any) -> None:
        for link in self._at(stage):
            Deferred.fromCoroutine(self._told(link, stage, *arguments))

    async def _told(self, link: Link, stage: str, *arguments: Any) -> None:
        try:
            result = link.hooks[stage](*arguments)
            if isinstance(result, Awaitable):
                await result
        except Exception:
            log.failure("the filter {name} failed at {stage}", name=link.name, stage=stage)

    async def _inner(self, name: str, *arguments: Any) -> Any:
        """Return the result of the handler's hook, or None without one."""
        hook = self._hooks.get(name)
        result = None if hook is None else hook(*arguments)
        return await result if isinstance(result, Awaitable) else result

    # The message

    async def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        """Start a message; see :class:`~txsmtpd.interfaces.IStreamingHandler`."""
        await self._of_transaction("DATA", server, session, envelope)
        verdicts = envelope.filters
        if verdicts.discarded:
            return DiscardedMessage()
        waiting = [link for link in self.links if link.name not in verdicts.finished]
        whole = any("message" in link.hooks for link in waiting)
        if whole or any("headers" in link.hooks for link in waiting):
            return FilteredReceiver(self, server, session, envelope, whole)
        return await self.open_inner(server, session, envelope)

    async def filter_message(self, server: Any, session: Any, envelope: Any, message: FilteredMessage) -> None:
        """Pass the message through all filters in order, and apply their changes.

        :raises Refused: if a filter rejects it.
        """
        latest = self._latest(server)
        for link in self.links:
            before = len(message.added)
            verdict = None
            was_quarantined = message.quarantined
            for stage in "headers", "message":
                if stage in link.hooks:
                    verdict = await self.ask(link, stage, latest, server, session, envelope, message) or verdict
            if envelope.filters.discarded:
                return
            if link.name not in envelope.filters:
                verdict = verdict or ACCEPT
                if verdict.action == "quarantine":
                    message.quarantine(verdict.reason or link.name)
                if message.quarantined is not None and was_quarantined is None:
                    verdict = replace(verdict, action="quarantine", reason=message.quarantined)
                envelope.filters[link.name] = replace(verdict, headers=tuple(message.added[before:]))

    async def quarantine(self, server: Any, session: Any, envelope: Any, reason: str) -> Any:
        """Return the result of the handler's ``handle_QUARANTINE``, or None without one."""
        return await self._inner("QUARANTINE", server, session, envelope, reason)

    async def open_inner(self, server: Any, session: Any, envelope: Any) -> Any:
        """Return the handler's receiver for the message."""
        if self._open_message is None:
            return WholeMessage(server._message)
        receiver = self._open_message(server, session, envelope)
        return await receiver if isinstance(receiver, Awaitable) else receiver

    # One filter

    async def ask(
        self,
        link: Link,
        stage: str,
        latest: float | None,
        server: Any,
        session: Any,
        envelope: Any,
        *arguments: Any,
    ) -> Verdict | None:
        """Ask a filter about a transaction, unless it has finished with it.

        :param latest: the time by which it must answer.
        :raises Refused: if it rejects.
        """
        verdicts = envelope.filters
        if link.name in verdicts.finished or verdicts.discarded:
            return None
        decision = await self._ask(link, stage, latest, server, session, envelope, *arguments)
        if decision is not None:
            verdicts.discarded = decision.action == "discard"
            if decision is ACCEPT or decision.action != "accept":
                verdicts.finished.add(link.name)
            if decision.action in ("discard", "failed"):
                verdicts[link.name] = decision
        return decision

    async def _ask(
        self,
        link: Link,
        stage: str,
        latest: float | None,
        server: Any,
        session: Any,
        envelope: Any,
        *arguments: Any,
    ) -> Verdict | None:
        try:
            result = link.hooks[stage](server, session, envelope, *arguments)
            if isinstance(result, Awaitable):
                result = await self._in_time(result, link.timeout(stage), latest)
            decision = _decision(result)
        except Refused as refused:
            report_decider(server, "filter")
            log.info(
                "{session} the filter {name} rejected {stage}: {reply}",
                session=session.id,
                name=link.name,
                stage=stage,
                reply=str(refused.reply).replace("\n", " / "),
            )
            raise
        except CancelledError:
            raise
        except Exception as error:
            return self._failed(link, stage, server, session, error)
        self._works(link, stage)
        return decision

    def _in_time(self, result: Awaitable[Any], seconds: float | None, latest: float | None) -> Awaitable[Any]:
        clock = self.clock()
        left = [] if latest is None else [max(latest - clock.seconds(), 0)]
        allowed = left if seconds is None else [seconds, *left]
        return within(clock, min(allowed), result) if allowed else result

    def _failed(self, link: Link, stage: str, server: Any, session: Any, error: Exception) -> Verdict:
        why = str(error) or type(error).__name__
        if not isinstance(error, FilterError):
            log.failure(
                "{session} the filter {name} failed at {stage}", session=session.id, name=link.name, stage=stage
            )
        elif why != link.trouble and not isinstance(error, StillDownError):
            log.error("{session} the filter {name} failed: {why}", session=session.id, name=link.name, why=why)
        if not isinstance(error, StillDownError):
            link.trouble, link.trouble_at = why, stage
        if not link.accepts_on_failure:
            report_decider(server, "filter_failure")
            raise Refused(CLOSING if stage in OF_CONNECTION else UNAVAILABLE)
        return Verdict("failed", reason=why)

    def _works(self, link: Link, stage: str) -> None:
        # Success at another stage does not show that the failed stage works again.
        if link.trouble is not None and link.trouble_at == stage:
            link.trouble = None
            log.info("the filter {name} works again", name=link.name)


def _decision(result: Any) -> Verdict | None:
    """Convert the result of a filter.

    :raises Refused: if it is a negative status.
    :raises TypeError: if a filter must not return it.
    """
    if result is None or isinstance(result, Verdict):
        return result
    try:
        reply = parse_status(result)
    except (TypeError, ValueError):
        reply = OK
    if reply.code < 400:
        raise TypeError(
            f"a filter returns None, ACCEPT, DISCARD, a Verdict or a refusal such as '550 5.7.1 No', not {result!r}"
        )
    raise Refused(reply)


def _is_positive(status: Any) -> bool:
    try:
        return parse_status(status).positive
    except (TypeError, ValueError):
        return False  # the server reports what is wrong with it
