"""The checks of the HTML of a mail before it is sent to a browser."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.inbox.web import content, html_check
from txsmtpd.inbox.web.content import wants_remote
from txsmtpd.mime import markup

LONG = 2**19  # characters; an expression with quadratic time would take an hour

# Beginnings of what the patterns match, which are repeated or never completed.
BEGINNINGS = ("src=", "src", "url(", "@import '", "<a href=", "<a ", "<iframe", "cid:", "http://", "a:", "a='", "color")
REPEATED = ("<a", " href", "<", "a", "a-", "1 ", "111 ", " \n", "\n", "cid:", "http://", "a =", "a:", "src= '", "A1B2")


class RemoteTests(SynchronousTestCase):
    """Whether a mail loads something from other hosts."""

    def test_remote(self) -> None:
        """Images, backgrounds, media, style sheets and fonts of other hosts are found, however they are written."""
        for html in (
            "<img src='https://a.example/x.png'>",
            "<IMG SRC = HTTP://a.example/x.png>",
            "<img src=//a.example/x.png>",
            "<table background='http://a.example/b.png'>",
            '<video poster="https://a.example/p.png">',
            "<p style='background: url( https://a.example/b.png )'>",
            "<style>@import 'https://a.example/s.css'; </style>",
            '<style>@font-face { src: url("//a.example/f.woff2") }</style>',
        ):
            self.assertTrue(wants_remote(html), html)

    def test_own(self) -> None:
        """Links and the mail's own parts do not count."""
        for html in (
            "<a href='https://a.example/'>https://a.example/</a>",
            "<img src='cid:logo'>",
            "<img src='data:image/png;base64,AAAA'>",
            "<p>The source is https://a.example/</p>",
            "",
        ):
            self.assertFalse(wants_remote(html), html)


class TimeTests(SynchronousTestCase):
    """The time for HTML is proportional to its length, whatever it contains."""

    def test_patterns(self) -> None:
        """Each pattern finishes on a long text that it almost matches everywhere."""
        patterns = [
            each
            for module in (content, markup, html_check)
            for each in vars(module).values()
            if isinstance(each, re.Pattern)
        ]
        self.assertGreater(len(patterns), 8)
        for pattern in patterns:
            for text in [begins + " " * LONG for begins in BEGINNINGS] + [
                each * (LONG // 8 // len(each)) for each in REPEATED
            ]:
                for _ in pattern.finditer(text):
                    pass
