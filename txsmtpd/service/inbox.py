"""The service of the inbox on the command line: it opens the store and serves the site."""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from txsmtpd.service.exit_status import complain
from txsmtpd.service.listening import address_text
from txsmtpd.service.monitoring import SiteService

log = Logger(namespace="txsmtpd.inbox")


class InboxService(SiteService):
    """Serves the site of the inbox, and opens and closes its store. Start it before the listeners of SMTP.

    :param label: the name of the endpoint in messages, such as ``--web=tcp:8080``.
    :param endpoint: where to serve the site.
    :param store: where the handler stores the mail.
    :param settings: of the site.
    :param smtp_addresses: returns the addresses of the SMTP listeners, which are printed on a terminal.
    """

    def __init__(
        self,
        label: str,
        endpoint: IStreamServerEndpoint,
        store: Any,
        settings: Any,
        smtp_addresses: Callable[[], list[str]] = list,
    ) -> None:
        from txsmtpd.inbox.web.site import make_site

        super().__init__(label, endpoint, make_site(store, settings))
        self.store = store
        self.settings = settings
        self._smtp_addresses = smtp_addresses

    def startService(self) -> None:
        opened = Deferred.fromCoroutine(self.store.open())
        opened.addErrback(lambda failure: log.failure("the inbox cannot be opened", failure))
        super().startService()
        from twisted.internet import reactor

        reactor.callWhenRunning(self._show)

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop(super().stopService()))

    async def _stop(self, stopped: Deferred[Any]) -> None:
        await stopped
        for client in list(self.settings.live):
            client.end()
        await self.store.close()

    def bound(self, port: IListeningPort) -> None:
        address = port.getHost()
        log.info("inbox on {url}", url=self.url)
        host = getattr(address, "host", None)
        if host is not None and not ip_address(host).is_loopback and self.settings.portal is None:
            complain(
                f"{self.label}: anyone who can connect to {address_text(address)} can read the mail; use --web-auth"
            )

    @property
    def url(self) -> str:
        """The address of the site for a browser; empty before it listens."""
        if self.port is None:
            return ""
        address: Any = self.port.getHost()
        host = getattr(address, "host", None)
        everywhere = host is not None and ip_address(host).is_unspecified  # not an address that browsers open
        return f"http://{f'localhost:{address.port}' if everywhere else address_text(address)}{self.settings.path}/"

    def _show(self) -> None:
        self.settings.smtp = next(iter(self._smtp_addresses()), "")
        if self.running and sys.stderr is not None and sys.__stderr__ is not None and sys.__stderr__.isatty():
            print(f"SMTP    {', '.join(self._smtp_addresses())}", file=sys.__stderr__)
            print(f"Inbox   {self.url}", file=sys.__stderr__, flush=True)
