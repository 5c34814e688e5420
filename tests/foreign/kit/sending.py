"""A client that blocks."""

import smtplib


def send(catcher, to="b@example.com"):
    with smtplib.SMTP(*catcher.address, timeout=60) as client:
        client.sendmail("a@example.com", [to], "Subject: hello\r\n\r\nHello!\r\n")
