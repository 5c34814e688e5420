"""All routes of the inbox, in the order in which they are matched."""

from __future__ import annotations

from txsmtpd.inbox.web import faults, live, mailhog, mailpit, own, pages

ROUTES = [*mailpit.ROUTES, *live.ROUTES, *own.ROUTES, *faults.ROUTES, *mailhog.ROUTES, *pages.ROUTES]
