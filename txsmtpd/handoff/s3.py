"""S3 and compatible object stores. Messages are uploaded in parts while they arrive.

boto3 runs in threads. It finds credentials, region and endpoint itself: in the environment (such as
``AWS_ENDPOINT_URL``), in its files, or from the instance.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.handoff.interfaces import IMessageStore, IUpload

PART = 5 * 2**20  # bytes; the minimum of S3, except for the last part
CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 20  # seconds
ATTEMPTS = 2  # per request


@implementer(IMessageStore)
class S3Store:
    """Stores messages as objects, named by day and id. Needs the extra ``s3``.

    :param bucket: the bucket, which must exist.
    :param prefix: what the names begin with.
    :param client: a boto3 client. Default: one is created with the first message.
    """

    part = PART

    def __init__(self, bucket: str, prefix: str = "", *, client: Any = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client
        self._making = threading.Lock()

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def open(self, name: str, when: datetime) -> S3Upload:
        return S3Upload(self, f"{self.prefix}{when:%Y/%m/%d}/{name}")

    def client(self) -> Any:
        """Return the client. Called in threads."""
        with self._making:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    config=Config(
                        connect_timeout=CONNECT_TIMEOUT,
                        read_timeout=READ_TIMEOUT,
                        retries={"total_max_attempts": ATTEMPTS},
                    ),
                )
            return self._client


@implementer(IUpload)
class S3Upload:
    """The upload of one object: a single request for one part, otherwise a multipart upload."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store = store
        self._where = {"Bucket": store.bucket, "Key": key}
        self._upload: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._stored = False

    def write(self, octets: bytes) -> Deferred[None]:
        return call_in_pool(self._write, octets)

    def finish(self, octets: bytes) -> Deferred[str]:
        return call_in_pool(self._finish, octets)

    def abort(self) -> Deferred[None]:
        return call_in_pool(self._abort)

    # In a thread

    def _write(self, octets: bytes) -> None:
        client = self._store.client()
        if self._upload is None:
            made = client.create_multipart_upload(**self._where, ContentType="message/rfc822")
            self._upload = made["UploadId"]
        number = len(self._parts) + 1
        part = client.upload_part(**self._where, UploadId=self._upload, PartNumber=number, Body=octets)
        self._parts.append({"PartNumber": number, "ETag": part["ETag"]})

    def _finish(self, octets: bytes) -> str:
        client = self._store.client()
        self._stored = True  # it may be stored from now on
        if self._upload is None:
            client.put_object(**self._where, Body=octets, ContentType="message/rfc822")
        else:
            if octets:
                self._write(octets)
            client.complete_multipart_upload(
                **self._where, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
            )
            self._upload = None
        return f"s3://{self._where['Bucket']}/{self._where['Key']}"

    def _abort(self) -> None:
        # If it cannot be deleted now, the bucket's lifecycle rules delete it later.
        with suppress(Exception):
            if self._upload is not None:
                self._store.client().abort_multipart_upload(**self._where, UploadId=self._upload)
        with suppress(Exception):
            if self._stored:
                self._store.client().delete_object(**self._where)
