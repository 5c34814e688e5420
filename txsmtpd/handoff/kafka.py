"""Kafka: produces messages to a topic with confluent-kafka, acknowledged by all in-sync replicas.

librdkafka has its own threads, and retries without duplicates (idempotence). One further thread of ours waits for its
delivery reports and passes them to the reactor.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from txsmtpd.bridges.reactors import call_in_pool, current_reactor
from txsmtpd.handlers.delivery import when_done
from txsmtpd.handoff import bindings
from txsmtpd.handoff.interfaces import IHandoff
from txsmtpd.handoff.message import HandoffMessage
from txsmtpd.handoff.outcome import BUSY, TOO_LARGE, UNAVAILABLE, NotTaken, OutcomeUnknown, Unroutable
from txsmtpd.interfaces import IReadiness
from txsmtpd.log.reasons import reason_of
from txsmtpd.reply import Refused

_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
MAX_SIZE = 10**6  # bytes; by default, brokers accept 1,048,588 including the envelope; topics may differ
HEADERS = 2**16  # bytes for the envelope, in addition
DELIVERY_TIMEOUT = 55.0  # seconds; less than `confirm_timeout`, so that the report gives the reason
POLL = 0.1  # seconds
PROBE = 0.5  # seconds until the next check whether the brokers are available
METADATA_TIMEOUT = 3.0  # seconds
FLUSH = 10.0  # seconds to wait for pending messages when stopping

OURS = {"acks", "request.required.acks", "enable.idempotence", "bootstrap.servers", "metadata.broker.list"}

log = Logger(namespace="txsmtpd.handoff")


@implementer(IHandoff, IReadiness)
class KafkaTarget(Service):
    """Produces messages to Kafka. See :class:`~txsmtpd.handoff.KafkaHandoff` for the parameters."""

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        key: str = "domain",
        config: Mapping[str, Any] | None = None,
        max_size: int = MAX_SIZE,
        delivery_timeout: float = DELIVERY_TIMEOUT,
        reactor: Any = None,
    ) -> None:
        if not brokers or not topic:
            raise ValueError("brokers, such as kafka.example.com:9092, and a topic are needed")
        if not _TOPIC.fullmatch(topic):
            raise ValueError("a topic consists of up to 249 letters, digits, dots, underscores and hyphens")
        if key not in ("domain", "none"):
            raise ValueError(f"key must be domain or none, not {key!r}")
        if taken := OURS & set(config or ()):
            raise ValueError(f"{min(taken)} cannot be configured, because safe delivery depends on it")
        self.brokers = brokers
        self.topic = topic
        self.key = key
        self.max_size = max_size
        self.reactor = reactor
        self._config = {
            "client.id": "txsmtpd",
            "linger.ms": 1,
            "delivery.timeout.ms": int(delivery_timeout * 1000),
            "message.max.bytes": max_size + HEADERS,
            **(config or {}),
            "bootstrap.servers": brokers,
            "acks": "all",
            "enable.idempotence": True,
        }
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._problem: str | None = "not connected yet"
        self._probing: Deferred[None] | None = None
        self._probe_call: Any = None

    def __str__(self) -> str:
        return f"Kafka topic {self.topic}"

    # Service

    def startService(self) -> None:
        if self.running:
            return
        super().startService()
        if self.reactor is None:
            self.reactor = current_reactor()
        self._make_producer()
        self._probe()

    def check_config(self) -> None:
        """Let librdkafka check the configuration.

        :raises ValueError: if it is invalid.
        """
        from confluent_kafka import KafkaException, Producer

        try:
            Producer(self._config, logger=_quiet_logger())
        except KafkaException as error:
            raise ValueError(f"Kafka's configuration: {error.args[0].str()}") from error

    def _make_producer(self) -> None:
        from confluent_kafka import Producer

        self._end = threading.Event()
        self._producer = Producer({**self._config, "error_cb": self._error_in_thread}, logger=_quiet_logger())
        self._thread = threading.Thread(
            target=_poll, args=(self._producer, self._end), name="txsmtpd kafka", daemon=True
        )
        self._thread.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._probe_call is not None and self._probe_call.active():
            self._probe_call.cancel()
        if self._probing is not None:
            await when_done(self._probing)
        await call_in_pool(_finish, self._producer, self._thread, self._end)
        self._producer = None

    # IReadiness, IHandoff

    def not_ready(self) -> str | None:
        return self._problem

    async def check(self) -> None:
        """Reject messages before they are read while no broker is available."""
        if not self.running:
            self.startService()
        if self._problem is not None and self._probing is not None:
            await when_done(self._probing)
        if self._problem is not None:
            raise NotTaken(self._problem, UNAVAILABLE)

    def hand_off(self, message: HandoffMessage) -> Deferred[None]:
        from confluent_kafka import KafkaException

        reported: Deferred[None] = Deferred()

        def report_in_thread(error: Any, _: Any) -> None:
            self.reactor.callFromThread(self._reported, reported, error)

        try:
            self._producer.produce(
                self.topic,
                message.content,
                key=self._key_of(message),
                headers=bindings.kafka_headers(message),
                on_delivery=report_in_thread,
            )
        except BufferError:
            raise NotTaken("the queue for Kafka is full", BUSY) from None
        except KafkaException as error:
            raise _outcome(error.args[0]) from error
        return reported

    def _key_of(self, message: HandoffMessage) -> str | None:
        return bindings.domain_of(message.rcpt_tos[0]) or None if self.key == "domain" and message.rcpt_tos else None

    def _reported(self, reported: Deferred[None], error: Any) -> None:
        if error is None:
            self._problem = None
        if reported.called:  # it has timed out
            return
        if error is None:
            reported.callback(None)
        else:
            outcome = _outcome(error)
            if isinstance(outcome, Unroutable):
                self._is_away(str(outcome))
            reported.errback(outcome)

    # Availability of the brokers

    def _error_in_thread(self, error: Any) -> None:
        self.reactor.callFromThread(self._error, error)

    def _error(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        if error.fatal():
            self._is_away(f"fatal: {error.str()}")
            if self.running:
                _finish_later(self._producer, self._thread, self._end)
                self._make_producer()
        elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._is_away(error.str())
        elif error.code() == KafkaError._TRANSPORT:
            # A broker is lost. librdkafka reports that all are down only if it had a connection to each.
            self._probe_later()

    def _is_away(self, why: str) -> None:
        if why != self._problem:
            self._problem = why
            log.error("{target}: {why}", target=str(self), why=why)
        self._probe_later()

    def _probe_later(self) -> None:
        if self.running and self._probing is None and (self._probe_call is None or not self._probe_call.active()):
            self._probe_call = self.reactor.callLater(PROBE, self._probe)

    def _probe(self) -> None:
        """Check that the topic exists."""
        self._probing = call_in_pool(self._producer.list_topics, self.topic, METADATA_TIMEOUT)
        self._probing.addCallbacks(self._found, self._not_found)

    def _found(self, metadata: Any) -> None:
        self._probing = None
        error = metadata.topics[self.topic].error
        if error is not None:
            self._is_away(f"topic {self.topic}: {error.str()}")
        elif self._problem is not None:
            self._problem = None
            log.info("{target}: connected", target=str(self))

    def _not_found(self, failure: Any) -> None:
        self._probing = None
        error = failure.value.args[0] if failure.value.args else failure.value
        self._is_away(f"the brokers do not answer: {error.str() if hasattr(error, 'str') else reason_of(failure)}")


def _outcome(error: Any) -> Exception:
    """Return the exception for an error of Kafka."""
    from confluent_kafka import KafkaError

    code, text = error.code(), error.str()
    if code == KafkaError.MSG_SIZE_TOO_LARGE:
        return Refused(TOO_LARGE)
    if code in (
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_REQUIRED_ACKS,
    ):
        return Unroutable(text)
    if code in (KafkaError._PURGE_QUEUE, KafkaError.NOT_ENOUGH_REPLICAS, KafkaError._QUEUE_FULL):
        return NotTaken(text)
    return OutcomeUnknown(text)


def _poll(producer: Any, end: threading.Event) -> None:
    """Serve delivery reports, in a thread."""
    while not end.is_set():
        producer.poll(POLL)


def _finish(producer: Any, thread: threading.Thread | None, end: threading.Event) -> None:
    if producer is not None:
        producer.flush(FLUSH)
    end.set()
    if thread is not None:
        thread.join()


def _finish_later(producer: Any, thread: threading.Thread | None, end: threading.Event) -> None:
    """Shut down a producer with a fatal error: its pending messages still get their reports."""
    producer.purge()
    call_in_pool(_finish, producer, thread, end)


def _quiet_logger() -> logging.Logger:
    """Return the logger for librdkafka's own lines: for programs that configure logging, not stderr."""
    logger = logging.getLogger("txsmtpd.handoff.kafka")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
