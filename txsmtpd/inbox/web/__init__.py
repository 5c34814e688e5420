"""The web part of the inbox: a ``twisted.web`` site for a store.

* :mod:`.gate` checks hosts and origins, :mod:`.request` limits requests, :mod:`.routes` finds the function for a
  request, and :mod:`.site` combines them.
* :mod:`.mailpit` and :mod:`.mailhog` are the APIs of those programs, :mod:`.own` is the inbox's own API, :mod:`.live`
  sends events, and :mod:`.pages` serves the web pages.
* Only :mod:`.content` serves the content of mail.

Each :class:`~txsmtpd.inbox.web.routes.Route` checks the origin of a request itself before it calls its function,
however the URL was written. The content of a mail never causes the server to send a request.
"""

from __future__ import annotations
