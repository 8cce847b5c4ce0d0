"""
Statements in ISO 20022 camt.053 (BankToCustomerStatement), in the published versions 001.02 and 001.08.

Read as a stream of XML: an entry is forgotten when it is read, so that memory holds no more of a file than its result.
Document types, entities and references to the outside are refused by defusedxml.

What decides, from the message definition: an entry counts if its status is BOOK; `CdtDbtInd` is the direction of the
entry itself, also where `RvslInd` says that it reverses another; the opening balance is OPBD, or PRCD where a bank
gives that instead, and the closing one CLBD; `Amt` of the entry is in the account's currency, whatever was instructed.
Elements of another namespace, and all that is in `SplmtryData`, are the bank's own and left out.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Context, Decimal
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler, feature_namespaces
from xml.sax.xmlreader import Locator

from ledger.audit.bank_statement import (
    DESCRIPTION_MAX,
    ENTRIES_MAX,
    ID_MAX,
    Currency,
    Refuse,
    amount_of,
    check_days,
    check_total,
    fingerprint,
    names_of,
    refusing,
)
from ledger.core.errors import BrokenStatement, InvalidCommand
from ledger.storage.reconciliations import BankEntry, BankStatement

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:camt.053.001."
VERSIONS: Final = ("02", "08")

DEPTH_MAX: Final = 40
NODES_MAX: Final = 200_000
"""Elements within one entry, or within one statement beside its entries."""
TEXT_MAX: Final = 10_000
STATEMENTS_MAX: Final = 1_000
_SHOWN_MAX: Final = 10

_STATEMENT: Final = ("Document", "BkToCstmrStmt", "Stmt")
_WHOLE: Final = {"Stmt": _STATEMENT, "Ntry": (*_STATEMENT, "Ntry")}
"""What is kept until it ends, and where it stands: elsewhere it is nothing of the kind."""

_FREE: Final = "SplmtryData"
"""What may have anything in it."""

_TOLD_EVERY: Final = 1_000

_DIGITS: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,17})?")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_SIGNS: Final = {"CRDT": 1, "DBIT": -1}

_DAY: Final = r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
_TIME: Final = r"T(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?|24:00:00(?:\.0+)?)"
_ZONE: Final = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))?"
_DATES: Final = {"Dt": re.compile(_DAY + _ZONE), "DtTm": re.compile(_DAY + _TIME + _ZONE)}
"""`date` and `dateTime` of XML Schema, in the years that a calendar has."""

_SUMMED: Final = {"TtlNtries": (1, -1), "TtlCdtNtries": (1,), "TtlDbtNtries": (-1,)}
"""What a summary counts and adds up: entries of which signs."""

_EXACT: Final = Context(prec=60)
"""No sum of entries has more digits."""

_BOOKED: Final = "BOOK"
_NOT_BOOKED: Final = ("PDNG", "INFO", "FUTR")

_REFERENCES: Final = (
    ("Refs", "EndToEndId"),
    ("Refs", "InstrId"),
    ("Refs", "TxId"),
    ("Refs", "UETR"),
    ("Refs", "ChqNb"),
    ("Refs", "AcctOwnrTxId"),
    ("Refs", "AcctSvcrRef"),
    ("RmtInf", "Strd", "CdtrRefInf", "Ref"),
    ("RmtInf", "Ustrd"),
)
"""Where a transaction is named, within `TxDtls`, and in this order."""

_OF_BATCH: Final = (("Btch", "PmtInfId"), ("Btch", "MsgId"))


@dataclass(slots=True)
class Node:
    """An element: its path and line, its text, and the elements in it."""

    name: str
    path: str
    line: int
    attributes: dict[str, str]
    texts: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    size: int = 0

    @property
    def text(self) -> str:
        """What stands in it, without the space around it."""
        return "".join(self.texts).strip()

    @property
    def where(self) -> str:
        """Where it stands, for whoever has to look."""
        return f"line {self.line}, {self.path}"

    def all(self, *path: str) -> Iterator[Node]:
        """The elements at a path within this one."""
        if not path:
            yield self
            return
        for child in self.children:
            if child.name == path[0]:
                yield from child.all(*path[1:])

    def first(self, *path: str) -> Node | None:
        """The first element at a path within this one."""
        return next(self.all(*path), None)

    def said(self, *path: str) -> str:
        """The text at a path; empty where there is none."""
        found = self.first(*path)
        return "" if found is None else found.text


class _Balance(NamedTuple):
    amount: int
    on: date
    where: str


@dataclass(slots=True)
class _Part:
    """One `Stmt` as it is read: a statement, or one page of it."""

    node: Node
    statement_id: str = ""
    number: str = ""
    page: int | None = None
    last: bool = True
    entries: list[BankEntry] = field(default_factory=list)
    left_out: int = 0
    # Of each sign: how many entries there are, whatever their status, and what they come to, whatever their currency.
    counts: Counter[int] = field(default_factory=Counter)
    totals: dict[int, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    wanted: bool = True
    several: bool = False


def read_camt053(
    path: Path,
    currency: Currency,
    *,
    statement_id: str | None = None,
    account_number: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> BankStatement:
    """
    Read one statement of a camt.053 file: the one with this id, or of this account number (IBAN), or the only one.

    `progress` is called with the number of entries read so far.

    Raises:
        BrokenStatement: It cannot be read, contradicts itself or is of another currency; it names the place.
        InvalidCommand: The file has several such statements, or none; or the extra `reconcile` is not installed.
        OSError: The file cannot be read.
    """
    refuse = refusing(path)
    with path.open("rb") as file:
        file_sha256 = fingerprint(file, refuse)
        reader = _Reader(currency, refuse, statement_id, account_number, progress)
        parse(file, reader, refuse)
    parts = _pages(_chosen(reader.parts, statement_id, account_number), refuse)
    return _statement(parts, reader.version, file_sha256, currency, refuse)


def parse(file: Any, handler: ContentHandler, refuse: Refuse) -> None:
    """
    Read XML from a file into a handler.

    Raises:
        BrokenStatement: It is not well-formed, ends too early, or has what no statement needs.
    """
    try:
        from defusedxml import DefusedXmlException  # noqa: PLC0415  (an extra)
        from defusedxml.expatreader import DefusedExpatParser  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InvalidCommand("statement", "camt.053 is read by defusedxml: pip install 'ledger[reconcile]'") from None
    parser = DefusedExpatParser(forbid_dtd=True)
    parser.setFeature(feature_namespaces, True)
    parser.setContentHandler(handler)
    try:
        parser.parse(file)
    except SAXParseException as error:
        where = f"line {error.getLineNumber()}, column {(error.getColumnNumber() or 0) + 1}"
        raise refuse(where, f"it is not XML from beginning to end: {error.getMessage()}") from None
    except DefusedXmlException as error:
        line = parser.getLineNumber() or 1
        raise refuse(
            f"line {line}",
            f"it declares a document type or entities, which no statement needs ({type(error).__name__})",
        ) from None
    except (UnicodeError, LookupError, ValueError) as error:
        if isinstance(error, BrokenStatement | InvalidCommand):
            raise
        raise refuse("the file", f"it cannot be read: {error}") from None


class _Reader(ContentHandler):
    """Makes statements of what the parser sees; of the file it keeps what is open, and the balances."""

    def __init__(
        self,
        currency: Currency,
        refuse: Refuse,
        statement_id: str | None,
        account_number: str | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        super().__init__()
        self.parts: list[_Part] = []
        self.version = ""
        self._currency = currency
        self._refuse = refuse
        self._statement_id = statement_id
        self._account_number = account_number
        self._open: list[Node] = []
        # What is kept as a whole until it ends: the document, a statement, an entry.
        self._kept: list[Node] = []
        # Elements that are open and left out: the first is of another namespace, or has anything in it.
        self._foreign = 0
        self._progress = progress
        self._entries = 0
        self._locator: Locator | None = None

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802  (the name is SAX's)
        self._locator = locator

    def startElementNS(self, name: tuple[str | None, str], qname: str | None, attrs: Any) -> None:  # noqa: ARG002, N802  (SAX's)
        space, local = name
        if self._foreign or (self._open and (space != NAMESPACE + self.version or local == _FREE)):
            self._foreign += 1
            return
        line = (self._locator.getLineNumber() if self._locator is not None else None) or 1
        if not self._open:
            self._root(space, local, line)
            node = Node(local, f"/{local}", line, {})
            self._kept.append(node)
        else:
            node = self._child(self._open[-1], local, line, attrs)
        self._open.append(node)
        if local not in _WHOLE or tuple(each.name for each in self._open) != _WHOLE[local]:
            return
        self._kept.append(node)
        if local == "Stmt":
            if len(self.parts) == STATEMENTS_MAX:
                raise self._refuse(node.where, f"it is one of more than {STATEMENTS_MAX:,} statements in one file")
            self.parts.append(_Part(node))

    def _root(self, space: str | None, local: str, line: int) -> None:
        version = (space or "").removeprefix(NAMESPACE)
        if local != "Document" or version not in VERSIONS:
            known = " and ".join(f"001.{each}" for each in VERSIONS)
            what = f"{local} of {space}" if space else f"{local} of no namespace"
            raise self._refuse(f"line {line}, /{local}"[:200], f"{what[:200]} is not camt.053; {known} are read")
        self.version = version

    def _child(self, parent: Node, local: str, line: int, attrs: Any) -> Node:
        if len(self._open) == DEPTH_MAX:
            raise self._refuse(parent.where, f"elements are nested more than {DEPTH_MAX} deep")
        count = parent.counts[local] = parent.counts.get(local, 0) + 1
        # Only what repeats is numbered where the definition lets it repeat.
        shown = f"{local}[{count}]" if count > 1 or local in ("Stmt", "Ntry", "NtryDtls", "TxDtls", "Bal") else local
        attributes = {key[1]: attrs.getValue(key) for key in attrs.getNames()} if len(attrs) else {}
        node = Node(local, f"{parent.path}/{shown}", line, attributes)
        top = self._kept[-1]
        top.size += 1
        if top.size > NODES_MAX:
            raise self._refuse(top.where, f"it has more than {NODES_MAX:,} elements")
        parent.children.append(node)
        return node

    def characters(self, content: str) -> None:
        if self._foreign or not self._open:
            return
        node = self._open[-1]
        if content.isspace() and not node.texts:
            return
        node.texts.append(content)
        if len(node.texts) > 1:
            node.texts[:] = ["".join(node.texts)]
        if len(node.texts[0]) > TEXT_MAX:
            raise self._refuse(node.where, f"its text is longer than {TEXT_MAX:,} characters")

    def endElementNS(self, name: tuple[str | None, str], qname: str | None) -> None:  # noqa: ARG002, N802  (SAX's)
        if self._foreign:
            self._foreign -= 1
            return
        node = self._open.pop()
        if node is not self._kept[-1]:
            return
        self._kept.pop()
        if node.name == "Ntry":
            self._entry(node)
        elif node.name == "Stmt":
            self._identified(self.parts[-1])
        if self._open:
            self._open[-1].children.pop()

    def _identified(self, part: _Part) -> _Part:
        """A part with its names, which stand before its entries."""
        if part.statement_id:
            return part
        node = part.node
        part.statement_id = node.said("Id")
        if not 1 <= len(part.statement_id) <= ID_MAX:
            raise self._refuse(f"{node.where}/Id", f"a statement has an id of 1 to {ID_MAX} characters")
        part.number = node.said("Acct", "Id", "IBAN") or node.said("Acct", "Id", "Othr", "Id")
        if node.first("StmtPgntn") is not None:
            page = node.said("StmtPgntn", "PgNb")
            if not _NUMBER.fullmatch(page):
                raise self._refuse(f"{node.where}/StmtPgntn/PgNb", f"{page[:20]!r} is not the number of a page")
            part.page, part.last = int(page), node.said("StmtPgntn", "LastPgInd") in ("true", "1")
        # Only what will be asked for is read closely: another account in the file may be of another currency.
        part.wanted = _is_wanted(part, self._statement_id, self._account_number)
        ids = {each.statement_id for each in self.parts if each.wanted}
        part.several = part.wanted and len(ids) > 1
        return part

    def _entry(self, node: Node) -> None:
        part = self._identified(self.parts[-1])
        self._entries += 1
        if self._progress is not None and self._entries % _TOLD_EVERY == 0:
            self._progress(self._entries)
        if not part.wanted or part.several:
            return
        status = node.said("Sts", "Cd") or node.said("Sts")
        where = _named(node)
        if status not in (_BOOKED, *_NOT_BOOKED):
            raise self._refuse(where, f"its status {status[:40]!r} is none of BOOK, {', '.join(_NOT_BOOKED)}")
        sign, told = _told(node, where, self._refuse)
        part.counts[sign] += 1
        part.totals[sign] = _EXACT.add(part.totals[sign], Decimal(told.text))
        if status != _BOOKED:
            part.left_out += 1
            return
        amount = sign * _minor(told, self._currency, where, self._refuse)
        if amount == 0:
            part.left_out += 1
            return
        booked_on = self._day(node, where)
        for value, names, description in _divided(node, amount, self._currency):
            if len(part.entries) == ENTRIES_MAX:
                raise self._refuse(node.where, f"its statement has more than {ENTRIES_MAX:,} entries")
            number = len(part.entries) + 1
            part.entries.append(BankEntry(number, booked_on, value, names, description, where))

    def _day(self, node: Node, where: str) -> date:
        for name in ("BookgDt", "ValDt"):
            if (told := node.first(name)) is not None:
                return _day_in(told, self._refuse)
        raise self._refuse(where, "it has neither a booking date nor a value date")


def _is_wanted(part: _Part, statement_id: str | None, account_number: str | None) -> bool:
    by_id = statement_id is None or part.statement_id == statement_id
    return by_id and (account_number is None or _plain(part.number) == _plain(account_number))


def _plain(account_number: str) -> str:
    return "".join(account_number.split()).upper()


def _named(node: Node) -> str:
    """Where an entry stands, with the reference by which a bank would find it."""
    name = node.said("NtryRef") or node.said("AcctSvcrRef") or node.said("NtryDtls", "TxDtls", "Refs", "EndToEndId")
    return f"{node.where} ({name[:60]})" if name else node.where


def _told(node: Node, where: str, refuse: Refuse) -> tuple[int, Node]:
    """The sign of a balance or of an entry, which is positive where it is a credit, and its amount."""
    amount = node.first("Amt")
    if amount is None:
        raise refuse(where, "it has no Amt")
    if not _DIGITS.fullmatch(amount.text):
        raise refuse(f"{where}, Amt", f"{amount.text[:40]!r} is not an amount")
    sign = _SIGNS.get(node.said("CdtDbtInd"))
    if sign is None:
        raise refuse(where, f"its CdtDbtInd {node.said('CdtDbtInd')[:10]!r} is neither CRDT nor DBIT")
    return sign, amount


def _minor(amount: Node, currency: Currency, where: str, refuse: Refuse) -> int:
    """An amount of the account's currency in minor units."""
    told = amount.attributes.get("Ccy", "")
    if told != currency.asset:
        raise refuse(f"{where}, Amt", f"it is in {told[:10] or 'no currency'}, and the account is in {currency.asset}")
    return amount_of(amount.text, currency, f"{where}, Amt", refuse)


def _day_in(node: Node, refuse: Refuse) -> date:
    """A choice of date and time: the day, as the bank writes it."""
    for name, form in _DATES.items():
        if (found := form.fullmatch(node.said(name))) is not None:
            with suppress(ValueError):
                return date.fromisoformat(found[1])
    text = node.said("Dt") or node.said("DtTm")
    raise refuse(node.where, f"{text[:40]!r} is not a date")


def _divided(node: Node, amount: int, currency: Currency) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """
    An entry, or its details where they divide it exactly; each with its references.

    Details have an amount of their own in `Amt` since version 04, before that in `AmtDtls/TxAmt`.  Where they do not
    say in the account's currency what each is, or come to something else, the entry stays one with all their names.
    """
    own = [node.said("NtryRef"), node.said("AcctSvcrRef")]
    batch = [found.text for path in _OF_BATCH for found in node.all("NtryDtls", *path)]
    details = list(node.all("NtryDtls", "TxDtls"))
    additional = node.said("AddtlNtryInf")
    values = [_detail_amount(detail, amount, currency) for detail in details]
    known = [value for value in values if value]
    if len(details) > 1 and len(known) == len(details) and sum(known) == amount:
        for detail, value in zip(details, known, strict=True):
            # What all share comes last; it may still be what we know the whole batch by.
            yield value, names_of([*_names(detail), *batch, *own]), _described(detail, additional)
        return
    names = [name for detail in details for name in _names(detail)]
    yield amount, names_of([*own, *batch, *names]), _described(details[0] if len(details) == 1 else None, additional)


def _detail_amount(detail: Node, amount: int, currency: Currency) -> int | None:
    told = detail.first("Amt") or detail.first("AmtDtls", "TxAmt", "Amt")
    if told is None or told.attributes.get("Ccy") != currency.asset or not _DIGITS.fullmatch(told.text):
        return None
    sign = _SIGNS.get(detail.said("CdtDbtInd"), 1 if amount > 0 else -1)
    try:
        return sign * currency.minor(told.text)
    except ValueError:
        return None


def _names(detail: Node) -> list[str]:
    return [found.text for path in _REFERENCES for found in detail.all(*path)]


def _described(detail: Node | None, additional: str) -> str:
    texts = [additional] if detail is None else [found.text for found in detail.all("RmtInf", "Ustrd")] or [additional]
    return " ".join(" ".join(texts).split())[:DESCRIPTION_MAX]


def _chosen(parts: Sequence[_Part], statement_id: str | None, account_number: str | None) -> list[_Part]:
    """The parts of the one statement that is asked for."""
    found = [part for part in parts if part.wanted]
    ids = list(dict.fromkeys(part.statement_id for part in found))
    if len(ids) == 1:
        return found
    there = ", ".join(f"{part.statement_id} of {part.number or 'no account'}" for part in parts[:_SHOWN_MAX])
    more = f", and {len(parts) - _SHOWN_MAX:,} more" if len(parts) > _SHOWN_MAX else ""
    if ids:
        raise InvalidCommand("statement", f"the file has several statements: {there}{more}; say which: --statement-id")
    asked = " ".join(each for each in (statement_id, account_number) if each is not None)
    raise InvalidCommand("statement", f"the file has no statement {asked}; it has {there or 'none'}{more}")


def _pages(parts: Sequence[_Part], refuse: Refuse) -> list[_Part]:
    """The pages of a statement, in order and all of them; one that is there twice must be the same."""
    unlike = [part for part in parts if _plain(part.number) != _plain(parts[0].number)]
    if unlike:
        raise refuse(unlike[0].node.where, f"statement {parts[0].statement_id} is of two accounts")
    if len(parts) > 1 and any(part.page is None for part in parts):
        raise refuse(parts[1].node.where, f"statement {parts[1].statement_id} is in the file twice")
    pages = sorted(parts, key=lambda part: part.page or 1)
    for number, part in enumerate(pages, 1):
        if part.page is not None and (part.page != number or part.last != (number == len(pages))):
            raise refuse(
                part.node.where,
                f"page {part.page} of statement {part.statement_id} is not page {number} of {len(pages)}:"
                " put all pages, each once, into one file",
            )
    return pages


def _statement(
    parts: Sequence[_Part], version: str, file_sha256: bytes, currency: Currency, refuse: Refuse
) -> BankStatement:
    first, last = parts[0], parts[-1]
    for part in parts:
        _check_currency(part.node, currency, refuse)
        _check_summary(part, parts, refuse)
    closing = _balance(last.node, "CLBD", currency, refuse)
    if closing is None:
        raise refuse(last.node.where, "it has no closing balance (CLBD)")
    opening = _opening(first.node, closing.on, currency, refuse)
    entries = [entry for part in parts for entry in part.entries]
    if len(parts) > 1:
        entries = [entry._replace(number=number) for number, entry in enumerate(entries, 1)]
    check_total(opening.amount, entries, closing.amount, currency, closing.where, refuse)
    check_days(opening.on, closing.on, closing.where, refuse)
    sequence = first.node.said("ElctrncSeqNb") or first.node.said("LglSeqNb")
    return BankStatement(
        statement_id=first.statement_id,
        format=f"camt.053.001.{version}",
        file_sha256=file_sha256,
        opens_on=opening.on,
        closes_on=closing.on,
        opening=opening.amount,
        closing=closing.amount,
        entries=entries,
        sequence=int(sequence) if _NUMBER.fullmatch(sequence) else 0,
        left_out=sum(part.left_out for part in parts),
    )


def _check_currency(node: Node, currency: Currency, refuse: Refuse) -> None:
    told = node.first("Acct", "Ccy")
    if told is not None and told.text != currency.asset:
        raise refuse(told.where, f"the statement is in {told.text[:10]}, and the account is in {currency.asset}")


def _opening(node: Node, closes_on: date, currency: Currency, refuse: Refuse) -> _Balance:
    opened = _balance(node, "OPBD", currency, refuse)
    previous = _balance(node, "PRCD", currency, refuse)
    if opened is None and previous is None:
        raise refuse(node.where, "it has no opening balance (OPBD or PRCD)")
    if opened is not None and previous is not None and opened.amount != previous.amount:
        money = currency.money
        raise refuse(
            previous.where, f"it closed before with {money(previous.amount)}, and opens with {money(opened.amount)}"
        )
    if opened is not None:
        return opened
    assert previous is not None
    # The day after the one that it closed on, if this one does not close on the same.
    return previous._replace(on=previous.on + timedelta(days=1)) if previous.on < closes_on else previous


def _balance(node: Node, code: str, currency: Currency, refuse: Refuse) -> _Balance | None:
    """The balance of this code; one that is given twice must be the same."""
    found = [balance for balance in node.all("Bal") if balance.said("Tp", "CdOrPrtry", "Cd") == code]
    read = []
    for balance in found:
        where = f"{balance.where} ({code})"
        sign, told = _told(balance, where, refuse)
        day = balance.first("Dt")
        if day is None:
            raise refuse(where, "it has no Dt")
        read.append(_Balance(sign * _minor(told, currency, where, refuse), _day_in(day, refuse), where))
    for one, other in pairwise(read):
        if one.amount != other.amount:
            raise refuse(other.where, f"it is given twice, as {one.amount} and as {other.amount} minor units")
    return read[0] if read else None


def _check_summary(part: _Part, parts: Sequence[_Part], refuse: Refuse) -> None:
    """
    Hold that entries are as many, and come to as much, as the summary says: what was cut may show nowhere else.

    What a page says is of that page, or of all.
    """
    for name, signs in _SUMMED.items():
        for figure, form, summed in (("NbOfNtries", _NUMBER, _count), ("Sum", _DIGITS, _total)):
            said = part.node.first("TxsSummry", name, figure)
            if said is None or said.text == "":
                continue
            there = [summed([part], signs), summed(parts, signs)]
            if not form.fullmatch(said.text) or Decimal(said.text) not in there:
                shown = " or ".join(dict.fromkeys(map(str, there)))
                raise refuse(said.where, f"it says {said.text[:40]}, and of the entries that are there it is {shown}")


def _count(parts: Iterable[_Part], signs: Sequence[int]) -> Decimal:
    return Decimal(sum(part.counts[sign] for part in parts for sign in signs))


def _total(parts: Iterable[_Part], signs: Sequence[int]) -> Decimal:
    return reduce(_EXACT.add, (part.totals[sign] for part in parts for sign in signs), Decimal(0))
