"""The web inbox: a store for the mail that was received, a search over it, an HTTP API, and pages for a browser.

Nothing here knows how a command line looks, and nothing outside this folder, ``service`` and ``testing`` knows that
there is an inbox. The web part (:mod:`txsmtpd.inbox.web`) is imported when it is used: Jinja2 and wsproto, which it
needs, are the extra ``inbox``.
"""

from __future__ import annotations
