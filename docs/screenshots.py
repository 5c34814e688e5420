"""Make the pictures of the inbox that README and the documentation show: ``python docs/screenshots.py``.

The server is started as users start it, mail is sent to it, and Chromium takes the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.inbox.browser import Elsewhere, Server, chromium, context, letter

PICTURES = Path(__file__).parent / "_static"

WELCOME = """
<div style="font-family: system-ui, sans-serif; max-width: 560px; margin: 0 auto; padding: 40px 24px; color: #1d2b28">
  <div style="font-size: 15px; font-weight: 700; color: #7048b8; margin-bottom: 28px">&#9670; Orbital</div>
  <h1 style="font-size: 26px; margin: 0 0 12px">Welcome aboard, Bob</h1>
  <p style="line-height: 1.6; margin: 0 0 20px">One more step: confirm your address, and your account is ready.
  The link is valid for ten minutes.</p>
  <p style="margin: 0 0 28px"><a href="https://orbital.example/confirm?token=6f1d"
    style="background: #7048b8; color: #fff; padding: 12px 22px; border-radius: 8px; text-decoration: none;
    font-weight: 600">Confirm my address</a></p>
  <p style="line-height: 1.6; margin: 0">Or enter this code:
  <b style="font-size: 20px; letter-spacing: 3px">482 913</b></p>
</div>
"""

LETTERS = (
    ("Grace <grace@navy.example>", "Re: the relay in panel F", "The moth is taped into the log book, see the picture."),
    ("Nightly <ci@build.example>", "Build 4711 is green", "All 7,096 tests have passed in eight minutes."),
    ("Shop <orders@shop.example>", "Your order has been shipped", "Two parcels are on their way to you."),
    ("Ada <ada@analytical.example>", "Notes on the engine", "Note G has the table that you asked for."),
    ("Support <help@shop.example>", "We have got your question", "Somebody will answer within a day."),
    ("Billing <billing@orbital.example>", "Invoice for November", "The amount of 49.00 EUR is due in fourteen days."),
)


def main() -> None:
    """Take the pictures."""
    elsewhere, server = Elsewhere(), Server()
    try:
        for sender, subject, text in LETTERS:
            message = letter(subject, text=text, From=sender)
            if "Invoice" in subject:
                message.add_attachment(b"%PDF" * 12000, maintype="application", subtype="pdf", filename="2026-11.pdf")
            server.send(message)
        text = "Welcome aboard, Bob. Confirm your address with this code: 482913"
        server.send(letter("Confirm your address", WELCOME, text, From="Orbital <hello@orbital.example>"))
        with chromium(elsewhere) as browser:
            for theme, tab in ("light", "html"), ("dark", "session"):
                window = context(
                    browser, color_scheme=theme, device_scale_factor=2, viewport={"width": 1200, "height": 720}
                )
                page = window.new_page()
                page.goto(f"{server.url}/")
                page.locator(".row a").first.click()
                page.locator(f"#tab-{tab}").click()
                page.wait_for_timeout(500)
                page.mouse.move(900, 700)
                page.screenshot(path=PICTURES / f"inbox-{theme}.png")
                window.close()
    finally:
        server.stop()
        elsewhere.close()


if __name__ == "__main__":
    main()
