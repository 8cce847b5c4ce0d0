"""The audit page as HTTP: who is let in, what a form must carry, what is put on record, what a download holds."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import httpx
import psycopg
import pytest
from eventful import LONG, POLICY, REVERSED_KEY
from fastapi import Request, Response
from serving import WAIT_SECONDS, Http, Serve

from ledger import Ledger, Unordered
from ledger.access import Scope
from ledger.service.app import create_app
from ledger.service.pages.rendering import CONTENT_SECURITY_POLICY, grouped
from ledger.service.pages.visiting import Sessions, own_path
from ledger.service.pages.watching import Verification
from ledger.service.scoped import routes_of
from ledger.service.server import Server
from ledger.settings import ServiceSettings

SignIn: TypeAlias = Callable[..., httpx.Client]


@pytest.fixture
def sign_in(site: Server, eventful: Ledger) -> Iterator[SignIn]:
    """A browser without a screen in which somebody with these scopes has signed in."""
    made: list[httpx.Client] = []
    keys = eventful.api_keys()

    def enter(*scopes: Scope) -> httpx.Client:
        actor = "-".join(scopes)
        key = keys.create(actor, scopes, created_by="test").secret
        made.append(httpx.Client(base_url=site.address, timeout=WAIT_SECONDS))
        answer = made[-1].post("/sign-in", data={"token": token_of(made[-1].get("/sign-in")), "key": key, "next": "/"})
        assert answer.status_code == 303
        return made[-1]

    yield enter
    for each in made:
        each.close()


def token_of(page: httpx.Response) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page.text)
    assert found, page.text
    return found[1]


def test_who_has_not_signed_in_is_asked_to(site: Server) -> None:
    """Every page answers 401 with the form that asks for a key, and remembers where one wanted to go."""
    with httpx.Client(base_url=site.address) as client:
        answer = client.get("/account", params={"name": "customers/alice"})

    assert answer.status_code == 401
    assert "API key" in answer.text
    assert 'name="next" value="/account?name=customers%2Falice"' in answer.text
    assert "1,000.00" not in answer.text


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_unknown_path_is_a_page_for_a_browser(site: Server, sign_in: SignIn) -> None:
    """Whoever has mistyped an address is told so, with the way back, and with the headers of every page."""
    with httpx.Client(base_url=site.address, headers={"Accept": BROWSER}) as client:
        outside = client.get("/acounts")
    inside = sign_in(Scope.AUDIT).get("/acounts", headers={"Accept": BROWSER})

    for answer in (outside, inside):
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert "no_such_route" in answer.text
        assert 'href="/"' in answer.text
    assert 'href="/accounts"' in inside.text
    assert 'href="/accounts"' not in outside.text


@pytest.mark.parametrize(
    ("path", "accept"),
    [("/acounts", "*/*"), ("/acounts", "application/json"), ("/v1/acounts", BROWSER), ("/problems/none", BROWSER)],
)
def test_unknown_path_is_a_problem_for_a_program(site: Server, path: str, accept: str) -> None:
    """Whoever names no pages, or asks where only programs do, gets what a program reads."""
    answer = httpx.get(f"{site.address}{path}", headers={"Accept": accept})

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == "no_such_route"


def test_a_wrong_key_opens_nothing(site: Server) -> None:
    """Whoever has no good key stays outside, and is told so; the key is not repeated."""
    with httpx.Client(base_url=site.address) as client:
        data = {"token": token_of(client.get("/sign-in")), "key": "lk_wrong_secret", "next": "/"}
        answer = client.post("/sign-in", data=data)

        assert answer.status_code == 401
        assert "Not signed in." in answer.text
        assert "lk_wrong_secret" not in answer.text
        assert not client.cookies


def test_a_session_is_out_of_reach_of_scripts_and_other_sites(sign_in: SignIn) -> None:
    """The cookie is for HTTP alone, for this site alone, for an hour; and is not the key."""
    client = sign_in(Scope.AUDIT)
    (cookie,) = client.cookies.jar

    assert cookie.name == "ledger"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    assert cookie.expires is not None
    assert "lk_" not in str(cookie.value)


def test_a_session_over_tls_is_bound_to_its_host() -> None:
    """Where there is TLS, here or in a proxy, the cookie is `Secure` and has the prefix `__Host-`."""
    answer = Response()
    Sessions(ServiceSettings(behind_proxy=True)).begin(answer, "lk_key")
    cookie = answer.headers["set-cookie"]

    assert cookie.startswith("__Host-ledger=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict", "Max-Age=3600"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


def test_signing_out_ends_the_session(sign_in: SignIn, site: Server) -> None:
    """Whoever kept the cookie of a session that was ended is asked who they are."""
    client = sign_in(Scope.AUDIT)
    kept = dict(client.cookies)
    client.post("/sign-out", data={"token": token_of(client.get("/"))})

    assert client.get("/").status_code == 401
    with httpx.Client(base_url=site.address, cookies=kept) as thief:
        assert thief.get("/").status_code == 401


@pytest.mark.parametrize("path", ["/verify", "/dead-letter", "/sign-out"])
def test_a_form_of_another_site_is_refused(sign_in: SignIn, path: str) -> None:
    """Without its token, or from elsewhere with it, no form is taken."""
    client = sign_in(Scope.AUDIT, Scope.ADMIN)
    token = token_of(client.get("/verify"))

    without = client.post(path, data={"decision": "discard"})
    foreign = client.post(path, data={"token": token}, headers={"Origin": "https://elsewhere.example"})
    cross = client.post(path, data={"token": token}, headers={"Sec-Fetch-Site": "cross-site"})

    assert {each.status_code for each in (without, foreign, cross)} == {403}
    assert "Open the page again" in without.text
    assert client.get("/").status_code == 200


def test_a_token_is_good_for_its_own_session_only(sign_in: SignIn) -> None:
    """The token of one session does nothing in another."""
    mine, theirs = sign_in(Scope.ADMIN), sign_in(Scope.AUDIT)

    assert mine.post("/verify", data={"token": token_of(theirs.get("/"))}).status_code == 403


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\nb"])
def test_nobody_is_sent_elsewhere(path: str) -> None:
    """Where one goes on to after signing in is a page of this service."""
    assert own_path(path) == "/"
    assert own_path("/account?name=alice") == "/account?name=alice"


def test_a_revoked_key_ends_its_sessions(eventful: Ledger, serve: Serve) -> None:
    """A session lasts no longer than the key that it was opened with."""
    keys = eventful.api_keys()
    made = keys.create("auditor", [Scope.AUDIT], created_by="test")
    with serve(eventful) as server, httpx.Client(base_url=server.address) as client:
        client.post("/sign-in", data={"token": token_of(client.get("/sign-in")), "key": made.secret, "next": "/"})
        assert client.get("/").status_code == 200
        keys.revoke(made.key.key_id, actor="test")
        server._desk.gate._known.clear()  # noqa: SLF001  (what was found is good for a few seconds)

        assert client.get("/").status_code == 401


def test_every_page_says_what_a_browser_may_use(sign_in: SignIn) -> None:
    """Pages, problems, redirections and files alike carry the policy, and pages are kept by nobody."""
    client = sign_in(Scope.READ)
    for path in ("/", "/accounts", "/account?name=nobody", "/account", "/static/style.css", "/static/nothing"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/account?name=nobody", 404, "unknown_account"),
        ("/account", 422, "invalid_command"),
        ("/account?name=world&effective=yesterday", 422, "invalid_command"),
        ("/account?name=world&known=999999", 409, "not_yet_known"),
        ("/accounts?sort=luck", 422, "invalid_command"),
        ("/accounts?sort=balance", 422, "invalid_command"),
        ("/transaction?id=00000000-0000-0000-0000-000000000000", 404, "unknown_transaction"),
        ("/proof?stream=world&version=99", 422, "invalid_command"),
        ("/dead-letters?state=lost", 422, "invalid_command"),
        ("/dead-letter?source=bank&id=none", 422, "invalid_command"),
    ],
)
def test_what_goes_wrong_is_told_on_a_page(sign_in: SignIn, path: str, status: int, code: str) -> None:
    """A problem is a page with its title, what happened, and the code that the API has for it."""
    answer = sign_in(Scope.READ).get(path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<code>{code}</code>" in answer.text
    assert f"<h1>{code.replace('_', ' ').capitalize()}</h1>" in answer.text


def test_who_may_not_is_told_what_it_takes(sign_in: SignIn) -> None:
    """A page that is not for a credential says for which scope it is."""
    answer = sign_in(Scope.ADMIN).get("/accounts")

    assert answer.status_code == 403
    assert "read or audit" in answer.text


def test_no_page_is_open_by_oversight(ledger: Ledger) -> None:
    """Of the pages only signing in and the files are for everybody; what writes is for who may."""
    scopes = {(method, path): found for method, path, found in routes_of(create_app(ledger)) if "/v1" not in path}
    ours = {
        place: found
        for place, found in scopes.items()
        if not place[1].startswith(("/metrics", "/healthz", "/readyz", "/openapi", "/problems"))
    }

    public = {place for place, found in ours.items() if not found}
    assert public == {("GET", "/sign-in"), ("POST", "/sign-in"), ("POST", "/sign-out"), ("GET", "/static/{name}")}
    assert ours["POST", "/dead-letter"] == frozenset({Scope.ADMIN})
    assert ours["POST", "/verify"] == frozenset({Scope.AUDIT, Scope.ADMIN})


def test_what_an_auditor_reads_is_on_record(sign_in: SignIn, eventful: Ledger) -> None:
    """Each page with an account on it is recorded, with who looked; of who is no auditor nothing is."""
    client, other = sign_in(Scope.AUDIT), sign_in(Scope.READ)
    transaction = eventful.transactions(reference="rent")[0].transaction_id
    for path in (
        "/account?name=customers/alice",
        "/account/statement?name=customers/alice",
        "/account/statement.csv?name=customers/alice",
        f"/transaction?id={transaction}",
        "/proof?stream=customers/alice&version=2",
        "/accounts?find=customers/a",
    ):
        assert client.get(path).status_code == 200, path
        assert other.get(path).status_code == 200, path
    reads = eventful.api_keys().reads("customers/alice")

    assert [read.question for read in reads] == [
        "account",
        "statement",
        "statement",
        "transaction",
        "proof",
        "accounts",
    ]
    assert {read.actor for read in reads} == {"audit"}


def test_what_an_auditor_reads_beside_accounts_is_on_record(
    sign_in: SignIn, eventful: Ledger, psql: psycopg.Connection[Any]
) -> None:
    """An account in a message, in a finding, or behind a reference that was looked for is read as well."""
    client, other = sign_in(Scope.AUDIT), sign_in(Scope.READ)
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream = 'customers/alice'")
    client.post("/verify", data={"token": token_of(client.get("/verify"))})
    _until(lambda: not client.get("/verify/progress").json()["running"])
    for path in (f"/dead-letter?source=bank&id={_letter(eventful)}", "/dead-letters", "/find?what=rent", "/verify"):
        assert client.get(path).status_code == 200, path
        assert other.get(path).status_code == 200, path

    reads = eventful.api_keys().reads("customers/alice")
    assert [read.question for read in reads] == ["dead_letter", "dead_letters", "find", "verify"]
    assert {read.actor for read in reads} == {"audit"}
    assert [read.question for read in eventful.api_keys().reads("world")] == ["dead_letter", "dead_letters"]


def test_streams_that_wait_are_read_as_accounts_are(sign_in: SignIn, eventful: Ledger) -> None:
    """The page of waiting streams names them, and an auditor who sees it has read those that are accounts."""
    (gap, *_) = eventful.inbox("bank", POLICY).gaps()
    for scope in (Scope.AUDIT, Scope.READ):
        assert gap.stream in sign_in(scope).get("/order?source=bank").text

    reads = [read for read in eventful.api_keys().reads(gap.stream) if read.question == "order"]
    assert [read.actor for read in reads] == ["audit"]


def test_an_auditor_has_nothing_that_writes(sign_in: SignIn, eventful: Ledger) -> None:
    """For an auditor there is no decision on the page of a dead letter, and none is taken from them."""
    client = sign_in(Scope.AUDIT)
    letter = _letter(eventful)
    page = client.get("/dead-letter", params={"source": "bank", "id": letter})
    form = {
        "token": token_of(client.get("/verify")),
        "source": "bank",
        "id": letter,
        "decision": "discard",
        "note": "x",
    }

    assert "Requeue" not in page.text
    assert client.post("/dead-letter", data=form).status_code == 403
    assert len(_inbox(eventful).dead_letters()) == 2


@pytest.mark.parametrize(("decision", "state"), [("requeue", "requeued"), ("discard", "discarded")])
def test_a_dead_letter_is_decided_about(sign_in: SignIn, eventful: Ledger, decision: str, state: str) -> None:
    """Who may decides once, with a reason; it is on record under the name of the credential, whatever the form says."""
    client = sign_in(Scope.ADMIN)
    letter = _letter(eventful)
    before = eventful.balance("customers/alice").posted
    place = {"source": "bank", "id": letter}
    form = {
        "token": token_of(client.get("/dead-letter", params=place)),
        **place,
        "decision": decision,
        "actor": "mallory",
    }

    assert client.post("/dead-letter", data=form | {"note": " "}).status_code == 422
    done = client.post("/dead-letter", data=form | {"note": "the bank has confirmed it"}, follow_redirects=True)
    again = client.post("/dead-letter", data=form | {"note": "once more"})

    assert f"Done: it is {state}" in done.text
    assert "the bank has confirmed it" in done.text
    assert again.status_code == 422
    (decided,) = _inbox(eventful).decisions(letter)
    assert (decided.decision, decided.actor, decided.note) == (state, "admin", "the bank has confirmed it")
    moved = eventful.balance("customers/alice").posted - before
    assert str(moved) == ("2.00 USD" if decision == "requeue" else "0.00 USD")


def _inbox(ledger: Ledger) -> Any:
    return ledger.inbox("bank", Unordered())


def _letter(ledger: Ledger) -> str:
    """The dead letter of alice."""
    (found,) = _inbox(ledger).dead_letters(stream="customers/alice")
    return str(found.dead_letter_id)


def test_a_download_has_every_line_and_nothing_that_a_spreadsheet_runs(sign_in: SignIn, eventful: Ledger) -> None:
    """The file begins with the opening and ends with the closing balance; a text that looks like a formula is one."""
    eventful.transfer("1 USD", debit="customers/alice", credit="world", reference="'=HYPERLINK(A1)")
    eventful.transfer("1 USD", debit="customers/alice", credit="world", reference="=HYPERLINK(A1)")
    answer = sign_in(Scope.READ).get("/account/statement.csv", params={"name": "customers/alice"})
    rows = list(csv.DictReader(answer.text.splitlines()))

    assert answer.headers["content-disposition"].startswith('attachment; filename="customers_alice_')
    assert rows[0]["reference"] == "opening balance"
    assert rows[-1]["balance"] == str(eventful.balance("customers/alice").posted).removesuffix(" USD")
    assert [row["amount"] for row in rows if row["reference"] == "rent"] == ["-30.00"]
    assert [row["reference"] for row in rows][-3:-1] == ["''=HYPERLINK(A1)", "'=HYPERLINK(A1)"]
    total = sum(int(row["amount"].replace(".", "")) for row in rows if row["amount"])
    assert total == int(rows[-1]["balance"].replace(".", ""))


def test_downloads_are_bounded(sign_in: SignIn, psql: psycopg.Connection[Any]) -> None:
    """No more than two are sent at once; who asks for another is told to come again."""
    client = sign_in(Scope.READ)
    with psql.transaction():
        psql.execute("LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE")
        waiting = [
            threading.Thread(target=client.get, args=("/account/statement.csv?name=customers/alice",)) for _ in range(2)
        ]
        for each in waiting:
            each.start()
        _until(lambda: _blocked(psql) == 2)
        answer = client.get("/account/statement.csv?name=customers/alice")
    for each in waiting:
        each.join(WAIT_SECONDS)

    assert answer.status_code == 429
    assert answer.headers["retry-after"]


def test_one_verification_runs_at_a_time(sign_in: SignIn, psql: psycopg.Connection[Any]) -> None:
    """While one runs, whoever wants another is shown that one; when it has ended, its report is the last."""
    client = sign_in(Scope.AUDIT)
    token = token_of(client.get("/verify"))
    with psql.transaction():
        psql.execute("LOCK TABLE holds IN ACCESS EXCLUSIVE MODE")
        first = client.post("/verify", data={"token": token})
        _until(lambda: _blocked(psql) == 1)
        second = client.post("/verify", data={"token": token})
        runs = [thread.name for thread in threading.enumerate()].count("ledger-verify")
        running = client.get("/verify")
        progress = client.get("/verify/progress").json()
    _until(lambda: not client.get("/verify/progress").json()["running"])
    done = client.get("/verify")

    assert (first.status_code, second.status_code) == (303, 303)
    assert runs == 1
    assert "audit began it" in running.text
    assert progress["running"]
    assert progress["total"] > 0
    assert "audit ran it" in done.text
    assert "sound" in done.text
    assert "see the report" in client.get("/").text


def test_a_finding_is_told(sign_in: SignIn, psql: psycopg.Connection[Any]) -> None:
    """Where a balance was changed behind the ledger's back, the report says which, and the overview that it is bad."""
    client = sign_in(Scope.AUDIT)
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream = 'customers/bob'")
    client.post("/verify", data={"token": token_of(client.get("/verify"))})
    _until(lambda: not client.get("/verify/progress").json()["running"])
    report = client.get("/verify")

    assert "customers/bob" in report.text
    assert "finding" in client.get("/").text


def test_a_verification_ends_with_the_service(eventful: Ledger) -> None:
    """A service that ends does not wait for a verification that nobody will read."""
    watched = Verification(eventful, lambda: True)
    assert watched.begin("somebody")
    _until(lambda: watched.current is None)

    assert watched.last is not None
    assert watched.last.problem == "The service ended before it was done."


def test_amounts_are_exact(sign_in: SignIn) -> None:
    """All digits of an amount are on the page, with its thousands apart, and as programs read it beside that."""
    text = sign_in(Scope.READ).get("/account", params={"name": "vault"}).text

    assert "1,234,567,890,123,456,789.12345678" in text
    assert f'value="{LONG}"' in text
    assert grouped("-1234.50") == "\N{MINUS SIGN}1,234.50"
    assert grouped("0.00000001") == "0.00000001"


def test_a_transaction_shows_where_it_came_from(sign_in: SignIn, eventful: Ledger) -> None:
    """What caused it, what it reverses, and what reverses it lead on; ids are whole."""
    client = sign_in(Scope.READ)
    reversal = next(
        event.transaction_id
        for event in eventful.history("customers/alice", limit=1000)
        if event.direction == "credit" and event.amount == 700
    )
    text = client.get("/transaction", params={"id": reversal}).text
    (original,) = re.findall(r"Reverses</dt><dd><a class=\"ident\" href=\"/transaction\?id=([0-9a-f-]{36})\"", text)
    text = client.get("/transaction", params={"id": original}).text

    assert f'title="{reversal}"' in text
    assert "Caused by" in text
    assert "order-17" in text
    assert REVERSED_KEY in text


def test_whatever_it_is_called_it_is_found(sign_in: SignIn, eventful: Ledger) -> None:
    """An account by its name and a transaction by its id lead to their pages, a reference to a list."""
    client = sign_in(Scope.READ)
    transaction = eventful.transactions(reference="rent")[0].transaction_id

    assert client.get("/find", params={"what": " vault "}).headers["location"] == "/account?name=vault"
    assert client.get("/find", params={"what": transaction}).headers["location"] == f"/transaction?id={transaction}"
    assert transaction in client.get("/find", params={"what": "rent"}).text
    assert "Nothing is called" in client.get("/find", params={"what": "<nothing>"}).text
    assert "&lt;nothing&gt;" in client.get("/find", params={"what": "<nothing>"}).text


def test_two_times_are_asked_for(sign_in: SignIn, eventful: Ledger) -> None:
    """What counted by a moment is told as the ledger tells it, and pinned where it is asked what was known."""
    client = sign_in(Scope.READ)
    day = eventful.transactions(reference="rent")[0].effective_at
    counted = client.get("/account", params={"name": "customers/bob", "effective": f"{day:%Y-%m-%dT%H:%M:59}.999999"})
    known = client.get("/account", params={"name": "customers/bob", "known": "9"})

    assert "30.00" in re.findall(r'class="answer".*?</p>', counted.text, re.DOTALL)[0]
    assert "pinned to position 9" in known.text


def test_an_empty_ledger_says_what_to_do(ledger: Ledger, serve: Serve) -> None:
    """Where there is nothing yet, each page says how to begin; and where nobody is asked who they are, all may look."""
    with serve(ledger, authentication=False) as server, httpx.Client(base_url=server.address) as client:
        assert "ledger open world" in client.get("/").text
        assert "ledger ingest" in client.get("/").text
        assert "ledger open world" in client.get("/accounts").text
        assert "ledger ingest" in client.get("/order").text
        assert client.get("/dead-letters").status_code == 200
        assert client.get("/verify").status_code == 200


def test_programs_may_ask_pages_with_their_key(http: Http) -> None:
    """A page takes the header that the API takes, so that its routes are tried with every scope like all others."""
    assert http(Scope.READ).get("/account", params={"name": "alice"}).status_code == 200
    assert http(Scope.EXPORT).get("/account", params={"name": "alice"}).status_code == 403
    assert http().get("/account", params={"name": "alice"}).status_code == 401


@pytest.fixture
def psql(ledger_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the database with `psql`."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


def _blocked(psql: psycopg.Connection[Any]) -> int:
    """How many others wait for a lock in this database."""
    # Within a transaction it would be asked once.
    psql.execute("SELECT pg_stat_clear_snapshot()")
    row = psql.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _until(reached: Callable[[], bool]) -> None:
    """Ask again and again, for as long as anybody would wait."""
    event = threading.Event()
    for _ in range(WAIT_SECONDS * 20):
        if reached():
            return
        event.wait(0.05)
    raise AssertionError("it never came")


def test_sessions_of_two_processes_are_their_own() -> None:
    """What one process has sealed is nothing to another, nor after a restart."""
    one, other = (Sessions(ServiceSettings()) for _ in range(2))
    answer = Response()
    one.begin(answer, "lk_key")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    request = Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})

    assert one.authorization(request) == "Bearer lk_key"
    assert other.of(request) is None
