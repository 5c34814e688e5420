"""Hand-off: passes mail to another system, such as a message broker or a web hook, before replying 250 to the client.

:class:`Handoff` is the handler for all targets; :class:`IHandoff` is the interface of a target. AMQP 0-9-1 (RabbitMQ),
Kafka and HTTP are built in; their client libraries are imported only when used.
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
