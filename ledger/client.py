"""
A ledger behind its service: the methods of `Ledger`, the same names, errors and amounts, over HTTP.

    with Client("https://ledger.example", key) as ledger:
        ledger.transfer("5 USD", debit="alice", credit="bob", idempotency_key="invoice-7")

A write without a key gets one before it is sent.  What is sent again, since its answer was lost or the service had no
time, is sent with the same key: it is done once.  The extra `client`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeAlias, TypeVar
from uuid import UUID, uuid4

import httpx
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ledger.audit.export import Exported, appearing, digest_header, format_named
from ledger.core.book import Balance
from ledger.core.canonical import utc_text
from ledger.core.commands import Command
from ledger.core.errors import InvalidCommand, LedgerError, Rejected, ServiceUnavailable
from ledger.core.fields import MOMENT, checked
from ledger.core.money import Money
from ledger.operations import Commands
from ledger.order.message import Message, encode
from ledger.service.shapes import (
    AccountShape,
    AccountsShape,
    DetailShape,
    EntryShape,
    FeedShape,
    GapsShape,
    HistoryShape,
    HoldsShape,
    InboxStatsShape,
    LettersShape,
    ReportShape,
    StatementShape,
    StateShape,
    TallyShape,
    TransactionsShape,
    TrialBalanceShape,
)
from ledger.storage.asof import KnownAsOf
from ledger.wire import Json, error_of

ATTEMPTS: Final = 5
TOGETHER: Final = 5_000
"""Commands of one bulk request."""
EXPORT_SECONDS: Final = 3_600.0
"""How long the service may take until an export begins to come."""

_PAUSE_SECONDS: Final = 0.1
_PAUSE_SECONDS_MAX: Final = 10.0

Shape = TypeVar("Shape", bound=BaseModel)
Pairs: TypeAlias = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did, and where each stream and account stood right after; `replayed`: it was done earlier."""

    transaction_id: UUID
    kind: str
    idempotency_key: str | None
    reference: str | None
    effective_at: datetime
    recorded_at: datetime
    replayed: bool
    dry_run: bool
    versions: Mapping[str, int]
    states: Mapping[str, str]
    balances: Mapping[str, Balance]


Outcome: TypeAlias = Done | Rejected


class Client(Commands[Done]):
    """
    Speaks with a service; safe to share between threads.

    Every method raises what the same one of `Ledger` raises; and Unauthenticated, Forbidden, TooManyRequests,
    RequestTooLarge, or ServiceUnavailable where no answer came after all attempts.
    """

    def __init__(
        self,
        url: str,
        credential: str | None = None,
        *,
        seconds: float = 30.0,
        attempts: int = ATTEMPTS,
        verify: Any = True,
    ) -> None:
        """
        `credential` is an API key or a token; `seconds` how long one attempt may take.

        `verify` is what httpx takes: an `ssl.SSLContext` for a certificate that not everybody knows.
        """
        if attempts < 1:
            raise InvalidCommand("attempts", f"{attempts} is not a number from 1")
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=seconds, verify=verify)
        self._attempts = attempts

    def close(self) -> None:
        """Give all connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Commands

    def handle(self, commands: Sequence[Command], *, atomic: bool = False, dry_run: bool = False) -> list[Outcome]:
        """As `Ledger.handle`: commands in one transaction, one outcome each, in order."""
        plain = {"commands": [_sent(command) for command in commands], "atomic": atomic, "dry_run": dry_run}
        answered = from_json(self._write("/v1/handle", to_json(plain), str(uuid4())))
        outcomes = [_outcome(each) for each in answered["outcomes"]]
        return [_checked(outcome) for outcome in outcomes]

    def bulk(self, commands: Iterable[Command]) -> Iterator[Done | LedgerError]:
        """Any number of commands, each for itself, in order; what came of each is given as it is known."""
        arriving = iter(commands)
        while some := [_sent(command) for command in islice(arriving, TOGETHER)]:
            lines = b"".join(to_json(each) + b"\n" for each in some)
            for line in self._write("/v1/bulk", lines, str(uuid4()), kind="application/x-ndjson").splitlines():
                yield _outcome(from_json(line))

    def receive(self, messages: Sequence[Message]) -> TallyShape:
        """Messages for the inboxes of their sources, at most a thousand; counts what came of them."""
        body = b"[" + b",".join(map(encode, messages)) + b"]"
        kind = "application/cloudevents-batch+json"
        return TallyShape.model_validate_json(self._write("/v1/messages", body, str(uuid4()), kind=kind))

    def inbox(self, source: str) -> SourceInbox:
        """As `Ledger.inbox`, for whoever watches: how the messages of a source stand."""
        return SourceInbox(self, source)

    def _one(self, command: Command) -> Done:
        plain = _sent(command)
        key = plain.pop("idempotency_key")
        path = f"/v1/{plain.pop('type').replace('_', '-')}"
        return _done(from_json(self._write(path, to_json(plain), key)))

    # Questions

    def balance(
        self,
        account: str,
        *,
        version: int | None = None,
        effective_as_of: datetime | None = None,
        known_as_of: KnownAsOf = None,
    ) -> Balance:
        """As `Ledger.balance`."""
        times = {"effective_as_of": _time(effective_as_of), "known_as_of": _time(known_as_of)}
        return _balance(from_json(self._read("/v1/balance", account=account, version=version, **times)))

    def statement(
        self, account: str, since: datetime, until: datetime, *, known_as_of: KnownAsOf = None
    ) -> StatementShape:
        """As `Ledger.statement`, with all of its lines; refused where they are too many for one answer."""
        times = {"since": _time(since), "until": _time(until), "known_as_of": _time(known_as_of)}
        return self._found(StatementShape, "statement", account=account, **times)

    def account(self, account: str) -> AccountShape:
        """As `Ledger.account`."""
        return self._found(AccountShape, "account", account=account)

    def accounts(
        self, *, asset: str | None = None, metadata: Pairs | None = None, after: str | None = None, limit: int = 100
    ) -> AccountsShape:
        """As `Ledger.accounts`: a page, whose `next` is `after` of the next one."""
        pairs = None if metadata is None else to_json(metadata).decode()
        return self._found(AccountsShape, "accounts", asset=asset, metadata=pairs, after=after, limit=limit)

    def history(
        self,
        stream: str,
        *,
        after_version: int | str = 0,
        before_version: int | str | None = None,
        limit: int = 100,
        effective_as_of: datetime | None = None,
        known_as_of: KnownAsOf = None,
    ) -> HistoryShape:
        """As `Ledger.history`: a page, whose `next` is `after_version` of the next one."""
        asked = {"after": after_version, "before": before_version, "limit": limit}
        times = {"effective_as_of": _time(effective_as_of), "known_as_of": _time(known_as_of)}
        return self._found(HistoryShape, "history", stream=stream, **asked, **times)

    def transaction(self, transaction_id: UUID | str) -> DetailShape:
        """As `Ledger.transaction`."""
        return self._found(DetailShape, "transaction", transaction_id=str(transaction_id))

    def transactions(
        self,
        *,
        reference: str | None = None,
        metadata: Pairs | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TransactionsShape:
        """As `Ledger.transactions`: a page, whose `next` is `after` of the next one."""
        pairs = None if metadata is None else to_json(metadata).decode()
        asked = {"reference": reference, "metadata": pairs, "after": after, "limit": limit}
        return self._found(TransactionsShape, "transactions", **asked)

    def holds(
        self, account: str, *, status: str | None = None, after: str | None = None, limit: int = 100
    ) -> HoldsShape:
        """As `Ledger.holds`: a page, whose `next` is `after` of the next one."""
        return self._found(HoldsShape, "holds", account=account, status=status, after=after, limit=limit)

    def state(self, machine: str, subject: str) -> StateShape:
        """As `Ledger.state`."""
        return self._found(StateShape, "state", machine=machine, subject=subject)

    def scale(self, asset: str) -> int:
        """As `Ledger.scale`."""
        return int(from_json(self._read("/v1/asset", asset=asset))["scale"])

    def trial_balance(
        self, *, effective_as_of: datetime | None = None, known_as_of: KnownAsOf = None
    ) -> TrialBalanceShape:
        """As `Ledger.trial_balance`."""
        times = {"effective_as_of": _time(effective_as_of), "known_as_of": _time(known_as_of)}
        return self._found(TrialBalanceShape, "trial-balance", **times)

    def verify(self, *accounts: str) -> ReportShape:
        """As `Ledger.verify`: re-derive accounts, or everything, and compare."""
        body = to_json({"accounts": accounts})
        return ReportShape.model_validate_json(self._write("/v1/verify", body, str(uuid4())))

    def feed(self, *, after: int = 0, wait_seconds: float = 0) -> Iterator[EntryShape]:
        """As `Ledger.feed`; with `wait_seconds` the end is where nothing new came for so long."""
        while True:
            page = self._found(FeedShape, "feed", after=after, limit=1_000, wait_seconds=wait_seconds)
            if not page.entries:
                return
            yield from page.entries
            after = page.next

    def export(self, format: str, target: str | Path | BinaryIO, *, position: int | None = None) -> Exported:
        """
        As `Ledger.export`, into a new file or one that is open; what comes is compared with its hash.

        A file appears when it is complete.  Into one that is open some may have been written when this fails.

        Raises:
            ServiceUnavailable: It was lost on the way.
        """
        kind = format_named(format)
        asked = {"format": kind.value} | ({} if position is None else {"position": position})
        out = Path(target) if isinstance(target, str) else target
        with appearing(out) if isinstance(out, Path) else nullcontext(out) as file, self._export(asked) as answer:
            digest = sha256()
            try:
                for part in answer.iter_bytes():
                    digest.update(part)
                    file.write(part)
            except httpx.TransportError as lost:
                raise ServiceUnavailable(str(lost) or type(lost).__name__) from None
            told = answer.headers
            if told.get("Content-Digest") != digest_header(digest.hexdigest()):
                raise ServiceUnavailable("what came is not what its hash is of")
        return Exported(
            kind,
            told["Ledger-Id"],
            int(told["Ledger-Position"]),
            int(told["Ledger-Accounts"]),
            int(told["Ledger-Transactions"]),
            int(told["Ledger-Entries"]),
            digest.hexdigest(),
        )

    # On the way

    @contextmanager
    def _export(self, asked: Mapping[str, str | int]) -> Iterator[httpx.Response]:
        """The answer, of which the body is still to be read; it begins when the service has made the file."""
        waiting = httpx.Timeout(self._http.timeout.connect, read=EXPORT_SECONDS)
        # As it is: of what a proxy would make smaller the hash would be another.
        as_it_is = {"Accept-Encoding": "identity"}
        request = self._http.build_request("GET", "/v1/export", params=asked, headers=as_it_is, timeout=waiting)

        def begun() -> httpx.Response:
            answer = self._http.send(request, stream=True)
            if not answer.is_success:
                answer.read()
            return answer

        with closing(self._answered(begun)) as answer:
            yield answer

    def _found(self, shape: type[Shape], name: str, **asked: Any) -> Shape:
        return shape.model_validate_json(self._read(f"/v1/{name}", **asked))

    def _read(self, path: str, **asked: Any) -> bytes:
        parameters = {name: value for name, value in asked.items() if value is not None}
        return self._tried(lambda: self._http.get(path, params=parameters))

    def _write(self, path: str, body: bytes, key: str, *, kind: str = "application/json") -> bytes:
        headers = {"Idempotency-Key": key, "Content-Type": kind}
        return self._tried(lambda: self._http.post(path, content=body, headers=headers))

    def _tried(self, ask: Callable[[], httpx.Response]) -> bytes:
        return self._answered(ask).content

    def _answered(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask until there is an answer, or often enough; what is asked again is the same to the byte."""
        for attempt in range(1, self._attempts + 1):
            seconds = random.uniform(0, min(_PAUSE_SECONDS * 2**attempt, _PAUSE_SECONDS_MAX))  # noqa: S311  (no secret)
            try:
                answer = ask()
                if answer.is_success:
                    return answer
                error = _error(answer)
                seconds = max(seconds, _told_to_wait(answer))
            except httpx.TransportError as lost:
                error = ServiceUnavailable(str(lost) or type(lost).__name__)
            if not error.retryable or attempt == self._attempts:
                raise error
            threading.Event().wait(seconds)
        raise AssertionError


class SourceInbox:
    """The messages of one source, as they stand at the service."""

    def __init__(self, client: Client, source: str) -> None:
        self._client, self.source = client, source

    def stats(self) -> InboxStatsShape:
        """As `Inbox.stats`."""
        return self._client._found(InboxStatsShape, "inbox/stats", source=self.source)  # noqa: SLF001

    def gaps(self, *, status: str | None = None, after: str | None = None, limit: int = 100) -> GapsShape:
        """As `Inbox.gaps`, each with all that its stream misses: a page, whose `next` is `after` of the next one."""
        asked = {"source": self.source, "status": status, "after": after, "limit": limit}
        return self._client._found(GapsShape, "inbox/gaps", **asked)  # noqa: SLF001

    def dead_letters(self, *, state: str = "open", after: str | None = None, limit: int = 100) -> LettersShape:
        """As `Inbox.dead_letters`: a page, whose `next` is `after` of the next one."""
        asked = {"source": self.source, "state": state, "after": after, "limit": limit}
        return self._client._found(LettersShape, "dead-letters", **asked)  # noqa: SLF001


def _sent(command: Command) -> Json:
    """A command as it is sent, with a key; what was left out is left out."""
    plain: Json = from_json(command.model_dump_json(exclude_unset=True))
    plain["type"] = command.type
    plain["idempotency_key"] = command.idempotency_key or str(uuid4())
    return plain


def _done(plain: Json) -> Done:
    return Done(
        transaction_id=UUID(plain["transaction_id"]),
        kind=plain["kind"],
        idempotency_key=plain["idempotency_key"],
        reference=plain["reference"],
        effective_at=MOMENT.validate_python(plain["effective_at"]),
        recorded_at=MOMENT.validate_python(plain["recorded_at"]),
        replayed=plain["replayed"],
        dry_run=plain["dry_run"],
        versions=plain["versions"],
        states=plain["states"],
        balances={account: _balance(balance) for account, balance in plain["balances"].items()},
    )


def _balance(plain: Json) -> Balance:
    posted, pending, available = (Money.parse(plain[name]) for name in ("posted", "pending", "available"))
    return Balance(plain["account"], posted, pending, available, plain["version"], plain.get("position"))


def _time(at: KnownAsOf) -> str | None:
    """A time, or a position, as it is sent."""
    if at is None or isinstance(at, int):
        return None if at is None else str(at)
    return utc_text(checked(MOMENT, "time", at))


def _outcome(plain: Json) -> Done | LedgerError:
    if plain.get("done") is not None:
        return _done(plain["done"])
    problem = plain["problem"]
    return error_of(problem) or ServiceUnavailable(problem["detail"])


def _checked(outcome: Done | LedgerError) -> Outcome:
    if isinstance(outcome, Done | Rejected):
        return outcome
    raise outcome


def _error(answer: httpx.Response) -> LedgerError:
    """The error that a problem tells of; of whatever stands between, that it is not the service that answers."""
    try:
        plain = answer.json()
    except ValueError:
        plain = {}
    if isinstance(plain, dict) and (error := error_of(plain)) is not None:
        return error
    if answer.is_server_error:
        return ServiceUnavailable(f"it answers {answer.status_code}")
    return InvalidCommand("request", f"it was answered with {answer.status_code}: {answer.text[:160]}")


def _told_to_wait(answer: httpx.Response) -> float:
    said = answer.headers.get("retry-after", "")
    return min(float(said), _PAUSE_SECONDS_MAX) if said.isdecimal() else 0.0
