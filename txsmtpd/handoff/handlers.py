"""The built-in hand-off handlers, each with ``from_cli`` for the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from txsmtpd.handoff.amqp import HEARTBEAT, MAX_SIZE, AMQPTarget
from txsmtpd.handoff.amqp_url import Address
from txsmtpd.handoff.arguments import (
    PROMISE,
    need,
    number,
    parse_arguments,
    properties_file,
    seconds,
    secret,
    secrets_in,
    text,
    url_of,
    yes_or_no,
)
from txsmtpd.handoff.kafka import MAX_SIZE as MAX_KAFKA_SIZE
from txsmtpd.handoff.kafka import KafkaTarget
from txsmtpd.handoff.message import recipient_of
from txsmtpd.handoff.promise import CONFIRM_TIMEOUT, LARGEST, Handoff
from txsmtpd.handoff.signature import Secrets
from txsmtpd.handoff.stores import make_store
from txsmtpd.handoff.webhook import REQUESTS, TIMEOUT, WebhookTarget
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session

MOST_RECIPIENTS = 50  # when the envelope is in header fields: HTTP servers accept 8 to 64 KiB of these
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
RECIPIENT_OK = Reply(250, "2.1.5", "OK")


class AMQPHandoff(Handoff):
    """Hand each message to RabbitMQ: AMQP 0-9-1 with publisher confirms. Needs the extra ``amqp``.

    250 means that a queue has the message; with a quorum queue, that a majority of its members have it on disk.

    :param url: ``amqp://USER:PASSWORD@HOST:PORT/VHOST``; ``amqps`` for TLS.
    :param queue: the queue to publish to, through the default exchange.
    :param exchange: the exchange to publish to, instead of a queue.
    :param routing_key: for the exchange. Default: ``mail.`` and the labels of the first recipient's domain in reverse
        order, such as ``mail.com.example``.
    :param declare: create the queue, as a quorum queue with dead letters. Otherwise it must exist.
    :param max_size: the broker's ``max_message_size``, in bytes. AMQP does not announce it.
    :param tls_context: for TLS, the result of ``twisted.internet.ssl.optionsForClientTLS``. Default: the system's
        certificate authorities, and the host of the URL.
    :param heartbeat: seconds. The connection to a broker that is silent for two intervals is closed.
    :param options: see :class:`Handoff`.
    :raises ValueError: for an invalid URL, or conflicting options. The message does not contain the password.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        declare: bool = False,
        max_size: int = MAX_SIZE,
        tls_context: Any = None,
        heartbeat: int = HEARTBEAT,
        reactor: Any = None,
        **options: Any,
    ) -> None:
        target = AMQPTarget(
            url,
            queue=queue,
            exchange=exchange,
            routing_key=routing_key,
            declare=declare,
            max_size=max_size,
            tls_context=tls_context,
            heartbeat=heartbeat,
            reactor=reactor,
        )
        super().__init__(target, reactor=reactor, **options)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the handler from command line arguments: ``[URL:]queue=NAME[:OPTION...]``."""
        need(parser, "pika", "amqp")
        given, options = parse_arguments(
            parser,
            args,
            {
                **PROMISE,
                "queue": text,
                "exchange": text,
                "routing_key": text,
                "declare": yes_or_no,
                "url_file": secret,
                "ca": text,
                "certificate": text,
                "key": text,
            },
        )
        url = url_of(parser, given, options, "TXSMTPD_AMQP_URL")
        _make_store(parser, options)
        if not {"queue", "exchange"} & options.keys():
            parser.error("queue=NAME or exchange=NAME is required")
        try:
            return cls(url, tls_context=_tls_context(Address.parse(url).host, options), **options)
        except (ValueError, OSError) as error:
            parser.error(str(error))
            raise


class KafkaHandoff(Handoff):
    """Hand each message to Kafka, with ``acks=all`` and an idempotent producer. Needs the extra ``kafka``.

    250 means that all in-sync replicas have the message. Set the topic's ``min.insync.replicas`` to 2 or more.

    :param brokers: ``HOST:PORT``, separated by commas.
    :param topic: the topic. It must exist, unless the brokers create topics.
    :param key: ``domain``: the domain of the first recipient, so that its messages stay in order; ``none``: messages
        are spread over all partitions.
    :param config: further librdkafka configuration, such as credentials.
    :param max_size: the maximum size of a message, in bytes. The brokers' ``message.max.bytes`` must be larger.
    :param options: see :class:`Handoff`.
    :raises ValueError: for invalid options.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        key: str = "domain",
        config: Mapping[str, Any] | None = None,
        max_size: int = MAX_KAFKA_SIZE,
        reactor: Any = None,
        **options: Any,
    ) -> None:
        timeout = options.get("confirm_timeout", CONFIRM_TIMEOUT) * 0.9
        target = KafkaTarget(
            brokers, topic, key=key, config=config, max_size=max_size, delivery_timeout=timeout, reactor=reactor
        )
        if "store" in options:
            options.setdefault("inline", max_size // 2)
        super().__init__(target, reactor=reactor, **options)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the handler from command line arguments: ``BROKERS:topic=NAME[:OPTION...]``."""
        need(parser, "confluent_kafka", "kafka")
        given, options = parse_arguments(
            parser, args, {**PROMISE, "topic": text, "key": text, "config": properties_file}
        )
        brokers = given or os.environ.get("TXSMTPD_KAFKA_BROKERS", "")
        if not brokers:
            parser.error("brokers are needed: HOST:PORT,... here, or in the environment as TXSMTPD_KAFKA_BROKERS")
        if "topic" not in options:
            parser.error("topic=NAME is required")
        _make_store(parser, options)
        try:
            handler = cls(brokers, **options)
            handler.target.check_config()
        except ValueError as error:
            parser.error(str(error))
            raise
        return handler


class WebhookHandoff(Handoff):
    """Hand each message to an application over HTTP. Its response decides about the message.

    :param url: where to post. Its user and password are sent as Basic credentials. Redirects are not followed.
    :param format: ``raw``, ``json``, ``sendgrid`` or ``mailgun``; see "Hand-off" in the documentation.
    :param secrets: the keys to sign requests with (Standard Webhooks); several during key rotation.
    :param rcpt: a URL to check each recipient with before it is accepted.
    :param timeout: seconds for a complete request.
    :param requests: the maximum number of concurrent requests.
    :param max_size: the maximum size of a message, in bytes.
    :param tls_context: for TLS, the result of ``twisted.internet.ssl.optionsForClientTLS``. Default: the system's
        certificate authorities, and the host of the URL.
    :param options: see :class:`Handoff`.
    :raises ValueError: for an invalid URL or invalid secrets.
    """

    def __init__(
        self,
        url: str,
        *,
        format: str = "raw",
        secrets: Sequence[str] = (),
        rcpt: str | None = None,
        timeout: float = TIMEOUT,
        requests: int = REQUESTS,
        max_size: int = LARGEST,
        tls_context: Any = None,
        reactor: Any = None,
        **options: Any,
    ) -> None:
        target = WebhookTarget(
            url,
            format=format,
            secrets=Secrets(secrets) if secrets else None,
            rcpt=rcpt,
            timeout=timeout,
            requests=requests,
            max_size=max_size,
            tls_context=tls_context,
            reactor=reactor,
        )
        super().__init__(target, reactor=reactor, **options)
        self._most_recipients = MOST_RECIPIENTS if format == "raw" else None

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the handler from command line arguments: ``URL[:OPTION...]``."""
        given, options = parse_arguments(
            parser,
            args,
            {
                **PROMISE,
                "url_file": secret,
                "format": text,
                "secret_file": secrets_in,
                "rcpt": text,
                "timeout": seconds,
                "requests": number,
                "ca": text,
                "certificate": text,
                "key": text,
            },
        )
        url = url_of(parser, given, options, "TXSMTPD_WEBHOOK_URL")
        _make_store(parser, options)
        secrets = options.pop("secret_file", ())
        try:
            host = urlsplit(url).hostname or ""
            return cls(url, secrets=secrets, tls_context=_tls_context(host, options), **options)
        except (ValueError, OSError) as error:
            parser.error(str(error))
            raise

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> Any:
        if self._most_recipients is not None and len(envelope.rcpt_tos) >= self._most_recipients:
            raise Refused(TOO_MANY_RECIPIENTS)
        reply: Reply = RECIPIENT_OK
        if self.target.rcpt is not None:
            reply = await self.target.ask_recipient(recipient_of(session, envelope, address))
        if reply.positive:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(rcpt_options)
        return reply if reply.text != "OK" else RECIPIENT_OK


def _make_store(parser: Any, options: dict[str, Any]) -> None:
    if "store" in options:
        options["store"] = make_store(parser, options["store"])
    elif "inline" in options:
        parser.error("inline: requires store=s3://BUCKET/PREFIX or store=file:/FOLDER")


def _tls_context(host: str, options: dict[str, Any]) -> Any:
    """Make the TLS context for ``ca``, ``certificate`` and ``key``. Return None without them.

    :raises ValueError: if they do not go together, or a file is invalid.
    """
    authority, certificate, key = (options.pop(name, None) for name in ("ca", "certificate", "key"))
    if key is not None and certificate is None:
        raise ValueError("key: requires certificate=PATH")
    if authority is None and certificate is None:
        return None
    from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates

    trust = authority and trustRootFromCertificates(
        [Certificate.loadPEM(pem) for pem in _certificates(Path(authority).read_bytes())]
    )
    own = None
    if certificate is not None:
        pem = Path(certificate).read_bytes() + (Path(key).read_bytes() if key else b"")
        own = _loaded(PrivateCertificate.loadPEM, pem, f"{certificate}: no certificate with its key")
    return optionsForClientTLS(host, trust, own)


def _certificates(pem: bytes) -> list[bytes]:
    found = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", pem, re.DOTALL)
    if not found:
        raise ValueError("ca: there is no certificate in the file")
    return found


def _loaded(load: Any, pem: bytes, complaint: str) -> Any:
    try:
        return load(pem)
    except Exception as error:  # OpenSSL raises many types
        raise ValueError(complaint) from error
