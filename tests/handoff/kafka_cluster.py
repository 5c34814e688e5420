"""A Kafka cluster for the tests: librdkafka's mock cluster, in this process, with faults."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

from tests.support.programs import not_here

PRODUCE = 0  # an API key of Kafka's protocol


def _library() -> Any:
    """The librdkafka of confluent-kafka."""
    found = importlib.util.find_spec("confluent_kafka")
    assert found is not None and found.origin is not None
    libraries = list(Path(found.origin).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*"))
    if not libraries:
        raise not_here("confluent-kafka has no librdkafka of its own here, whose mock cluster the tests need")
    library = ctypes.CDLL(str(libraries[0]))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", ctypes.c_int, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [ctypes.c_int, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, ctypes.c_int]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_topic_create", ctypes.c_int, [pointer, text, ctypes.c_int, ctypes.c_int]),
        ("rd_kafka_mock_topic_set_error", None, [pointer, text, ctypes.c_int]),
        ("rd_kafka_mock_partition_set_leader", ctypes.c_int, [pointer, text, ctypes.c_int32, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", ctypes.c_int, [pointer, ctypes.c_int32, ctypes.c_int]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.rd_kafka_mock_push_request_errors_array.restype = None
    return library


class Cluster:
    """Three brokers with a topic of one partition."""

    BROKERS = (1, 2, 3)

    def __init__(self, topic: str) -> None:
        self._library = _library()
        error = ctypes.create_string_buffer(512)
        config = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(config, b"log_level", b"0", error, 512)
        self._client = self._library.rd_kafka_new(0, config, error, 512)
        assert self._client, error.value
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, len(self.BROKERS))
        self.brokers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._topic = topic.encode()
        self._library.rd_kafka_mock_topic_create(self._cluster, self._topic, 1, len(self.BROKERS))

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    def lead(self, broker: int) -> None:
        """Another broker becomes the leader of the partition."""
        self._library.rd_kafka_mock_partition_set_leader(self._cluster, self._topic, 0, broker)

    def down(self) -> None:
        """No broker responds, and connections are lost."""
        for broker in self.BROKERS:
            self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self) -> None:
        for broker in self.BROKERS:
            self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def delay(self, milliseconds: int) -> None:
        """All brokers respond late."""
        for broker in self.BROKERS:
            self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, milliseconds)

    def fail_produce(self, *errors: int) -> None:
        """The next requests to produce get these errors."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            ctypes.c_void_p(self._cluster), ctypes.c_int16(PRODUCE), ctypes.c_size_t(len(errors)), codes
        )

    def fail_topic(self, error: int) -> None:
        """Requests for the topic get this error."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, self._topic, error)

    def take_all(self, count: int) -> list[Any]:
        """This number of messages from the beginning of the topic."""
        from confluent_kafka import Consumer

        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "test", "auto.offset.reset": "earliest"})
        consumer.subscribe([self._topic.decode()])
        try:
            found: list[Any] = []
            while len(found) < count:
                message = consumer.poll(20)
                if message is None:
                    break
                if message.error() is None:
                    found.append(message)
            return found
        finally:
            consumer.close()
