"""Process mail that txsmtpd has sent to Kafka. Each message is processed once, even if Kafka delivers it again.

    python kafka_consumer.py localhost:9092 mail seen.sqlite

The consumer commits the offset after a message is processed. A message that can never be processed is sent to another
topic, ``TOPIC.dead-letters``, so that it does not block the following messages.
"""

import json
import sqlite3
import sys
from email import message_from_bytes, policy

from confluent_kafka import Consumer, Producer


class Unusable(Exception):
    """The message can never be processed, so do not try again."""


def use(envelope, message):
    """Process a message. Replace this with the code of your application."""
    subject = message_from_bytes(message, policy=policy.default)["subject"]
    if subject == "unusable":
        raise Unusable(subject)
    print(f"{envelope['mail_from']} {','.join(envelope['rcpt_tos'])} {subject}", flush=True)


def main(brokers, topic, seen):
    # All consumers of a group must use the same database.
    database = sqlite3.connect(seen, isolation_level=None)
    database.execute("CREATE TABLE IF NOT EXISTS seen (fingerprint TEXT PRIMARY KEY)")
    common = {"bootstrap.servers": brokers}
    dead_letters = Producer({**common, "acks": "all", "enable.idempotence": True})
    consumer = Consumer({**common, "group.id": "mail", "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            print(message.error(), file=sys.stderr)
            continue
        headers = dict(message.headers())
        try:
            envelope = json.loads(headers["envelope"])
            repeat = database.execute("SELECT 1 FROM seen WHERE fingerprint = ?", [envelope["fingerprint"]])
            if repeat.fetchone() is None:
                use(envelope, message.value())
                database.execute("INSERT OR IGNORE INTO seen VALUES (?)", [envelope["fingerprint"]])
        except (Unusable, KeyError, ValueError):
            dead_letters.produce(f"{topic}.dead-letters", message.value(), headers=message.headers())
            if dead_letters.flush(30):
                raise SystemExit("cannot send to the topic for dead letters") from None
        # Any other exception ends the process. After a restart, Kafka delivers the message again.
        consumer.commit(message, asynchronous=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
