"""Receive mail from the web hook of txsmtpd, and check the signature (Standard Webhooks).

WEBHOOK_SECRET=whsec_... python webhook_receiver.py 8000
txsmtpd --handler=webhook:http://127.0.0.1:8000/:secret-file=secret
"""

import base64
import hashlib
import hmac
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
TOLERANCE = 300  # seconds; an older request may be a replay attack


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.is_signed(body):
            return self.answer(401)
        sender = unquote(self.headers["Mail-From"])
        for recipient in map(unquote, self.headers.get_all("Mail-Rcpt")):
            if recipient.startswith("nobody@"):
                return self.answer(422, "550 5.1.1 No such user")
            print(f"{self.headers['Mail-Fingerprint'][:8]} {sender} {recipient} {len(body)} octets", flush=True)
        self.answer(204)

    def is_signed(self, body):
        identifier, seconds = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        if not identifier or abs(time.time() - int(seconds)) > TOLERANCE:
            return False
        signed = f"{identifier}.{seconds}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        signatures = self.headers["webhook-signature"].split(" ")
        return any(hmac.compare_digest(expected, each) for each in signatures)

    def answer(self, status, reply=None):
        self.send_response(status)
        if reply:
            self.send_header("Smtp-Reply", reply)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
