"""All routes of the inbox, in the order in which they are tried."""

from __future__ import annotations

from txsmtpd.inbox.web import mailpit

ROUTES = [*mailpit.ROUTES]
