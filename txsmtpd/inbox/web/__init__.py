"""The web part of the inbox: a site of ``twisted.web`` over a store.

* :mod:`.gate` decides who may ask, :mod:`.request` bounds what is asked, :mod:`.routes` finds who answers,
  :mod:`.site` puts them together;
* :mod:`.mailpit` and :mod:`.mailhog` are the APIs of those programs, :mod:`.own` is the inbox's own, :mod:`.live` tells
  of events, and :mod:`.pages` are for people;
* :mod:`.content` alone serves what came in mail.

Whatever acts is guarded where it acts: a :class:`~txsmtpd.inbox.web.routes.Route` checks the origin of a request before
it calls its function, however its address was written. No request is ever sent because of a mail.
"""

from __future__ import annotations
