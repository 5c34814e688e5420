"""The web inbox: a store for received mail, search, an HTTP API, and web pages.

This package does not depend on the command line, and only ``service`` and ``testing`` depend on this package. The web
part (:mod:`txsmtpd.inbox.web`) is imported only when it is used, because it needs Jinja2 and wsproto (the extra
``inbox``).
"""

from __future__ import annotations
