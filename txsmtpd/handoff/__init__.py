"""Hand-off: mail that goes on to another system, a broker or a web hook, before its client is told 250.

:class:`Handoff` keeps the promise for every target; :class:`IHandoff` is what a target is. Built in are AMQP 0-9-1
(RabbitMQ), Kafka and HTTP; their client libraries are imported when they are used.
"""

from txsmtpd.handoff.handlers import AMQPHandoff, KafkaHandoff, WebhookHandoff
from txsmtpd.handoff.interfaces import IHandoff, IMessageStore, IUpload
from txsmtpd.handoff.message import HandoffMessage
from txsmtpd.handoff.outcome import NotTaken, OutcomeUnknown, Unroutable
from txsmtpd.handoff.promise import Handoff
from txsmtpd.handoff.s3 import S3Store
from txsmtpd.handoff.stores import DirectoryStore

__all__ = [
    "AMQPHandoff",
    "DirectoryStore",
    "Handoff",
    "HandoffMessage",
    "IHandoff",
    "IMessageStore",
    "IUpload",
    "KafkaHandoff",
    "NotTaken",
    "OutcomeUnknown",
    "S3Store",
    "Unroutable",
    "WebhookHandoff",
]
