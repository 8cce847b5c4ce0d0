"""camt.053 in versions 02 and 08, read to the last unit; what is broken is refused, with its place."""

from __future__ import annotations

import re
import tracemalloc
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest

from ledger import BrokenStatement, InvalidCommand
from ledger.audit.bank_statement import Currency
from ledger.audit.camt053 import read_camt053

HERE = Path(__file__).parent
MARCH = HERE / "march.camt.053.001.02.xml"
APRIL = HERE / "april.camt.053.001.08.xml"
EUR = Currency("EUR", 2)
IBAN = "DE75 5121 0800 1245 1261 99"


def changed(tmp_path: Path, source: Path, *changes: tuple[str, str]) -> Path:
    """A copy of a file in which each of these texts, which it has, is another."""
    text = source.read_text("utf-8")
    for old, new in changes:
        assert old in text, f"{old!r} is not in {source.name}"
        text = text.replace(old, new, 1)
    path = tmp_path / source.name
    path.write_text(text, "utf-8")
    return path


def refused(path: Path, currency: Currency = EUR) -> BrokenStatement:
    """The error with which a file is refused."""
    with pytest.raises(BrokenStatement) as error:
        read_camt053(path, currency, account_number=IBAN)
    assert error.value.file == path.name
    return error.value


def test_version_02() -> None:
    """Booked entries with their details, references and days; what is pending is counted and left out."""
    read = read_camt053(MARCH, EUR)

    assert (read.statement_id, read.format, read.sequence) == ("2024-03", "camt.053.001.02", 3)
    assert (read.opens_on, read.closes_on) == (date(2024, 3, 1), date(2024, 3, 31))
    assert (read.opening, read.closing, read.left_out) == (100_000, 128_850, 1)
    assert read.file_sha256 == sha256(MARCH.read_bytes()).digest()
    assert [(each.number, each.booked_on.day, each.amount, each.names[0]) for each in read.entries] == [
        (1, 3, 25_000, "0001"),
        (2, 5, -10_000, "PAY-1"),
        (3, 5, -5_000, "PAY-2"),
        (4, 6, 10_000, "0003"),
        (5, 20, 9_700, "0004"),
        (6, 31, -850, "0005"),
    ]
    assert read.entries[0].names == ("0001", "2403030001", "INV-1001", "Invoice 1001, thank you")
    assert read.entries[2].names == ("PAY-2", "PAYROLL-03", "0002", "2403050002")
    assert "NOTPROVIDED" not in read.entries[4].names
    assert read.entries[4].description == "CARD PAYOUT"


def test_version_08() -> None:
    """Pages of one statement are put together; PRCD opens it; a detail may go the other way than its entry."""
    read = read_camt053(APRIL, EUR, account_number=IBAN)

    assert (read.statement_id, read.format, read.left_out) == ("2024-04", "camt.053.001.08", 1)
    assert (read.opens_on, read.closes_on) == (date(2024, 4, 1), date(2024, 4, 30))
    assert [(each.number, each.amount, each.names) for each in read.entries] == [
        (1, -5_000, ("0007", "2404010007", "RENT-04", "eb6305c9-1f7f-49de-aed0-16487c27b42d")),
        (2, 7_000, ("INV-1002", "0008")),
        (3, -1_000, ("INV-1003", "RF18539007547034", "0008")),
    ]


def test_a_reversal_counts_as_it_is_booked(tmp_path: Path) -> None:
    """`CdtDbtInd` is the direction of the entry itself: `RvslInd` does not turn it round."""
    without = changed(tmp_path, MARCH, ("<RvslInd>true</RvslInd>", ""))

    assert [each.amount for each in read_camt053(without, EUR).entries] == [
        each.amount for each in read_camt053(MARCH, EUR).entries
    ]


SUPPLEMENTS = {
    "a statement within an entry": ("</NtryDtls>", "<Stmt><Id>x</Id></Stmt>"),
    "an entry behind the entries": ("</Stmt>", '<Ntry><Amt Ccy="EUR">1.00</Amt></Ntry>'),
    "a reference": ("</TxDtls>", "<Refs><EndToEndId>x</EndToEndId></Refs>"),
    "a balance": ("<TxsSummry>", "<Bal><Tp><CdOrPrtry><Cd>CLBD</Cd></CdOrPrtry></Tp></Bal>"),
    "deep, long and many": ("</Stmt>", "<A>" * 60 + "x" * 10_001 + "</A>" * 60 + "<A/>" * 200_001),
}


@pytest.mark.parametrize("how", SUPPLEMENTS)
def test_what_the_bank_adds_is_left_out(tmp_path: Path, how: str) -> None:
    """What is in SplmtryData or of another namespace is none of camt.053, whatever it is called."""
    place, added = SUPPLEMENTS[how]
    foreign = f'<x:Own xmlns:x="urn:bank:x" xmlns="urn:bank:x">{added}</x:Own>'
    expected = read_camt053(MARCH, EUR)

    for inserted in (
        f"<SplmtryData><Envlp>{added}</Envlp></SplmtryData>",
        f"<SplmtryData><Envlp>{foreign}</Envlp></SplmtryData>",
        foreign,
        f'<Own xmlns="urn:bank:x"><In xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.02">{added}</In></Own>',
    ):
        read = read_camt053(changed(tmp_path, MARCH, (place, inserted + place)), EUR, statement_id="2024-03")
        assert read.entries == [
            each._replace(place=one.place) for each, one in zip(expected.entries, read.entries, strict=True)
        ]
        assert (read.statement_id, read.opening, read.closing) == ("2024-03", 100_000, 128_850)


def test_statements_and_entries_stand_where_they_stand(tmp_path: Path) -> None:
    """An element with the name of a statement is none within an entry."""
    path = changed(tmp_path, MARCH, ("</TxDtls>", "<Stmt><Id>x</Id><Ntry/></Stmt></TxDtls>"))

    assert len(read_camt053(path, EUR, statement_id="2024-03").entries) == 6


def test_one_of_several_is_chosen() -> None:
    """By id, or by account number; without either the file's statements are named."""
    dollars = read_camt053(APRIL, Currency("USD", 2), statement_id="2024-04-USD")
    assert (dollars.opening, dollars.closing, dollars.entries[0].booked_on) == (0, -1_234, date(2024, 4, 15))
    assert read_camt053(APRIL, Currency("USD", 2), account_number="700123") == dollars
    with pytest.raises(
        InvalidCommand, match=r"2024-04 of DE75\d+, .*2024-04-USD of 700 123; say which: --statement-id"
    ):
        read_camt053(APRIL, EUR)
    with pytest.raises(InvalidCommand, match="no statement 2024-05; it has 2024-03 of DE7"):
        read_camt053(MARCH, EUR, statement_id="2024-05")


def test_details_that_do_not_divide_an_entry_leave_it_whole(tmp_path: Path) -> None:
    """An entry whose details come to something else stays one, and is known by all their names."""
    path = changed(tmp_path, MARCH, ('<Amt Ccy="EUR">50.00</Amt></TxAmt>', '<Amt Ccy="EUR">49.00</Amt></TxAmt>'))

    entry = read_camt053(path, EUR).entries[1]

    assert entry.amount == -15_000
    assert {"PAYROLL-03", "PAY-1", "PAY-2"} <= set(entry.names)


BROKEN = {
    "wrong total": (
        ('<Amt Ccy="EUR">97.00</Amt>', '<Amt Ccy="EUR">97.01</Amt>'),
        r"line 27, /Document/BkToCstmrStmt/Stmt\[1\]/Bal\[2\] \(CLBD\)",
        "entries of 288.51 EUR come to 1288.51 EUR, and the closing balance is 1288.50 EUR: it is off by 0.01 EUR",
    ),
    "entry in another currency": (
        ('<Amt Ccy="EUR">97.00</Amt>', '<Amt Ccy="USD">97.00</Amt>'),
        r"line \d+, /Document/BkToCstmrStmt/Stmt\[1\]/Ntry\[4\] \(0004\), Amt",
        "it is in USD, and the account is in EUR",
    ),
    "statement in another currency": (
        ("<Ccy>EUR</Ccy>", "<Ccy>USD</Ccy>"),
        r"line 18, /Document/BkToCstmrStmt/Stmt\[1\]/Acct/Ccy",
        "the statement is in USD",
    ),
    "more decimals than the currency": (
        ('<Amt Ccy="EUR">8.5</Amt>', '<Amt Ccy="EUR">8.505</Amt>'),
        r"line \d+, .*/Ntry\[5\] \(0005\), Amt",
        "amount '8.505 EUR': EUR has 2 decimal places",
    ),
    "no amount": (('<Amt Ccy="EUR">8.5</Amt>', '<Amt Ccy="EUR">8,50</Amt>'), r".*/Ntry\[5\] .*", "'8,50' is not an am"),
    "no direction": (
        ("<CdtDbtInd>DBIT</CdtDbtInd>", "<CdtDbtInd>MINUS</CdtDbtInd>"), r".*/Ntry\[2\] .*", "neither CRDT nor DBIT",
    ),
    "no status": (("<Sts>BOOK</Sts>", "<Sts>DONE</Sts>"), r".*/Ntry\[1\] \(0001\)", "'DONE' is none of BOOK, PDNG"),
    "no date": (("<Dt>2024-03-20</Dt>", "<Dt>2024-02-30</Dt>"), r".*/Ntry\[4\]/BookgDt", "'2024-02-30' is not a date"),
    "no opening balance": (("<Cd>OPBD</Cd>", "<Cd>OPAV</Cd>"), r".*/Stmt\[1\]", "no opening balance"),
    "no closing balance": (("<Cd>CLBD</Cd>", "<Cd>CLAV</Cd>"), r".*/Stmt\[1\]", "no closing balance"),
    "an entry left out": (
        ("<NbOfNtries>6</NbOfNtries>", "<NbOfNtries>7</NbOfNtries>"), r".*/NbOfNtries", "says 7, and .* it is 6",
    ),
    "a statement that closes before it opens": (
        ("<Dt>2024-03-01</Dt>", "<Dt>2024-04-01</Dt>"), r".*/Bal\[2\] \(CLBD\)", "begins on 2024-04-01 and ends on",
    ),
    "two closing balances": (("<Cd>CLAV</Cd>", "<Cd>CLBD</Cd>"), r".*/Bal\[3\] \(CLBD\)", "given twice"),
    "another version": (('001.02"', '001.06"'), "line 3, /Document", "is not camt.053; 001.02 and 001.08 are read"),
    "another document": (('camt.053.001.02"', 'pain.001.001.09"'), "line 3, /Document", "is not camt.053"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, how: str) -> None:
    """What contradicts itself, or is of another currency or kind, is refused with path, line and reference."""
    change, where, problem = BROKEN[how]

    error = refused(changed(tmp_path, MARCH, change))

    assert re.fullmatch(where, error.where), error.where
    assert re.search(problem, error.problem), error.problem


def summary(kind: str, number: object, total: object) -> str:
    """What a summary says of one kind of entries."""
    return f"<{kind}><NbOfNtries>{number}</NbOfNtries><Sum>{total}</Sum></{kind}>"


@pytest.mark.parametrize(
    ("kind", "number", "total"),
    [("TtlNtries", 6, "655.5"), ("TtlCdtNtries", 3, "447.00"), ("TtlDbtNtries", 3, "208.50")],
)
def test_summaries_are_checked(tmp_path: Path, kind: str, number: int, total: str) -> None:
    """Number and sum of all entries, of the credits and of the debits are of what is there, whatever its status."""
    said = "<TtlNtries><NbOfNtries>6</NbOfNtries></TtlNtries>"

    right = changed(tmp_path, MARCH, (said, summary(kind, number, total)))
    assert len(read_camt053(right, EUR).entries) == 6
    for wrong, where in (((number + 1, total), "NbOfNtries"), ((number, f"{total}1"), "Sum"), ((number, "x"), "Sum")):
        error = refused(changed(tmp_path, MARCH, (said, summary(kind, *wrong))))
        assert error.where.endswith(f"/TxsSummry/{kind}/{where}")


@pytest.mark.parametrize(("number", "total", "right"), [(2, "1059", True), (3, "1109", True), (1, "50", False)])
def test_a_page_is_summed_up_alone_or_with_all(tmp_path: Path, number: int, total: str, right: bool) -> None:
    """A summary of a page is of its entries, or of those of the whole statement."""
    first = "<Ntry>\n        <NtryRef>0008"
    said = f"<TxsSummry>{summary('TtlNtries', number, total)}</TxsSummry>{first}"

    path = changed(tmp_path, APRIL, (first, said))

    if right:
        assert len(read_camt053(path, EUR, account_number=IBAN).entries) == 3
    else:
        assert refused(path).problem == "it says 1, and of the entries that are there it is 2 or 3"


DATES = {
    "<Dt>2024-03-20</Dt>": True,
    "<Dt>2024-03-20Z</Dt>": True,
    "<Dt>2024-03-20+14:00</Dt>": True,
    "<DtTm>2024-03-20T23:59:59.999-05:00</DtTm>": True,
    "<DtTm>2024-03-20T24:00:00</DtTm>": True,
    "<Dt>2024-03-20GARBAGE</Dt>": False,
    "<Dt>2024-W12-3</Dt>": False,
    "<Dt>20240320</Dt>": False,
    "<Dt>2024-03-20T10:00:00</Dt>": False,
    "<Dt>2024-03-20+15:00</Dt>": False,
    "<Dt>٢٠٢٤-03-20</Dt>": False,
    "<DtTm>2024-03-20</DtTm>": False,
    "<DtTm>2024-03-20T25:00:00</DtTm>": False,
    "<DtTm>2024-03-20 10:00:00</DtTm>": False,
}


@pytest.mark.parametrize("written", DATES)
def test_dates_are_those_of_xml_schema(tmp_path: Path, written: str) -> None:
    """The day is as the bank writes it, whatever the zone; nothing else is taken for one."""
    path = changed(tmp_path, MARCH, ("<Dt>2024-03-20</Dt>", written))

    if DATES[written]:
        assert read_camt053(path, EUR).entries[4].booked_on == date(2024, 3, 20)
    else:
        assert refused(path).problem.endswith("is not a date")


def test_the_previous_closing_may_be_of_the_same_day(tmp_path: Path) -> None:
    """A statement opens on the day after PRCD, or on its own day if it closes on that; never after it has closed."""
    days = ("<Dt>2024-03-31</Dt>", "<Dt>2024-04-30</Dt>")
    read = read_camt053(changed(tmp_path, APRIL, days), EUR, account_number=IBAN)
    assert (read.opens_on, read.closes_on) == (date(2024, 4, 30), date(2024, 4, 30))
    late = changed(tmp_path, APRIL, (days[0], "<Dt>2024-05-01</Dt>"))
    assert refused(late).problem == "it begins on 2024-05-01 and ends on 2024-04-30"


@pytest.mark.parametrize("length", [0, 1, 300, 1500, 4000, -20])
def test_truncated_files_are_refused(tmp_path: Path, length: int) -> None:
    """A file that ends too early is refused, with the place where it ends."""
    path = tmp_path / "cut.xml"
    path.write_bytes(MARCH.read_bytes()[:length])

    error = refused(path)

    assert re.fullmatch(r"line \d+, column \d+" if length else "the file", error.where)


HOSTILE = {
    "external entity": '<!DOCTYPE Document [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    "internal entity": '<!DOCTYPE Document [<!ENTITY x "1000.00">]>',
    "billion laughs": '<!DOCTYPE Document [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY x "&b;&b;&b;&b;">]>',
    "external document type": '<!DOCTYPE Document SYSTEM "http://example.org/camt.dtd">',
}


@pytest.mark.parametrize("how", HOSTILE)
def test_entities_are_refused(tmp_path: Path, how: str) -> None:
    """A document type or an entity is refused where it stands, and nothing that it names is read."""
    declared = HOSTILE[how]
    changes = [("<Document xmlns", f"{declared}\n<Document xmlns")]
    if "ENTITY x" in declared:
        changes.append((">1000.00<", ">&x;<"))

    error = refused(changed(tmp_path, MARCH, *changes))

    assert error.where == "line 3"
    assert "document type or entities" in error.problem
    assert "root:" not in str(error)


def test_pages_must_be_complete(tmp_path: Path) -> None:
    """A statement of which a page is missing, doubled or of another account is refused."""
    text = APRIL.read_text("utf-8")
    cut = text.index("<Stmt>", text.index("<Stmt>") + 1)
    missing = tmp_path / "missing.xml"
    missing.write_text(text[:cut] + "</BkToCstmrStmt></Document>", "utf-8")
    assert "page 1 of statement 2024-04 is not page 1 of 1" in refused(missing).problem

    doubled = changed(tmp_path, APRIL, ("<PgNb>2</PgNb>", "<PgNb>1</PgNb>"))
    assert "put all pages, each once, into one file" in refused(doubled).problem

    first = text[text.index("<Stmt>") : cut].replace(
        "<StmtPgntn><PgNb>1</PgNb><LastPgInd>false</LastPgInd></StmtPgntn>", ""
    )
    twice = tmp_path / "twice.xml"
    twice.write_text(text[: text.index("<Stmt>")] + first * 2 + "</BkToCstmrStmt></Document>", "utf-8")
    assert "statement 2024-04 is in the file twice" in refused(twice).problem


def test_hostile_shapes_are_bounded(tmp_path: Path) -> None:
    """Nesting, elements within an entry and texts have their limits."""
    entry = '<Amt Ccy="EUR">250.00</Amt>'
    for inserted, problem in (
        ("<A>" * 60 + "</A>" * 60, "nested more than 40 deep"),
        ("<A/>" * 200_001, "more than 200,000 elements"),
        ("<A>" + "x" * 10_001 + "</A>", "longer than 10,000 characters"),
    ):
        error = refused(changed(tmp_path, MARCH, (entry, inserted + entry)))
        assert problem in error.problem
        assert "/Ntry[1]" in error.where


def large(path: Path, entries: int) -> Path:
    """A statement of many entries of one cent."""
    text = MARCH.read_text("utf-8")
    head, tail = text[: text.index("<TxsSummry>")], text[text.rindex("</Stmt>") :]
    closing = 100_000 + entries
    head = head.replace("1288.50", f"{closing // 100}.{closing % 100:02}")
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        for number in range(entries):
            file.write(
                f'<Ntry><NtryRef>{number}</NtryRef><Amt Ccy="EUR">0.01</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts>BOOK</Sts>'
                "<BookgDt><Dt>2024-03-02</Dt></BookgDt><BkTxCd><Prtry><Cd>X</Cd></Prtry></BkTxCd>"
                f"<AddtlNtryInf>{'padding ' * 50}</AddtlNtryInf></Ntry>"
            )
        file.write(tail)
    return path


@pytest.mark.campaign
def test_memory_holds_no_more_than_the_entries(tmp_path: Path) -> None:
    """A file is read as a stream: what 10,000 more entries take is in proportion to their XML, and no tree of it."""
    peaks, sizes = [], []
    for entries in (1_000, 11_000):
        path = large(tmp_path / f"{entries}.xml", entries)
        tracemalloc.start()
        assert len(read_camt053(path, EUR).entries) == entries
        peaks.append(tracemalloc.get_traced_memory()[1])
        sizes.append(path.stat().st_size)
        tracemalloc.stop()

    assert 0 < peaks[1] - peaks[0] < (sizes[1] - sizes[0]) * 2
