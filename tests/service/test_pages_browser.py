"""
The audit page in a real browser: Debian's Chromium without a screen, driven by Playwright's own client.

Every page is reached by clicking, in the light and in the dark, on a desk and on a phone, and looked at by axe-core;
nothing on the way is refused by the policy that the pages themselves send.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import psycopg
import pytest
from eventful import SIGNER

from ledger import Ledger, Unordered
from ledger.access import Scope
from ledger.audit.checkpoint import SigningKey
from ledger.service.app import create_app
from ledger.service.scoped import routes_of
from ledger.service.server import Server

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'ledger[test]'"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")

CHROMIUM: Final = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

WIDE: Final = {"width": 1280, "height": 900}
PHONE: Final = {"width": 380, "height": 800}

NARROW: Final = {"width": 320, "height": 800}

NOT_PAGES: Final = {"/static/{name}", "/account/statement.csv", "/verify/progress"}
"""What is fetched, and not looked at."""

_HANGING: Final = """[...document.querySelectorAll("body *")]
    .filter((each) => each.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map((each) => each.outerHTML.slice(0, 120))"""

Visit: TypeAlias = Callable[..., "Visitor"]


class Visitor:
    """Somebody at a browser, with all that it complained about."""

    def __init__(self, browser: Any, server: Server, key: str | None, **how: Any) -> None:
        self.address = server.address
        self.context = browser.new_context(base_url=server.address, **({"viewport": WIDE} | how))
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.seen: set[str] = set()
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if key is not None:
            self.page.goto("/sign-in")
            if how.get("java_script_enabled", True):  # axe-core is a script itself.
                self.look()
            self.page.get_by_label("API key").fill(key)
            self.page.get_by_role("button", name="Sign in").click()
            self.arrive("Overview")

    def click(self, name: str | re.Pattern[str], role: str = "link", **how: Any) -> None:
        """Click on what has this name."""
        self.page.get_by_role(role, name=name, **how).first.click()

    def arrive(self, heading: str) -> None:
        """Wait until a page with this heading is there; where it does not come, say what did."""
        try:
            self.page.get_by_role("heading", name=heading).wait_for()
        except playwright.TimeoutError:
            there = [*self.page.locator("h1").all_inner_texts(), *self.page.get_by_role("alert").all_inner_texts()]
            raise AssertionError(f"{self.page.url} is no {heading!r}: {there}") from None

    def look(self) -> None:
        """Look at a page as people with and without eyes do: nothing hangs out, and axe-core finds nothing."""
        self.page.wait_for_load_state()
        self.seen.add(urlsplit(self.page.url).path)
        width, room = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width <= room, f"{self.page.url} is {width} wide, in {room}: {self.page.evaluate(_HANGING)}"
        found = axe.Axe().run(self.page).response["violations"]
        assert found == [], [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here, and gone after them: while it is there, no other loop of events can run."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, site: Server, eventful: Ledger) -> Iterator[Visit]:
    """A visitor who has signed in with a key of these scopes; without any, one who has not."""
    made: list[Visitor] = []
    keys = eventful.api_keys()

    def enter(*scopes: Scope, **how: Any) -> Visitor:
        key = keys.create("-".join(scopes), scopes, created_by="test").secret if scopes else None
        made.append(Visitor(browser, site, key, **how))
        return made[-1]

    yield enter
    for each in made:
        each.context.close()


@pytest.mark.parametrize(
    ("scheme", "room"),
    [
        pytest.param("light", WIDE, id="light-desk"),
        pytest.param("dark", PHONE, id="dark-phone"),
        pytest.param("dark", WIDE, id="dark-desk", marks=pytest.mark.campaign),
        pytest.param("light", PHONE, id="light-phone", marks=pytest.mark.campaign),
    ],
)
def test_every_page_is_reached_by_clicking(visit: Visit, eventful: Ledger, scheme: str, room: dict[str, int]) -> None:
    """From page to page, with nothing typed into the address but where it begins; the browser has no complaint."""
    visitor = visit(Scope.READ, Scope.AUDIT, Scope.ADMIN, color_scheme=scheme, viewport=room)
    visitor.look()
    _through_accounts(visitor)
    _through_order(visitor)
    _through_verification(visitor)

    paths = {path for method, path, _ in routes_of(create_app(eventful)) if method == "GET"}
    pages = {path for path in paths if path in visitor.seen or not path.startswith(("/v1", *_NOT_OURS))} - NOT_PAGES
    assert visitor.seen >= pages
    assert visitor.complaints == []


_NOT_OURS: Final = ("/metrics", "/healthz", "/readyz", "/openapi", "/problems", "/docs")


def _through_accounts(visitor: Visitor) -> None:
    page = visitor.page
    visitor.click("Accounts", exact=True)
    page.get_by_label("Name begins with").fill("customers/a")
    visitor.click("Show", "button")
    visitor.look()
    visitor.click("customers/alice")
    page.get_by_text("The same as a table").click()
    visitor.look()
    visitor.click("Statement of a period")
    visitor.look()
    with page.expect_download() as download:
        visitor.click("Download CSV")
    assert "opening balance" in download.value.path().read_text()
    page.locator("tbody a.ident").first.click()
    visitor.arrive("What it made happen")
    visitor.look()
    visitor.click(re.compile("^Prove version"))
    visitor.arrive("Proof of one event")
    visitor.look()
    page.get_by_label("Account, transaction id or reference").fill("payday")
    visitor.click("Find", "button")
    visitor.arrive("Find")
    visitor.look()


def _through_order(visitor: Visitor) -> None:
    page = visitor.page
    visitor.click("Order", exact=True)
    page.get_by_text("The same as a table").click()
    visitor.look()
    visitor.click(re.compile("dead letters of bank"))
    visitor.look()
    page.locator("tbody a").first.click()
    visitor.arrive("The message")
    visitor.look()


def _through_verification(visitor: Visitor) -> None:
    page = visitor.page
    visitor.click("Verify", exact=True)
    visitor.click("Verify everything", "button")
    visitor.arrive("Last report")
    visitor.look()
    visitor.click("Overview", exact=True)
    page.get_by_text("see the report").wait_for()
    visitor.look()


@pytest.mark.parametrize(
    "room", [pytest.param(WIDE, id="desk", marks=pytest.mark.campaign), pytest.param(NARROW, id="narrow")]
)
def test_nothing_hangs_out(visit: Visit, eventful: Ledger, room: dict[str, int]) -> None:
    """Nobody has to scroll sideways, on 320 pixels (WCAG 1.4.10) and with words that have no end."""
    endless = "W" * 290
    eventful.transfer("1 USD", debit="world", credit="customers/bob", reference=endless[:255])
    visitor = visit(Scope.READ, Scope.AUDIT, viewport=room)
    transfer = eventful.transactions(reference=endless[:255])[0].transaction_id
    reversal = eventful.history("customers/alice", before_version=6, limit=1)[0].transaction_id
    (letter,) = eventful.inbox("bank", Unordered()).dead_letters(stream="customers/alice")
    for path in (
        *("/", "/accounts", "/accounts?sort=balance", "/order", "/dead-letters", "/verify", "/find"),
        *("/account?name=customers/alice", "/account?name=vault", "/account/statement?name=customers/bob"),
        *(f"/transaction?id={transfer}", f"/transaction?id={reversal}", "/proof?stream=customers/alice&version=2"),
        *(f"/dead-letter?source=bank&id={letter.dead_letter_id}", f"/find?what={endless[:255]}"),
        *(f"/find?what={endless}", f"/account?name={endless[:120]}", f"/dead-letter?source={endless}&id=none"),
    ):
        visitor.page.goto(path)
        visitor.look()


def test_a_problem_is_a_page_like_others(visit: Visit) -> None:
    """What went wrong can be read by everybody, and leads back."""
    visitor = visit(Scope.READ, viewport=PHONE)
    visitor.page.goto("/account?name=nobody")
    visitor.look()
    assert visitor.page.get_by_role("alert").inner_text() == "Account nobody does not exist; open it first."
    visitor.click("Go to the overview")
    visitor.arrive("Overview")


def test_the_policy_is_in_force(visit: Visit) -> None:
    """What somebody smuggles into a page is not carried out: no script, no style, no picture from elsewhere."""
    visitor = visit(Scope.READ)
    refused = visitor.page.evaluate(
        """async () => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.smuggled = true";
            document.body.append(script);
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.body.append(style);
            const image = document.createElement("img");
            image.src = "https://elsewhere.example/pixel.png";
            image.alt = "";
            document.body.append(image);
            await fetch("https://elsewhere.example/").catch(() => {});
            await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
            return [refused.sort(), window.smuggled ?? false];
        }"""
    )

    assert refused == [["connect-src", "img-src", "script-src-elem", "style-src-elem"], False]


def test_a_proof_is_verified_in_the_browser(visit: Visit) -> None:
    """With the key that signed every step holds; with another one it is told which fails."""
    visitor = visit(Scope.READ)
    page = visitor.page
    page.goto("/proof?stream=customers/alice&version=2")
    assert _checked(page, str(SIGNER.verifier)) == ["Record holds", "Path holds", "Signature holds"]
    visitor.look()

    other = SigningKey(SIGNER.name, bytes(32)).verifier
    assert _checked(page, str(other)) == ["Record holds", "Path holds", "Signature fails"]
    assert _checked(page, "nonsense") == ["Record holds", "Path holds", "Signature fails"]
    assert "NAME+HASH+KEY" in page.locator(".checks").inner_text()


@pytest.mark.parametrize(
    ("pattern", "put", "steps"),
    [
        (r"extra ....", "extra AAAA", ["Record fails"]),
        (r"index \\d+", "index 0", ["Record holds", "Path fails"]),
        (r"\\n[A-Za-z0-9+/]{43}=\\n", "\\n" + "A" * 43 + "=\\n", ["Record holds", "Path fails"]),
        (r"\\n(\\d+)\\n([A-Za-z0-9+/]{43}=)\\n\\n", "\\n9999999\\n$2\\n\\n", ["Record holds", "Path fails"]),
        (r"ledger\\n(\\d+)\\n", "ledger\\n0\\n", ["Record holds", "Path fails"]),
    ],
    ids=["record", "index", "path", "size", "empty"],
)
def test_a_forged_proof_fails_in_the_browser(visit: Visit, pattern: str, put: str, steps: list[str]) -> None:
    """Whatever of a proof is changed on its way, the browser sees it."""
    page = visit(Scope.READ).page
    page.route(
        "**/proof?**",
        lambda route: route.fulfill(
            response=(answer := route.fetch()),
            body=re.sub(
                r'(?s)(<pre class="proof".*?>)(.*?)(</pre>)', lambda found: _forged(found, pattern, put), answer.text()
            ),
        ),
    )
    page.goto("/proof?stream=customers/alice&version=2")
    assert _checked(page, str(SIGNER.verifier)) == steps


def _forged(found: re.Match[str], pattern: str, put: str) -> str:
    before = found[2]
    plain = pattern.replace("\\\\", "\\")
    after = re.sub(plain, put.replace("\\n", "\n").replace("$2", r"\2"), before, count=1)
    assert after != before
    return found[1] + after + found[3]


def _checked(page: Any, key: str) -> list[str]:
    """Verify with a key; which steps hold."""
    page.evaluate("document.querySelector('.checks').removeAttribute('data-result')")
    page.get_by_label("Verifier key").fill(key)
    page.get_by_role("button", name="Verify", exact=True).click()
    page.locator(".checks[data-result]").wait_for(state="attached")
    told = page.locator(".checks li").all_inner_texts()
    return [f"{re.findall('Record|Path|Signature', each)[0]} {re.findall('holds|fails', each)[0]}" for each in told]


def test_a_dead_letter_is_decided_about_by_hand(visit: Visit, eventful: Ledger) -> None:
    """An admin reads a message, says why, and discards it; without a reason the browser does not even send the form."""
    visitor = visit(Scope.ADMIN)
    page = visitor.page
    visitor.click("Dead letters", exact=True)
    page.locator("tbody a").first.click()
    visitor.click("Discard", "button")
    assert page.evaluate("document.activeElement.id") == "note"
    page.get_by_label("Why you decide so").fill("sent twice by mistake")
    visitor.click("Discard", "button")
    page.get_by_text("Done: it is discarded").wait_for()
    visitor.look()

    (letter,) = eventful.inbox("bank", Unordered()).dead_letters(state="discarded")
    (decided,) = eventful.inbox("bank", Unordered()).decisions(letter.dead_letter_id)
    assert (decided.actor, decided.note) == ("admin", "sent twice by mistake")
    assert page.get_by_role("button", name="Discard").count() == 0
    assert visitor.complaints == []


def test_an_auditor_sees_no_button_that_writes(visit: Visit) -> None:
    """On no page is there a button but those that find, show, verify, copy, and sign out."""
    visitor = visit(Scope.AUDIT)
    page = visitor.page
    names: set[str] = set()
    for path in ("/", "/accounts", "/account?name=world", "/order", "/dead-letters", "/verify"):
        page.goto(path)
        names |= {each.split(" ")[0] for each in page.get_by_role("button").all_inner_texts()}
    page.goto("/dead-letters")
    page.locator("tbody a").first.click()
    visitor.arrive("The message")
    names |= {each.split(" ")[0] for each in page.get_by_role("button").all_inner_texts()}

    assert names == {"Find", "Sign", "Show", "Ask", "Verify", "Copy"}
    assert "scope admin" in page.content()


def test_everything_works_without_scripts(visit: Visit, psql: psycopg.Connection[Any]) -> None:
    """Without a script one signs in, finds an account, reads its chart as a table, and sees a verification through."""
    visitor = visit(Scope.READ, Scope.AUDIT, java_script_enabled=False)
    page = visitor.page
    page.get_by_label("Account, transaction id or reference").fill("customers/alice")
    visitor.click("Find", "button")
    visitor.arrive("customers/alice")
    page.get_by_text("The same as a table").click()
    assert page.get_by_role("region", name="Table of the balance over time").is_visible()
    page.goto("/proof?stream=customers/alice&version=2")
    assert page.get_by_text("Without one, save the proof").is_visible()
    page.goto("/verify")
    with psql.transaction():
        psql.execute("LOCK TABLE holds IN ACCESS EXCLUSIVE MODE")
        visitor.click("Verify everything", "button")
        assert page.get_by_role("progressbar").is_visible()
    for _ in range(300):
        if page.get_by_role("heading", name="Last report").count():
            break
        visitor.click("Look again")
    assert page.get_by_text("sound").is_visible()


def test_progress_moves_by_itself(visit: Visit, psql: psycopg.Connection[Any]) -> None:
    """With a script nobody has to look again: the page does, and shows the report when it is there."""
    visitor = visit(Scope.AUDIT)
    visitor.click("Verify", exact=True)
    with psql.transaction():
        psql.execute("LOCK TABLE holds IN ACCESS EXCLUSIVE MODE")
        visitor.click("Verify everything", "button")
        visitor.page.get_by_role("progressbar").wait_for()
        visitor.look()
        assert not visitor.page.get_by_text("Look again").is_visible()
    visitor.arrive("Last report")


def test_a_keyboard_is_enough(visit: Visit) -> None:
    """The first key leads past the menu, all else is reached in its order, and what has the focus shows it."""
    page = visit(Scope.AUDIT).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.reload()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.innerText || document.activeElement.id).trim()"))
        shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert shown == "solid"
    assert reached == [
        "Skip to the content",
        "ledger",
        "Overview",
        "Accounts",
        "Order",
        "Dead letters",
        "Verify",
        "what",
    ]


def test_a_chart_is_read_at_a_point(visit: Visit) -> None:
    """Pointed at, a chart tells moment and amount; without a pointer there is the table."""
    page = visit(Scope.READ).page
    page.goto("/account?name=customers/alice")
    page.locator(".chart svg").hover()
    told = page.locator(".reading").inner_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\s\d\d:\d\d:\d\d: [\d,]+\.\d\d\sUSD", told)
    assert "Posted balance of customers/alice from 0.00 USD to" in str(
        page.locator(".chart svg").get_attribute("aria-label")
    )


def test_an_id_is_copied_whole(visit: Visit, eventful: Ledger) -> None:
    """An id is shown short and copied whole, by the button beside it."""
    visitor = visit(Scope.READ)
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    transaction = eventful.transactions(reference="rent")[0].transaction_id
    visitor.page.goto(f"/transaction?id={transaction}")
    visitor.click(f"Copy {transaction}", "button")
    visitor.page.get_by_text("Copied").wait_for()
    assert visitor.page.evaluate("navigator.clipboard.readText()") == transaction


@pytest.fixture
def psql(ledger_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the database with `psql`."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection
