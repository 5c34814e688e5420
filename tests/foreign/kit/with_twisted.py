"""The fixtures together with pytest-twisted, whose reactor runs all the time."""

import pytest_twisted
from sending import send
from twisted.internet import threads


@pytest_twisted.inlineCallbacks
def test_catcher(mail_catcher):
    """Mail is awaited in the reactor's thread, while code that blocks sends it from this or another thread."""
    yield threads.deferToThread(send, mail_catcher)
    assert (yield mail_catcher.next()).subject == "hello"
    waiting = mail_catcher.next()
    send(mail_catcher)
    assert (yield waiting).subject == "hello"


@pytest_twisted.ensureDeferred
async def test_inbox(mail_server, mail_inbox):
    """The same is true for the inbox of one test on a shared server."""
    send(mail_server, mail_inbox.address("b"))
    assert (await mail_inbox.next()).subject == "hello"
