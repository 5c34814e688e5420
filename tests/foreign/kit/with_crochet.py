"""The fixtures together with crochet, which runs the reactor in a thread."""

import crochet
from sending import send

crochet.setup()


@crochet.wait_for(10)
def later():
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    return deferLater(reactor, 0, lambda: "later")


def test_catcher(mail_catcher):
    """Both serve at the same time."""
    assert later() == "later"
    send(mail_catcher)
    assert mail_catcher.wait().subject == "hello"
    assert later() == "later"
