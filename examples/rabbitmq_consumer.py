"""Process mail that txsmtpd has sent to RabbitMQ. Each message is processed once, even if RabbitMQ delivers it again.

    python rabbitmq_consumer.py amqp://localhost incoming seen.sqlite

A message that can never be processed goes to the dead letters. After any other failure, RabbitMQ delivers the message
again, up to the delivery limit of the queue. The consumer uses *reject* for both, because a *nack* does not count
towards the delivery limit of a quorum queue: a message that always fails would be delivered again forever.
"""

import json
import sqlite3
import sys
from email import message_from_bytes, policy
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pika


class Unusable(Exception):
    """The message can never be processed, so do not try again."""


def use(envelope, message):
    """Process a message. Replace this with the code of your application."""
    subject = message_from_bytes(message, policy=policy.default)["subject"]
    if subject == "unusable":
        raise Unusable(subject)
    print(f"{envelope['mail_from']} {','.join(envelope['rcpt_tos'])} {subject}", flush=True)


def content_of(properties, body):
    """Return the message. If RabbitMQ contains only a reference, read it from there."""
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
        # All consumers must share this store. With several hosts, use a database server, or Redis with SET NX EX.
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
            print(f"rejected: {error}", file=sys.stderr)
            channel.basic_reject(method.delivery_tag, requeue=False)
        except Exception as error:
            print(f"failed, to be tried again: {error!r}", file=sys.stderr)
            channel.basic_reject(method.delivery_tag, requeue=True)
        else:
            channel.basic_ack(method.delivery_tag)

    def is_repeat(self, fingerprint):
        return self.seen.execute("SELECT 1 FROM seen WHERE fingerprint = ?", [fingerprint]).fetchone() is not None

    def remember(self, fingerprint):
        self.seen.execute("INSERT OR IGNORE INTO seen (fingerprint) VALUES (?)", [fingerprint])
        self.seen.execute("DELETE FROM seen WHERE time < datetime('now', '-7 days')")  # clients give up before


def main(url, queue, seen):
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.basic_qos(prefetch_count=20)
    channel.basic_consume(queue, Consumer(seen).take)
    channel.start_consuming()


if __name__ == "__main__":
    main(*sys.argv[1:])
