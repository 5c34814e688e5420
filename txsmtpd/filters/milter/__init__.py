"""Milters, such as OpenDKIM, OpenDMARC and clamav-milter, as filters: the server's side of the milter protocol."""

from txsmtpd.filters.milter.filter import Milter

__all__ = ["Milter"]
