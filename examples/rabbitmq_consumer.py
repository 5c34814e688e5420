"""Take mail that txsmtpd has handed to RabbitMQ: once each, although it may come more than once.

    python rabbitmq_consumer.py amqp://localhost incoming seen.sqlite

Messages that cannot be used go to the dead letters; what fails for now is tried again, up to the queue's delivery
limit. Both are done by *reject*: a *nack* does not count towards the delivery limit of a quorum queue, and a message
that fails each time would come back for ever.
"""

import json
import sqlite3
import sys
from email import message_from_bytes, policy
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pika


class Unusable(Exception):
    """The message will not do, however often it is tried."""


def use(envelope, message):
    """What your application does with a message."""
    subject = message_from_bytes(message, policy=policy.default)["subject"]
    if subject == "unusable":
        raise Unusable(subject)
    print(f"{envelope['mail_from']} {','.join(envelope['rcpt_tos'])} {subject}", flush=True)


def content_of(properties, body):
    """The message, also if a reference to it was handed over."""
    if properties.content_type == "message/rfc822":
        return body
    uri = urlsplit(json.loads(body)["uri"])
    if uri.scheme == "file":
        with open(url2pathname(uri.path), "rb") as file:
            return file.read()
    import boto3

    return boto3.client("s3").get_object(Bucket=uri.netloc, Key=uri.path[1:])["Body"].read()


class Consumer:
    def __init__(self, seen):
        # All consumers must share it: a table with a unique index, or Redis with SET NX EX.
        self.seen = sqlite3.connect(seen, isolation_level=None)
        self.seen.execute(
            "CREATE TABLE IF NOT EXISTS seen (fingerprint TEXT PRIMARY KEY, time DEFAULT CURRENT_TIMESTAMP)"
        )

    def take(self, channel, method, properties, body):
        try:
            envelope = json.loads(properties.headers["envelope"])
            if not self.is_repeat(envelope["fingerprint"]):
                use(envelope, content_of(properties, body))
                self.remember(envelope["fingerprint"])
        except (Unusable, KeyError, ValueError) as error:
            print(f"unusable: {error}", file=sys.stderr)
            channel.basic_reject(method.delivery_tag, requeue=False)
        except Exception as error:
            print(f"later: {error!r}", file=sys.stderr)
            channel.basic_reject(method.delivery_tag, requeue=True)
        else:
            channel.basic_ack(method.delivery_tag)

    def is_repeat(self, fingerprint):
        return self.seen.execute("SELECT 1 FROM seen WHERE fingerprint = ?", [fingerprint]).fetchone() is not None

    def remember(self, fingerprint):
        self.seen.execute("INSERT OR IGNORE INTO seen (fingerprint) VALUES (?)", [fingerprint])
        self.seen.execute("DELETE FROM seen WHERE time < datetime('now', '-7 days')")  # clients give up by then


def main(url, queue, seen):
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.basic_qos(prefetch_count=20)
    channel.basic_consume(queue, Consumer(seen).take)
    channel.start_consuming()


if __name__ == "__main__":
    main(*sys.argv[1:])
