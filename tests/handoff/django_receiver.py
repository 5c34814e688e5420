"""A Django application that receives mail with anymail, as in its documentation. The tests run it as a process."""

import json
import sys
import wsgiref.simple_server

import django
from django.conf import settings

folder, key = sys.argv[1:]

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="only for a test",
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["anymail"],
    ANYMAIL={"MAILGUN_WEBHOOK_SIGNING_KEY": key, "WEBHOOK_SECRET": "user:password"},
    DATA_UPLOAD_MAX_MEMORY_SIZE=2**26,
    USE_TZ=True,
)
django.setup()

from anymail.signals import inbound  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import include, path  # noqa: E402

urlpatterns = [path("anymail/", include("anymail.urls"))]


def received(sender, event, esp_name, **kwargs):
    """Record what the application gets of a message."""
    mail = event.message
    seen = {
        "service": esp_name,
        "envelope_sender": mail.envelope_sender,
        "envelope_recipient": mail.envelope_recipient,
        "subject": mail.subject,
        "text": mail.text,
        "attachments": [[each.get_filename(), each.get_content_bytes().hex()] for each in mail.attachments],
    }
    with open(f"{folder}/{esp_name}.json", "w") as file:
        json.dump(seen, file)


inbound.connect(received)


class Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


server = wsgiref.simple_server.make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Handler)
print(server.server_port, flush=True)
server.serve_forever()
