"""``--handler=amqp:...`` and similar values: URLs with colons, options, and errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.handoff import AMQPHandoff, KafkaHandoff, WebhookHandoff, arguments
from txsmtpd.handoff.amqp_url import Address
from txsmtpd.service.handlers import make_handler

OPTIONS = {"queue": arguments.text, "max_size": arguments.size, "declare": arguments.yes_or_no, "store": arguments.text}


class Parser:
    """Raises its error messages."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


class ParseTests(SynchronousTestCase):
    """Words between colons."""

    def parse(self, spec: str) -> tuple[str, dict[str, Any]]:
        return arguments.parse_arguments(Parser(), spec.split(":"), OPTIONS)

    def test_url(self) -> None:
        """The colons of URLs need no backslash. A hyphen stands for an underscore."""
        self.assertEqual(
            self.parse("amqp://u:p@mq.test:5672/vhost:queue=mail:max-size=16m:store=s3://bucket/a:declare=yes"),
            (
                "amqp://u:p@mq.test:5672/vhost",
                {"queue": "mail", "max_size": 2**24, "store": "s3://bucket/a", "declare": True},
            ),
        )
        self.assertEqual(self.parse("queue=mail"), ("", {"queue": "mail"}))

    def test_mistakes(self) -> None:
        """Each error names the option, and says what to do."""
        for spec, expected in (
            ("amqp://x:quue=mail", "there is no option 'quue'; did you mean queue?"),
            ("zzz=1", "there are declare, max-size, queue, store"),
            ("queue=a:queue=b", "queue is given twice"),
            ("amqp://user:canary=1@mq.test:queue=a", "in the credentials of a URL, write = as %3D"),
            ("max-size=lots", "max-size=lots: must be a number of octets, such as 64k or 16m"),
            ("declare=maybe", "declare=maybe: must be yes or no"),
            ("queue=", "queue=: a value is needed"),
        ):
            error = self.assertRaises(UsageError, self.parse, spec)
            self.assertIn(expected, str(error))
            self.assertNotIn("canary", str(error))

    def test_values(self) -> None:
        """Sizes, numbers and times."""
        self.assertEqual([arguments.size(each) for each in ("7", "2k", "3MiB", "1g")], [7, 2048, 3 * 2**20, 2**30])
        self.assertEqual((arguments.number("12"), arguments.seconds("0.5")), (12, 0.5))
        for read, value in (arguments.number, "0"), (arguments.seconds, "-1"), (arguments.seconds, "nan"):
            self.assertRaises(ValueError, read, value)


class AddressTests(SynchronousTestCase):
    """The URL of a broker."""

    def test_parts(self) -> None:
        """The defaults are those of RabbitMQ."""
        address = Address.parse("amqp://localhost")
        self.assertEqual((address.port, address.virtual_host, address.user), (5672, "/", "guest"))
        address = Address.parse("amqps://m%40il:p%2F%3A@[::1]/a%2Fb")
        self.assertEqual((address.host, address.port, address.virtual_host), ("::1", 5671, "a/b"))
        self.assertEqual((address.user, address.password, address.tls), ("m@il", "p/:", True))
        self.assertEqual(str(address), "[::1]:5671")

    def test_secret(self) -> None:
        """The password is in no repr and in no error message."""
        self.assertNotIn("canary", repr(Address.parse("amqp://a:canary@mq.test")))
        for url in ("http://a:canary@mq.test", "amqp://a:canary@mq.test:x", "amqp://a:canary@h/v?x=1", "amqp:///a/b"):
            error = self.assertRaises(ValueError, Address.parse, url)
            self.assertNotIn("canary", str(error))


class CommandLineTests(SynchronousTestCase):
    """Handlers as ``--handler`` creates them."""

    def setUp(self) -> None:
        self.patch(os, "environ", {name: value for name, value in os.environ.items() if "TXSMTPD" not in name})

    def test_amqp(self) -> None:
        """The URL comes from the arguments, a file or the environment."""
        path = Path(self.mktemp())
        path.write_text("amqp://file.test\n")
        os.environ["TXSMTPD_AMQP_URL"] = "amqp://environment.test"
        for spec, host in (
            ("amqp:amqp://here.test:5673/v:queue=mail", "here.test"),
            (f"amqp:queue=mail:url-file={path}", "file.test"),
            ("amqp:exchange=mails:routing_key=mail:max-size=1m:in-flight=7", "environment.test"),
        ):
            handler = make_handler(spec)
            assert isinstance(handler, AMQPHandoff)
            self.assertEqual(handler.target.address.host, host)

    def test_kafka(self) -> None:
        """Several brokers with their ports, and a file of properties."""
        path = Path(self.mktemp())
        path.write_text("# credentials\nsasl.username = mail\n\nsasl.password=a=b\n")
        handler = make_handler(f"kafka:b1.test:9092,b2.test:9092:topic=mail:key=none:config={path}")
        assert isinstance(handler, KafkaHandoff)
        config = handler.target._config
        self.assertEqual(config["bootstrap.servers"], "b1.test:9092,b2.test:9092")
        self.assertEqual((config["sasl.username"], config["sasl.password"]), ("mail", "a=b"))

    def test_webhook(self) -> None:
        """A URL with a port and a query, secrets from a file, and a second URL."""
        path = Path(self.mktemp())
        path.write_text("# the old one\nwhsec_b2xk\nwhsec_bmV3\n")
        handler = make_handler(
            f"webhook:https://app.test:8443/mail?x=1:rcpt=http://[::1]:8000/rcpt:secret-file={path}:timeout=5:format=json"
        )
        assert isinstance(handler, WebhookHandoff)
        target = handler.target
        self.assertEqual((str(target.url), str(target.rcpt)), ("https://app.test:8443/mail", "http://[::1]:8000/rcpt"))
        self.assertEqual((target.timeout, target.format, repr(target.secrets)), (5, "json", "<2 secrets>"))

    def test_mistakes(self) -> None:
        """Each error is one line that says what to do."""
        wrong = Path(self.mktemp())
        wrong.write_text("sasl.pasword=canary\n")
        empty = Path(self.mktemp())
        empty.write_text("# the secrets are still to come\n")
        for spec, expected in (
            ("kafka:topic=mail", "HOST:PORT,... here, or in the environment as TXSMTPD_KAFKA_BROKERS"),
            ("kafka:b.test:9092", "topic=NAME is required"),
            ("kafka:b.test:9092:topic=a/b", "a topic consists of"),
            ("kafka:b.test:9092:topic=..", "a topic consists of"),
            (f"kafka:b.test:9092:topic=mail:config={wrong}", 'No such configuration property: "sasl.pasword"'),
            ("kafka:b.test:9092:topic=mail:key=all", "key must be domain or none, not 'all'"),
            ("kafka:b.test:9092:topic=mail:config=/nowhere", "config=/nowhere: cannot be read"),
            ("webhook:app.test/mail", "not a URL such as https://"),
            ("webhook:http://app.test:format=xml", "format must be one of raw, json, sendgrid, mailgun, not 'xml'"),
            ("webhook:http://app.test:timeout=never", "timeout=never: must be a number of seconds above 0"),
            ("webhook:http://app.test:secret-file=/nowhere", "secret-file=/nowhere: cannot be read"),
            (f"webhook:http://app.test:secret-file={empty}", "contains no secret"),
            ("amqp", "a URL is needed: here, in the environment as TXSMTPD_AMQP_URL, or by url-file=PATH"),
            ("amqp:amqp://mq.test", "queue=NAME or exchange=NAME is required"),
            ("amqp:mq.test:queue=mail", "not the URL of a broker, such as amqp://"),
            ("amqp:amqp://mq.test:queue=a:exchange=b", "either a queue or an exchange"),
            ("amqp:amqp://mq.test:queue=a:routing-key=b", "a routing key requires an exchange"),
            ("amqp:amqp://mq.test:queue=a:memory=1m", "twice as many are needed"),
            ("amqp:queue=a:url-file=/nowhere", "url-file=/nowhere: cannot be read: No such file"),
            ("amqp:amqp://mq.test:queue=a:ca=/nowhere", "No such file"),
            ("amqp:amqp://mq.test:queue=a:key=/nowhere", "requires certificate=PATH"),
        ):
            error = self.assertRaises(UsageError, make_handler, spec)
            self.assertIn(expected, str(error), spec)

    def test_extra(self) -> None:
        """The error for a missing library names the extra that contains it."""
        error = self.assertRaises(UsageError, arguments.need, Parser(), "no_such_library.part", "amqp")
        self.assertEqual(str(error), "no_such_library is not installed; pip install 'txsmtpd[amqp]'")
