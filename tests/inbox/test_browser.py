"""The inbox in a real browser: actions of users, and hostile mail."""

from __future__ import annotations

import atexit
import re
import smtplib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache, partial, wraps
from queue import SimpleQueue
from threading import Thread
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page
from twisted.trial.unittest import SynchronousTestCase

from tests.inbox import hostile
from tests.inbox.browser import Elsewhere, Server, chromium, context, letter


class Stage:
    """The server, the browser, and the remote hosts. The first test that needs them starts them, once in a process.

    Playwright leaves an asyncio loop running in its thread, so it has a separate thread. A thread of a pool would not
    do, because pools end before the functions that are called at the end of the process. The end of the reactor is not
    the end of the process: in ``trial -j``, each test triggers it.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        self._stack = ExitStack()
        Thread(target=self._run, daemon=True).start()
        atexit.register(self.run, self._stack.close)
        self.run(self._start)

    def run(self, function: Callable[[], None]) -> None:
        """Call a function in the thread, and wait until it has returned."""
        done: Future[None] = Future()
        self._work.put((done, function))
        done.result()

    def _run(self) -> None:
        while True:
            done, function = self._work.get()
            try:
                function()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _start(self) -> None:
        self.elsewhere = Elsewhere()
        self._stack.callback(self.elsewhere.close)
        self.browser = self._stack.enter_context(chromium(self.elsewhere))
        self.server = Server()
        self._stack.callback(self.server.stop)


stage = cache(Stage)


def in_browser(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """Run a test method in the browser's thread, and close the windows that it opens."""

    @wraps(method)
    def run(case: BrowserCase) -> None:
        case.stage = stage()
        case.server, case.browser, case.elsewhere = case.stage.server, case.stage.browser, case.stage.elsewhere
        case.stage.run(partial(_closing, case, method))

    return run


def _closing(case: BrowserCase, method: Callable[[Any], None]) -> None:
    case.windows = []
    case.before = len(case.elsewhere.connections)
    try:
        method(case)
    finally:
        for window in case.windows:
            window.close()


class BrowserCase(SynchronousTestCase):
    """A server and a browser."""

    stage: Stage
    server: Server
    elsewhere: Elsewhere
    browser: Browser
    windows: list[BrowserContext]
    before: int

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, method in list(vars(cls).items()):
            if name.startswith("test_") or name == "setUp":
                setattr(cls, name, in_browser(method))

    def window(self, **options: Any) -> BrowserContext:
        """A window with a new profile."""
        self.windows.append(context(self.browser, **options))
        return self.windows[-1]

    def open(self, path: str = "/", **options: Any) -> Page:
        """Open a page in its own window. Errors in the page fail the test."""
        page: Page = self.window(**options).new_page()
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{self.server.url}{path}")
        return page

    def assertFits(self, locator: Locator) -> None:
        """Fail unless all of an element is inside the window, but for fractions of a pixel."""
        box = locator.bounding_box()
        size = locator.page.viewport_size
        assert box is not None and size is not None
        self.assertGreaterEqual((box["x"], box["y"]), (0, 0))
        self.assertLessEqual(int(box["x"] + box["width"]), size["width"])
        self.assertLessEqual(int(box["y"] + box["height"]), size["height"])

    def empty(self) -> None:
        """Delete all mail."""
        page = self.open("/delete")
        page.get_by_role("button", name="Delete").click()
        page.get_by_text("No mail yet").wait_for()
        page.request.delete(f"{self.server.url}/api/inbox/v1/faults")


class PageTests(BrowserCase):
    """Actions of users."""

    def setUp(self) -> None:
        self.empty()

    def test_firstMinute(self) -> None:
        """An empty inbox shows where to send mail. A message that arrives appears without a reload."""
        page = self.open()
        self.assertIn(f"127.0.0.1:{self.server.port}", page.locator(".empty").inner_text())
        self.assertFits(page.locator(".empty"))
        self.server.send(letter("The first"))
        page.locator(".row", has_text="The first").wait_for()
        self.assertEqual(page.locator("#unread").inner_text().split()[0], "1")
        self.assertEqual(self.errors, [])

    def test_open(self) -> None:
        """A click opens a message and marks it as read. Its address can be shared."""
        self.server.send(letter("Invoice", "<p>Dear <b>Bob</b></p>"))
        page = self.open()
        page.get_by_text("Invoice").click()
        page.frame_locator("iframe.mail").get_by_text("Dear Bob").wait_for()
        self.assertRegex(page.url, r"/m/\w{22}$")
        page.locator(".row:not(.unread)").wait_for()
        self.assertTrue(page.locator("#unread").is_hidden())
        page.reload()
        self.assertEqual(page.locator("h1").inner_text(), "Invoice")
        self.assertEqual(self.errors, [])

    def test_views(self) -> None:
        """Each view of a message shows its part of it, and links in its text can be followed."""
        html = "<p style='display: flex'>As HTML</p>"
        message = letter("Views", html, "As text, see https://example.org/?a&b.", X_Test="a value")
        message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="report.pdf")
        self.server.send(message, "bob@example.com", "hidden@example.com")
        page = self.open()
        page.locator(".row a").click()
        for name, shown in {
            "HTML source": "<p style='display: flex'>As HTML</p>",
            "Text": "As text",
            "Raw": "Subject: Views",
            "Headers": "a value",
            "Envelope": "hidden@example.com",
            "Session": "RCPT TO:<hidden@example.com>",
            "Parts": "application/pdf",
            "HTML check": "display:flex",
        }.items():
            page.get_by_role("navigation", name="Views").get_by_role("link", name=name, exact=True).click()
            page.locator("#view").get_by_text(shown).first.wait_for()
        page.get_by_role("link", name="Text", exact=True).click()
        link = page.locator("pre.text a")
        self.assertEqual(link.inner_text(), "https://example.org/?a&b")
        self.assertEqual(link.get_attribute("href"), "https://example.org/?a&b")
        with page.expect_download() as download:
            page.get_by_role("link", name="report.pdf").first.click()
        self.assertEqual(download.value.suggested_filename, "report.pdf")
        self.assertEqual(self.errors, [])

    def test_search(self) -> None:
        """A search shows the matches. Its address can be shared."""
        for subject in ("Invoice 1", "Invoice 2", "Welcome"):
            self.server.send(letter(subject))
        page = self.open()
        page.keyboard.press("/")
        page.keyboard.type("subject:invoice")
        page.keyboard.press("Enter")
        page.get_by_text("2 found").wait_for()
        self.assertEqual(page.locator(".row").count(), 2)
        page.reload()
        self.assertEqual(page.locator(".row").count(), 2)
        page.get_by_label("Search mail").fill("larger:big")
        page.get_by_label("Search mail").press("Enter")
        page.get_by_text("How to search").click()
        page.get_by_text("larger:1m").wait_for()

    def test_keyboard(self) -> None:
        """Single keys mark mail as read and delete it. They can be switched off."""
        for number in range(3):
            self.server.send(letter(f"Letter {number}"))
        page = self.open()
        page.keyboard.press("j")
        page.get_by_role("heading", name="Letter 2").wait_for()
        page.keyboard.press("j")
        page.get_by_role("heading", name="Letter 1").wait_for()
        page.keyboard.press("k")
        page.get_by_role("heading", name="Letter 2").wait_for()
        page.get_by_role("button", name="Next message").press("Enter")
        page.get_by_role("heading", name="Letter 1").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Letter 0").wait_for()
        self.assertTrue(page.get_by_role("button", name="Next message").is_disabled())
        page.keyboard.press("d")
        page.get_by_text("2 messages").wait_for()
        page.keyboard.press("?")
        page.get_by_label("Single-key shortcuts").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.get_by_text("Select a message").wait_for()
        self.assertEqual(page.locator(".message h1").count(), 0)

    def test_select(self) -> None:
        """Selected messages stay selected when mail arrives, and are deleted together."""
        for number in range(3):
            self.server.send(letter(f"Letter {number}"))
        page = self.open()
        delete = page.get_by_role("button", name="Delete the selected")
        self.assertTrue(delete.is_disabled())
        page.get_by_label("Select: Letter 0").check(force=True)
        page.get_by_label("Select: Letter 2").check(force=True)
        self.server.send(letter("Letter 3"))
        page.locator(".row", has_text="Letter 3").wait_for()
        self.assertEqual(page.locator("#selected").inner_text(), "2 selected")
        delete.click()
        page.get_by_text("2 messages").wait_for()
        self.assertEqual(page.locator(".row .subject").all_inner_texts(), ["Letter 3", "Letter 1"])

    def test_scroll(self) -> None:
        """The list stays where it was scrolled to when a message is opened, and when mail comes."""
        self.server.send_all([letter(f"Letter {number}") for number in range(30)])
        page = self.open()
        page.locator("#live:visible").wait_for()
        page.locator(".row").nth(24).scroll_into_view_if_needed()
        before = page.locator(".row").nth(24).bounding_box()
        page.locator(".row").nth(24).locator("a").click()
        page.locator(".row.current").wait_for()
        self.server.send(letter("New"))
        page.locator(".row", has_text="New").wait_for(state="attached")
        after = page.locator(".row.current").bounding_box()
        assert before is not None and after is not None
        self.assertLess(abs(after["y"] - before["y"]), 2)  # pixels
        page.reload()
        self.assertTrue(page.locator(".row.current").is_visible())
        self.assertFits(page.locator(".row.current"))

    def test_whileLoading(self) -> None:
        """A message that arrives while the list is being loaded for another one is shown, too."""
        page = self.open()
        page.locator("#live:visible").wait_for()
        page.evaluate("window.told = 0; document.body.addEventListener('htmx:sseMessage', () => { window.told += 1; })")
        held: list[Any] = []
        page.route(f"{self.server.url}/", lambda route: held.append((route, route.fetch())), times=1)
        self.server.send(letter("First"))
        page.wait_for_function("window.told == 1")
        while not held:
            page.wait_for_timeout(30)
        self.server.send(letter("Second"))
        page.wait_for_function("window.told == 2")
        route, response = held.pop()
        route.fulfill(response=response)
        page.locator(".row", has_text="Second").wait_for()

    def test_phone(self) -> None:
        """On a phone no page is wider than the screen, and the open view is among the visible tabs."""
        refused = "nobody@" + "example." * 20 + "com"
        self.server.send(
            letter("Long " * 40, f"<p>{'wide' * 100}</p>", From=f"{'Ann ' * 30}<ann@example.org>"), refused
        )
        page = self.open(viewport={"width": 360, "height": 640})
        message = page.locator(".row a").get_attribute("href")
        views = [f"{message}?tab={tab}" for tab in ("html", "text", "headers", "envelope", "session", "parts", "check")]
        for path in ("/", *views, "/sessions", "/faults", "/delete", "/?query=nothing"):
            page.goto(f"{self.server.url}{path}")
            self.assertEqual((path, page.evaluate("document.documentElement.scrollWidth")), (path, 360))
        page.goto(f"{self.server.url}{views[-1]}")
        self.assertFits(page.locator("#tab-check"))

    def test_menu(self) -> None:
        """Escape closes a menu, and leaves the focus on its button."""
        self.server.send(letter("Menu"))
        page = self.open()
        button = page.get_by_label("More actions")
        button.press("Enter")
        page.get_by_role("link", name="Delete all").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Delete all").wait_for(state="hidden")
        self.assertTrue(button.evaluate("element => element === document.activeElement"))

    def test_offline(self) -> None:
        """Without a connection for events, the page says so; what was deleted meanwhile is not found."""
        self.server.send(letter("Deleted"))
        window = self.window()
        window.route("**/api/inbox/v1/events", lambda route: route.abort())
        page = window.new_page()
        page.goto(f"{self.server.url}/")
        page.get_by_text("Offline").wait_for()
        page.request.delete(f"{self.server.url}/api/v1/messages")
        page.get_by_text("Deleted").click()
        page.get_by_role("heading", name="Message not found").wait_for()

    def test_follow(self) -> None:
        """A page that follows the newest message shows it when it arrives."""
        self.server.send(letter("Old"))
        page = self.open()
        page.keyboard.press("f")
        page.get_by_role("heading", name="Old").wait_for()
        self.server.send(letter("New"))
        page.get_by_role("heading", name="New").wait_for()

    def test_theme(self) -> None:
        """The page uses the system's theme, or the chosen one, which it remembers."""
        page = self.open(color_scheme="dark")

        def background() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        dark = background()
        page.get_by_role("button", name="Theme").click()  # light
        light = background()
        self.assertNotEqual(light, dark)
        page.reload()
        self.assertEqual(background(), light)

    def test_withoutJavaScript(self) -> None:
        """Without JavaScript, everything works with links and forms."""
        self.server.send(letter("Plain", "<p>As HTML</p>"))
        self.server.send(letter("Other"))
        page = self.open(java_script_enabled=False)
        page.get_by_text("Plain").click()
        page.frame_locator("iframe.mail").get_by_text("As HTML").wait_for()
        page.get_by_role("link", name="Session", exact=True).click()
        page.get_by_text("MAIL FROM").wait_for()
        page.get_by_role("link", name="Phone, 375 pixels").wait_for(state="detached")
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_text("1 message", exact=True).wait_for()
        page.get_by_label("Search mail").fill("Nobody")
        page.get_by_label("Search mail").press("Enter")
        page.get_by_text("Nothing found").wait_for()

    def test_widths(self) -> None:
        """The HTML can be shown with the width of a phone, and in the mail's own dark mode."""
        dark = "<style>@media (prefers-color-scheme: dark) { p { color: rgb(1, 2, 3) } }</style><p>Shown</p>"
        self.server.send(letter("Wide", dark))
        page = self.open(color_scheme="null")  # Playwright must not set a color scheme
        page.locator(".row a").click()
        page.get_by_role("link", name="Phone, 375 pixels").click()
        frame = page.locator("iframe.mail")
        box = frame.bounding_box()
        assert box is not None
        self.assertEqual(box["width"], 375)
        page.get_by_role("button", name="dark mode").click()
        shown = page.frame_locator("iframe.mail").get_by_text("Shown")
        self.assertEqual(shown.evaluate("element => getComputedStyle(element).color"), "rgb(1, 2, 3)")
        page.set_viewport_size({"width": 960, "height": 700})
        self.assertFits(page.locator("#tab-check"))
        self.assertFits(page.locator("#mail-dark"))

    def test_remoteContent(self) -> None:
        """Remote images are blocked until the user allows them for that message."""
        self.server.send(letter("Remote", "<img src='https://cdn.example/x.png'><p>Shown</p>"))
        page = self.open()
        page.locator(".row a").click()
        page.frame_locator("iframe.mail").get_by_text("Shown").wait_for()
        self.assertEqual(self.elsewhere.connections[self.before :], [])
        with page.expect_request(lambda request: request.url.startswith("https://cdn.example")):
            page.get_by_text("Load them for this message").click()

    def test_inlineImage(self) -> None:
        """An image of the mail itself is shown where the HTML refers to it."""
        message = letter("Inline", "<img src='cid:dot' alt=dot>")
        gif = bytes.fromhex("47494638396102000200800000000000ffffff2c000000000200020000020284510 03b".replace(" ", ""))
        html = message.get_payload()[1]
        html.add_related(gif, maintype="image", subtype="gif", cid="<dot>")
        self.server.send(message)
        page = self.open()
        page.locator(".row a").click()
        image = page.frame_locator("iframe.mail").get_by_alt_text("dot")
        image.wait_for()
        self.assertTrue(str(image.get_attribute("src")).startswith("data:image/gif"))

    def test_sessions(self) -> None:
        """A session without mail is in the list, with the reply that ended it."""
        page = self.open("/faults")
        page.get_by_role("switch", name="Unknown recipient").click()
        page.get_by_role("switch", name="Unknown recipient", checked=True).wait_for()
        page.get_by_role("link", name="Faults 1 active rules").wait_for()
        self.assertRaises(smtplib.SMTPRecipientsRefused, self.server.send, letter("Refused"), "nobody@example.com")
        page.get_by_text("Applied 1 time").wait_for()
        page.get_by_role("link", name="Sessions").click()
        page.get_by_text("550 5.1.1 No such user").first.wait_for()
        page.locator("tbody tr").first.get_by_role("link").click()
        page.locator(".dialog .refused", has_text="550 5.1.1 No such user").wait_for()
        page.get_by_role("link", name="Faults").click()
        page.get_by_role("button", name="Remove").click()
        page.get_by_text("No faults are active").wait_for()
        self.assertEqual(page.get_by_role("link", name="Faults").inner_text(), "Faults")
        self.assertEqual(self.errors, [])

    def test_ownFault(self) -> None:
        """An invalid rule is refused with an explanation, and stays in the field."""
        page = self.open("/faults")
        page.get_by_label("Rule, in").fill("rcpt frist=2 drop")
        page.get_by_role("button", name="Add").click()
        self.assertIn("first", page.get_by_role("alert").inner_text())
        self.assertEqual(page.get_by_label("Rule, in").input_value(), "rcpt frist=2 drop")

    def test_scope(self) -> None:
        """Below ``/in/``, only the mail of that inbox is shown, and deleting all deletes no other mail."""
        self.server.send(letter("Mine"), "a@w3.test")
        self.server.send(letter("Theirs"), "a@w4.test")
        page = self.open("/in/domain=w3.test/")
        self.assertEqual(page.locator(".row .subject").all_inner_texts(), ["Mine"])
        page.locator("summary[aria-label='More actions']").click()
        page.get_by_role("link", name="Delete all").click()
        page.get_by_role("button", name="Delete").click()
        page.get_by_text("No mail yet").wait_for()
        page.get_by_role("link", name="Show all mail").click()
        self.assertEqual(page.locator(".row .subject").all_inner_texts(), ["Theirs"])

    def test_weight(self) -> None:
        """The first page is smaller than 120 KB, and comes only from the server's own address."""
        for number in range(50):
            self.server.send(letter(f"Letter {number}"))
        page = self.window().new_page()
        sizes: dict[str, int] = {}
        page.on("response", lambda answer: sizes.update({answer.url: int(answer.headers.get("content-length", 0))}))
        page.goto(f"{self.server.url}/")
        page.locator("#live:visible").wait_for()
        static = sum(size for url, size in sizes.items() if "/static/" in url)
        self.assertLess(static, 120_000)
        self.assertEqual([url for url in sizes if not url.startswith(self.server.url)], [])

    def test_accessible(self) -> None:
        """axe finds no problem on any page, in either theme, and on a phone."""
        message = letter("Accessible", "<p>Hi</p>", X_Long="word" * 200)
        message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="report.pdf")
        self.server.send(message)
        found: dict[str, list[str]] = {}
        others = ("/sessions", "/faults", "/delete", "/?query=nothing")
        for options, tabs, paths in (
            ({"color_scheme": "light"}, ("html", "source", "session", "parts", "check"), others),
            ({"color_scheme": "dark"}, ("html", "session"), ("/sessions", "/faults")),
            ({"viewport": {"width": 390, "height": 640}}, ("html", "source"), ("/sessions",)),
        ):
            page = self.open(**options)
            first = page.locator(".row a").first.get_attribute("href")
            for path in ("/", *(f"{first}?tab={tab}" for tab in tabs), *paths):
                page.goto(f"{self.server.url}{path}")
                results = Axe().run(page, options={"iframes": False})
                problems = [
                    f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in results.response["violations"]
                ]
                if problems:
                    found[f"{options} {path}"] = problems
        self.assertEqual(found, {})


class HostileTests(BrowserCase):
    """Mail that tries to run scripts, to fetch something, or to navigate the browser away."""

    def setUp(self) -> None:
        if hostile.NAME in self.messages(self.window().new_page()):
            return
        letters = [letter(name, html) for name, html in hostile.HTML.items()]
        parts = [_with_part(content_type, text) for content_type, text in hostile.PARTS.items()]
        self.server.send_all([*letters, *parts, _hostile_header(), letter(hostile.NAME)])

    def watched(self) -> Page:
        """A page that must not open a dialog, fetch anything of a mail, or navigate."""
        window = self.window()
        page: Page = window.new_page()
        self.harm: list[str] = []
        page.on("dialog", lambda dialog: (self.harm.append(f"dialog {dialog.message}"), dialog.dismiss()))
        window.on("response", lambda answer: self._note(answer.url))
        return page

    def _note(self, url: str) -> None:
        if "fetched-by-a-mail" in url or not url.startswith((self.server.url, "data:", "blob:")):
            self.harm.append(f"answer of {url}")

    def messages(self, page: Page) -> dict[str, str]:
        """The ids of all messages, by subject."""
        answer = page.request.get(f"{self.server.url}/api/v1/messages?limit=0").json()
        return {each["Subject"]: each["ID"] for each in answer["messages"]}

    def check(self, page: Page, name: str, url: str) -> None:
        page.wait_for_timeout(30)
        self.assertEqual(page.url, url, name)
        self.assertNotIn("pwned", page.title(), name)
        self.assertEqual(self.harm, [], name)
        self.assertEqual(self.elsewhere.connections[self.before :], [], name)

    def test_html(self) -> None:
        """In the page and opened directly, no HTML of a mail runs a script, fetches anything, or navigates."""
        page = self.watched()
        messages = self.messages(page)
        for name in hostile.HTML:
            for path in (f"/m/{messages[name]}?tab=html&query=nothing", f"/view/{messages[name]}.html"):
                page.goto(f"{self.server.url}{path}", wait_until="load")
                self.check(page, name, f"{self.server.url}{path}")

    def test_clicks(self) -> None:
        """A click on the content of a mail runs no script, sends no form, and does not leave the page."""
        page = self.watched()
        messages = self.messages(page)
        for name, html in hostile.HTML.items():
            if "id=link" not in html:
                continue
            url = f"{self.server.url}/m/{messages[name]}?tab=html&query=nothing"
            page.goto(url, wait_until="load")
            target = page.frame_locator("iframe.mail").locator("#link").first
            if target.count():
                target.dispatch_event("click")
            page.wait_for_timeout(50)
            self.assertEqual(page.url, url, name)
            self.assertNotIn("pwned", page.title(), name)
            self.assertEqual([each for each in self.harm if each.startswith("dialog")], [], name)
            for other in page.context.pages[1:]:
                self.assertNotIn("javascript", other.url, name)
                other.close()
        self.assertEqual(len(self.messages(page)), len(messages))

    def test_parts(self) -> None:
        """Parts are downloaded, or shown according to their type. None of them runs."""
        page = self.watched()
        for subject, message in self.messages(page).items():
            if not subject.startswith("Part "):
                continue
            details = page.request.get(f"{self.server.url}/api/v1/message/{message}").json()
            parts = [*details["Attachments"], *details["Inline"]]
            self.assertTrue(parts, subject)
            for part in parts:
                url = f"{self.server.url}/api/v1/message/{message}/part/{part['PartID']}"
                try:
                    page.goto(url, wait_until="load")
                except Exception as error:  # Playwright raises this if a navigation becomes a download
                    self.assertRegex(str(error), "Download is starting|ERR_ABORTED", subject)
                page.wait_for_timeout(30)
                self.assertNotIn("pwned", page.title(), subject)
                self.assertEqual((self.harm, self.elsewhere.connections[self.before :]), ([], []), subject)

    def test_otherViews(self) -> None:
        """Hostile text in headers, addresses and source is shown as text in every view and in the list."""
        page = self.watched()
        messages = self.messages(page)
        hostile_one = next(id for subject, id in messages.items() if subject.startswith("<img"))
        script = messages["script"]
        for tab in ("markup", "text", "source", "headers", "envelope", "session", "parts", "check"):
            for message in (hostile_one, script):
                url = f"{self.server.url}/m/{message}?tab={tab}"
                page.goto(url)
                self.check(page, tab, url)
        for path in ("/", "/?query=script", "/sessions", "/?query=%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E"):
            page.goto(f"{self.server.url}{path}")
            self.check(page, path, f"{self.server.url}{path}")
        self.assertIn("{{7*7}}", page.request.get(f"{self.server.url}/m/{hostile_one}?tab=headers").text())


def _with_part(content_type: str, text: str) -> Any:
    message = letter(f"Part {content_type.partition(';')[0]}")
    maintype, _, subtype = content_type.partition(";")[0].partition("/")
    name = re.sub(r"\W", "-", content_type)
    message.add_attachment(text.encode(), maintype=maintype if maintype != "multipart" else "x", subtype=subtype)
    part = message.get_payload()[-1]
    part.replace_header("Content-Type", content_type)
    part.replace_header("Content-Disposition", f'inline; filename="{name}"')
    return message.as_bytes()


def _hostile_header() -> bytes:
    name = hostile.HEADERS["name"].replace('"', '\\"')
    fields = [
        f'From: "{name}" <ann@example.org>',
        "To: bob@example.com",
        f"Subject: {hostile.HEADERS['subject']}",
        f"X-Braces: {hostile.HEADERS['braces']}",
    ]
    return "\n".join([*fields, "", hostile.SCRIPTS["script"], ""]).encode()
