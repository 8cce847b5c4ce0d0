"""A bundle: what is written is verified, by us and by its own script, and whatever is changed in it is found."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

import pytest
from log import KEY, OTHER
from openssl import TimestampAuthority
from story import BEGUN, LEDGER_ID, commands, feed, note_of, told

from ledger import InvalidCommand, ProofFailed
from ledger.audit.anchors import FileAnchor, timestamp_request
from ledger.audit.archive import FOLDER, Archive, write_archive
from ledger.audit.bundle import Verified, verify_bundle, write_bundle
from ledger.audit.checkpoint import Checkpoint, SigningKey, sign
from ledger.core.book import Stream, with_movement
from ledger.core.chain import Place, leaf_hash, link, sealed
from ledger.core.codec import event_record, transaction_header
from ledger.core.commands import Direction
from ledger.core.events import AssetDefined, EntryPosted, FeedEntry
from ledger.core.merkle import Frontier, consistency_proof

Files: TypeAlias = dict[str, bytes]
Change: TypeAlias = Callable[[Files], None]

TRANSACTIONS: Final = 60
MANUAL: Final = Path(__file__).parents[2] / "docs" / "proof.md"
NEEDED: Final = ("sh", "awk", "jq", "openssl", "sha256sum", "basenc", "split", "tar")


def bundled(folder: Path, entries: list[FeedEntry], name: str = "bundle.tar", **more: object) -> Path:
    """The bundle of a feed."""
    write_bundle(folder / name, LEDGER_ID, entries, note_of(entries), **more)  # type: ignore[arg-type]
    return folder / name


def verified(bundle: Path, key: SigningKey = KEY, roots: bytes | None = None) -> Verified:
    """What `verify-bundle` finds."""
    return verify_bundle(bundle, [key.verifier], roots=roots)


def unpacked(bundle: Path) -> Files:
    """The members of a bundle."""
    with tarfile.open(bundle) as tar:
        return {each.name.removeprefix(FOLDER): tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def packed(folder: Path, files: Files, name: str = "changed.tar") -> Path:
    """A bundle of these members."""
    parts = folder / f"{name}.parts"
    parts.mkdir()
    for number, member in enumerate(files):
        (parts / str(number)).write_bytes(files[member])
    with (folder / name).open("wb") as out:
        write_archive(out, {member: parts / str(number) for number, member in enumerate(files)})
    return folder / name


def by_hand(bundle: Path, *keys: SigningKey, roots: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Do what the bundle's own instructions say, with a shell."""
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: a bundle is checked by hand with them")
    folder = bundle.with_suffix(".unpacked")
    folder.mkdir()
    shutil.copy(bundle, folder / "BUNDLE")
    names = []
    for number, key in enumerate(keys or (KEY,)):
        names.append(f"KEY{number}")
        (folder / names[-1]).write_text(f"{key.verifier}\n", "utf-8")
    (folder / "ROOTS").write_bytes(roots or b"")
    text = unpacked(bundle)["README.md"].decode()
    instructions = "\n".join(re.findall(r"^ {4}(.+)$", text, re.MULTILINE))
    assert instructions.split() == ["tar", "xf", "BUNDLE", "sh", "ledger-bundle/verify.sh", "KEY...", "[ROOTS]"]
    given = instructions.replace("KEY...", " ".join(names)).replace("[ROOTS]", "ROOTS" if roots else "")
    script = f"set -e\n{given}"
    return subprocess.run(["sh", "-c", script], cwd=folder, check=False, capture_output=True, text=True, timeout=600)  # noqa: S607


@pytest.fixture(scope="module")
def entries() -> list[FeedEntry]:
    """A feed in which everything happens once."""
    return feed(TRANSACTIONS)


@pytest.fixture(scope="module")
def sound(entries: list[FeedEntry], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The members of its bundle."""
    return unpacked(bundled(tmp_path_factory.mktemp("sound"), entries))


def test_a_bundle_is_verified(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """What was written is found sound, by us and by hand, and both say of how much."""
    bundle = bundled(tmp_path, entries)
    found = verified(bundle)

    assert (found.checkpoint.size, found.ledger_id) == (len(entries), LEDGER_ID)
    assert found.counts["transactions"] == TRANSACTIONS
    assert found.counts["events"] == len(entries)
    done = by_hand(bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"OK: {len(entries)} events of ledger {LEDGER_ID}"


def test_the_same_position_gives_the_same_bytes(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """Whoever makes a bundle of a checkpoint, and when, makes the same file."""
    first = bundled(tmp_path, entries, "first.tar").read_bytes()

    longer = feed(TRANSACTIONS + 5)
    write_bundle(tmp_path / "second.tar", LEDGER_ID, longer, note_of(entries))

    assert (tmp_path / "second.tar").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar", "second.tar"]


def test_amounts_beyond_floating_point_are_exact(sound: Files) -> None:
    """Reports and exports have every digit; a program that adds floating-point numbers loses some of them."""
    accounts = {each["account"]: each for each in json.loads(sound["reports/accounts.json"])}
    credits = int(accounts["a"]["posted_credits"])

    assert credits == (2**53 + 1) * 10**15 + 1
    assert int(float(credits)) != credits
    assert f"a,liability,PTS,open,0,{credits},0,0,{credits}\n" in sound["exports/balances.csv"].decode()


def test_one_unit_of_a_huge_amount_is_missed(tmp_path: Path, sound: Files) -> None:
    """A report that differs in the last of 31 digits is found, by hand too."""
    credits = str((2**53 + 1) * 10**15 + 1)
    files = dict(sound)
    name = "reports/accounts.json"
    files[name] = files[name].replace(credits.encode(), (credits[:-1] + "2").encode())
    bundle = packed(tmp_path, with_manifest(files))

    with pytest.raises(ProofFailed, match=r"reports/accounts\.json"):
        verified(bundle)
    assert "reports/accounts.json is not what" in by_hand(bundle).stderr


def with_manifest(files: Files) -> Files:
    """The members, with a manifest that fits them: whoever changes a bundle can do that."""
    lines = (f"{sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files) if name != "manifest")
    return {**files, "manifest": "".join(lines).encode()}


def resigned(files: Files) -> Files:
    """The members, with a checkpoint that fits the records, signed with somebody else's key of the same name."""
    frontier = Frontier()
    frontier.extend(map(leaf_hash, files["records.jsonl"].splitlines()))
    note = sign(Checkpoint(KEY.name, frontier.size, frontier.root()), SigningKey(KEY.name, OTHER.seed))
    return with_manifest({**files, "checkpoint": note})


def on_line(name: str, number: int, change: Callable[[bytes], bytes]) -> Change:
    """Change one line of a member; the last one is 0."""

    def changed(files: Files) -> None:
        lines = files[name].splitlines(keepends=True)
        before = lines[number - 1]
        lines[number - 1] = change(before)
        assert lines[number - 1] != before
        files[name] = b"".join(lines)

    return changed


def replaced(name: str, old: bytes, new: bytes) -> Change:
    """Change the first place of a member that says something."""

    def changed(files: Files) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return changed


def other_digit(digit: re.Match[bytes]) -> bytes:
    """One more."""
    return b"%d" % ((int(digit[0]) + 1) % 10)


def swapped(name: str, number: int) -> Change:
    """Swap a line with the next one."""

    def changed(files: Files) -> None:
        lines = files[name].splitlines(keepends=True)
        lines[number - 1 : number + 1] = lines[number : number - 2 : -1]
        files[name] = b"".join(lines)

    return changed


def dropped_last(files: Files) -> None:
    """Leave the last transaction out, everywhere."""
    lines = {name: files[name].splitlines(keepends=True) for name in FILES}
    files |= {name: b"".join(lines[name][: -1 if name == "transactions.jsonl" else -2]) for name in FILES}


def another_size(files: Files) -> None:
    """A checkpoint of the same log when it was smaller, duly signed."""
    frontier = Frontier()
    frontier.extend(map(leaf_hash, files["records.jsonl"].splitlines()[:-2]))
    files["checkpoint"] = sign(Checkpoint(KEY.name, frontier.size, frontier.root()), KEY)


FILES: Final = ("records.jsonl", "payloads.jsonl", "transactions.jsonl")

CHANGES: Final[dict[str, tuple[Change, str]]] = {
    "a record's amount": (
        on_line("records.jsonl", 60, lambda line: re.sub(rb'"amount":"\d+"', b'"amount":"9"', line)),
        "Line 60 of records.jsonl",
    ),
    "a record's direction": (
        on_line("records.jsonl", 60, lambda line: re.sub(rb'n":"(debit|credit)"', b'n":"sideways"', line)),
        "Line 60 of records.jsonl",
    ),
    "a record's time": (
        on_line("records.jsonl", 60, lambda line: line.replace(b'"recorded_at":"2026', b'"recorded_at":"2025')),
        "Line 60 of records.jsonl",
    ),
    "a record's numbers": (
        on_line("records.jsonl", 60, lambda line: re.sub(rb'(posted_\w+":)"\d+"', rb'\1"1"', line)),
        "Line 60 of records.jsonl",
    ),
    "a record's version": (
        on_line("records.jsonl", 60, lambda line: re.sub(rb'"version":\d+', b'"version":99', line)),
        "Line 60 of records.jsonl",
    ),
    "a record's link": (
        on_line("records.jsonl", 60, lambda line: re.sub(rb'"prev":"\w{8}', b'"prev":"00000000', line)),
        "Line 60 of records.jsonl",
    ),
    "a record written otherwise": (
        on_line("records.jsonl", 60, lambda line: line.replace(b'":', b'": ', 1)),
        "Line 60 of records.jsonl",
    ),
    "a record that is no JSON": (on_line("records.jsonl", 60, lambda line: line[1:]), "Line 60 of records.jsonl"),
    "a record that is an empty list": (on_line("records.jsonl", 60, lambda _: b"[]\n"), "Line 60 of records.jsonl"),
    "records dropped": (on_line("records.jsonl", 60, lambda _: b""), "Line 60 of"),
    "records doubled": (on_line("records.jsonl", 60, lambda line: line + line), "Line 61 of"),
    "records swapped": (swapped("records.jsonl", 60), "Line 60 of"),
    "a payload": (on_line("payloads.jsonl", 60, lambda _: b'{"entry":7}\n'), "Line 60 of payloads.jsonl"),
    "payloads dropped": (on_line("payloads.jsonl", 60, lambda _: b""), "of payloads.jsonl"),
    "a payload too many": (replaced("payloads.jsonl", b"", b"{}\n"), "Line 1 of payloads.jsonl"),
    "a transaction's actor": (
        on_line("transactions.jsonl", 30, lambda line: line.replace(b'"somebody"', b'"nobody"')),
        "line 30 of transactions.jsonl",
    ),
    "a transaction dropped": (on_line("transactions.jsonl", 30, lambda _: b""), "line 30 of transactions.jsonl"),
    "transactions swapped": (swapped("transactions.jsonl", 30), "line 30 of transactions.jsonl"),
    "a transaction that is no JSON": (
        on_line("transactions.jsonl", 30, lambda _: b"null\n"),
        "Line 30 of transactions.jsonl",
    ),
    "the last transaction left out": (dropped_last, "exports/journal.csv"),
    "a checkpoint of another size": (another_size, "exports/journal.csv|records.jsonl"),
    "a checkpoint's size": (replaced("checkpoint", b"\n1", b"\n2"), "The note"),
    "a checkpoint's root": (on_line("checkpoint", 3, lambda _: b"A" * 43 + b"=\n"), "The note"),
    "another ledger": (replaced("ledger.json", b"5f0c", b"6f0c"), "Line 1 of records.jsonl"),
    "a balance": (replaced("exports/balances.csv", b",open,", b",closed,"), "Line 2 of exports/balances.csv"),
    "the journal": (replaced("exports/journal.csv", b",1.25,", b",1.26,"), r"Line \d+ of exports/journal.csv"),
    "an entry for hledger": (
        replaced("exports/journal.hledger", b"  1.25 ", b"  1.26 "),
        r"Line \d+ of exports/journal.hledger",
    ),
    "a balance for hledger": (
        on_line("exports/journal.hledger", 0, lambda line: re.sub(rb'\d(?= "PTS"\n)', other_digit, line)),
        r"Line \d+ of exports/journal.hledger",
    ),
    "a balance for beancount": (
        on_line("exports/journal.beancount", 0, lambda line: re.sub(rb"\d(?= ~)", other_digit, line)),
        r"Line \d+ of exports/journal.beancount",
    ),
    "an end of the journal": (lambda files: drop_end(files, "exports/journal.csv"), "exports/journal.csv"),
    "an account": (replaced("reports/accounts.json", b'"open"', b'"frozen"'), "Line 2 of reports/accounts.json"),
    "the trial balance": (
        replaced("reports/trial-balance.json", b'"debits":"0"', b'"debits":"1"'),
        r"Line \d of reports/trial-balance.json",
    ),
    "the counts": (replaced("reports/verification.json", b'"streams":1', b'"streams":2'), "reports/verification.json"),
}


def drop_end(files: Files, name: str) -> None:
    """Leave out the last line of a member."""
    files[name] = b"".join(files[name].splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("what", CHANGES)
def test_changes_are_found_and_named(what: str, sound: Files, tmp_path: Path) -> None:
    """Whatever is changed in a bundle is found with its place by us, and by hand, whether or not its manifest fits."""
    change, place = CHANGES[what]
    files = dict(sound)
    change(files)
    fitting = packed(tmp_path, with_manifest(files), "fitting.tar")

    with pytest.raises(ProofFailed) as failed:
        verified(fitting)
    assert re.search(place, str(failed.value)), str(failed.value)
    with pytest.raises(ProofFailed):
        verified(packed(tmp_path, files, "careless.tar"))
    done = by_hand(fitting)
    assert done.returncode != 0
    assert "OK" not in done.stdout
    assert done.stderr


def test_the_manifest_and_the_instructions_are_checked(sound: Files, tmp_path: Path) -> None:
    """A manifest that names another hash is found; so is a script that is not ours, which by hand one has to read."""
    manifest = {**sound, "manifest": b"0" + sound["manifest"][1:]}
    careless = packed(tmp_path, manifest, "manifest.tar")
    with pytest.raises(ProofFailed, match="Line 1 of manifest"):
        verified(careless)
    assert by_hand(careless).returncode != 0

    with pytest.raises(ProofFailed, match=r"Line 2 of verify\.sh"):
        verified(packed(tmp_path, with_manifest({**sound, "verify.sh": b"#!/bin/sh\necho OK\n"}), "script.tar"))


def test_only_the_key_that_was_given_counts(sound: Files, tmp_path: Path) -> None:
    """A bundle signed with another key, of the same name or not, is found, by us and by hand."""
    bundle = packed(tmp_path, resigned(dict(sound)))
    with pytest.raises(ProofFailed, match="The note"):
        verified(bundle)
    assert "FAILED: the checkpoint is not signed with any of the keys" in by_hand(bundle).stderr

    honest = packed(tmp_path, sound, "honest.tar")
    with pytest.raises(ProofFailed, match="The note"):
        verified(honest, OTHER)
    assert by_hand(honest, OTHER).returncode != 0


def test_false_books_are_found_though_they_are_signed(tmp_path: Path) -> None:
    """A transaction that does not balance is found though the ledger itself has signed it, and is not written."""
    lines = [*islice(commands(), 10), [EntryPosted("alice", Direction.CREDIT, "USD", 100, 0)]]
    entries = [*told(lines)]

    with pytest.raises(ProofFailed, match=r"Line 11 of transactions\.jsonl.*differ in USD \(posted\) by -100"):
        bundled(tmp_path, entries)
    assert list(tmp_path.iterdir()) == []


def signed(files: Files) -> Files:
    """The members, with a checkpoint of their records that is signed with the ledger's own key."""
    frontier = Frontier()
    frontier.extend(map(leaf_hash, files["records.jsonl"].splitlines()))
    return with_manifest({**files, "checkpoint": sign(Checkpoint(KEY.name, frontier.size, frontier.root()), KEY)})


SIGNED: Final = {
    "a record's amount": "line 60 of records.jsonl: its numbers are not what the events of",
    "a record's time": "line 60 of records.jsonl: it is not of line",
    "a record's numbers": "line 60 of records.jsonl: its numbers are not what the events of",
    "a record's version": "line 60 of records.jsonl: its transaction does not announce",
    "a record's link": "line 60 of records.jsonl: prev is not the hash of the event before it",
    "records swapped": "line 60 of records.jsonl",
    "a payload": "line 60 of records.jsonl: the same line of payloads.jsonl is not its payload",
    "a transaction's actor": "of records.jsonl: it is not of line 30 of transactions.jsonl",
    "a transaction dropped": "of records.jsonl: it is not of line 30 of transactions.jsonl",
    "another ledger": "line 1 of records.jsonl: prev is not the hash",
    "a balance": "exports/balances.csv is not what the records come to",
    "the journal": "exports/journal.csv is not what the records come to",
    "the trial balance": "reports/trial-balance.json is not what the records come to",
    "the counts": "reports/verification.json is not what the records come to",
}


@pytest.mark.parametrize("what", SIGNED)
def test_what_is_false_is_found_though_it_is_signed(what: str, sound: Files, tmp_path: Path) -> None:
    """Behind a root and a signature that fit, the script finds what does not follow, and says where."""
    files = dict(sound)
    CHANGES[what][0](files)
    bundle = packed(tmp_path, signed(files))

    with pytest.raises(ProofFailed):
        verified(bundle)
    assert SIGNED[what] in by_hand(bundle).stderr


def continued(entries: list[FeedEntry], *events: EntryPosted, skipped: int = 0) -> list[FeedEntry]:
    """The feed with a transaction that no rule has seen; its versions may leave some out."""
    places: list[Place] = []
    for event in events:
        last = [entry.event for entry in entries if entry.event.stream == event.account][-1]
        assert last.numbers is not None
        stream = Stream(last.stream, last.version + 1 + skipped, with_movement(last.numbers, event), last.event_hash)
        places.append((stream, stream.version, stream.numbers))
    streams, versions = [stream.stream for stream, *_ in places], [version for _, version, _ in places]
    now = entries[-1].event.recorded_at + timedelta(seconds=1)
    fields = (str(UUID(int=999)), "post", "", None, "{}", len(events), tuple(streams), tuple(versions), None, now, now)
    transaction = sealed(*fields, None, None, None, None)
    recorded = link(transaction, events, places, LEDGER_ID)
    return [*entries, *(FeedEntry(len(entries) + n, each, transaction) for n, each in enumerate(recorded, 1))]


CREDIT, DEBIT = Direction.CREDIT, Direction.DEBIT
FALSE: Final = {
    "out of balance": ((EntryPosted("alice", CREDIT, "USD", 100, 0),), 0, "debits and credits of transaction"),
    "out of balance by one": (
        (EntryPosted("a", CREDIT, "PTS", 10**30 + 1, 0), EntryPosted("points", DEBIT, "PTS", 10**30, 1)),
        0,
        "debits and credits of transaction",
    ),
    "a version left out": (
        (EntryPosted("alice", CREDIT, "USD", 1, 0), EntryPosted("world", DEBIT, "USD", 1, 1)),
        1,
        "before version",
    ),
    "another asset": (
        (EntryPosted("a", CREDIT, "USD", 1, 0), EntryPosted("world", DEBIT, "USD", 1, 1)),
        0,
        "is no account in USD",
    ),
    "nothing": ((EntryPosted("alice", CREDIT, "USD", 1, 0), EntryPosted("world", DEBIT, "USD", 1, 1)), 0, ""),
}


@pytest.mark.parametrize("what", FALSE)
def test_what_no_rule_allows_is_found(what: str, entries: list[FeedEntry], sound: Files, tmp_path: Path) -> None:
    """A transaction that is out of balance by one unit, or leaves a version out, is found behind fitting hashes."""
    events, skipped, problem = FALSE[what]
    false = continued(entries, *events, skipped=skipped)
    new = false[len(entries) :]
    if not problem:
        assert by_hand(bundled(tmp_path, false)).returncode == 0
        return
    with pytest.raises(ProofFailed):
        bundled(tmp_path, false, "refused.tar")

    lines = {
        "records.jsonl": [event_record(each.transaction.header_hash.hex(), *each.event[:-1]) for each in new],
        "payloads.jsonl": [each.event.payload.encode() for each in new],
        "transactions.jsonl": [transaction_header(*new[0].transaction[:-1])],
    }
    files = {**sound, **{name: sound[name] + b"".join(line + b"\n" for line in lines[name]) for name in lines}}
    bundle = packed(tmp_path, signed(files))
    with pytest.raises(ProofFailed, match=r"Line \d+ of (records|transactions)\.jsonl"):
        verified(bundle)
    found = by_hand(bundle)
    assert re.search(rf"FAILED: line \d+ of records\.jsonl: .*{problem}", found.stderr), found.stderr


def test_another_history_is_found_though_all_of_it_fits(sound: Files, tmp_path: Path) -> None:
    """A history that is lawful, with reports, exports and a manifest of its own, is not that of the checkpoint."""
    other = [*told([[AssetDefined("PTS", 0), AssetDefined("USD", 2)], *islice(commands(), 1, TRANSACTIONS)])]
    shorter = feed(TRANSACTIONS - 1)
    for name, entries, problem in (
        ("other", other, "do not have the root that the checkpoint names"),
        ("shorter", shorter, f"it has {len(shorter)} lines, and the checkpoint is of {len(other)} records"),
    ):
        files = unpacked(bundled(tmp_path, entries, f"{name}.honest.tar"))
        forged = packed(tmp_path, with_manifest({**files, "checkpoint": sound["checkpoint"]}), f"{name}.tar")
        with pytest.raises(ProofFailed, match=f"records.jsonl.*{problem}"):
            verified(forged)
        assert "FAILED: records.jsonl has" in by_hand(forged).stderr


def members(bundle: bytes) -> Iterator[tuple[int, int, str]]:
    """Where each member begins and ends, and its name."""
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        for each in tar:
            yield each.offset, each.offset_data + -(-each.size // 512) * 512, each.name.removeprefix(FOLDER)


def test_files_that_are_no_bundle_are_refused(sound: Files, tmp_path: Path) -> None:
    """Doubled, missing, moved, foreign and hostile members, and files cut at any place, are clear errors."""
    good = packed(tmp_path, sound, "good.tar").read_bytes()
    places = [*members(good)]
    begin, end, _ = places[0]
    header = tarfile.TarInfo(FOLDER + "../../etc/passwd").tobuf(tarfile.USTAR_FORMAT)
    link = tarfile.TarInfo(FOLDER + "checkpoint")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    huge = tarfile.TarInfo(FOLDER + "a")
    huge.mode, huge.size = 0o644, 8**11 - 1
    extended = tarfile.TarInfo(FOLDER + "a" * 200).tobuf(tarfile.PAX_FORMAT)
    hidden = bytearray(good)
    hidden[end - 1] = 1
    broken = {
        "doubled": good[:end] + good[begin:end] + good[end:],
        "out of order": good[end : places[1][1]] + good[begin:end] + good[places[1][1] :],
        "outside": header + good,
        "link": link.tobuf(tarfile.USTAR_FORMAT) + good,
        "huge": huge.tobuf(tarfile.USTAR_FORMAT) + good,
        "extension": extended + good,
        "missing": good[end:],
        "something behind": good + b"x" * 512,
        "zeros behind": good + bytes(512),
        "padding": bytes(hidden),
        "empty": b"",
        "zeros": bytes(10_240),
        "text": b"no bundle at all\n" * 100,
        **{
            f"cut at {at}": good[:at]
            for at in (1, 511, 513, end - 1, end, len(good) // 2, len(good) - 512, len(good) - 1)
        },
    }
    for name, content in broken.items():
        (tmp_path / "broken.tar").write_bytes(content)
        with pytest.raises(ProofFailed, match="The bundle"):
            pytest.fail(f"{name}: {verified(tmp_path / 'broken.tar')}")
    foreign = packed(tmp_path, with_manifest({**sound, "extra": b"x\n"}), "foreign.tar")
    with pytest.raises(ProofFailed, match="'extra' does not belong in it"):
        verified(foreign)
    assert "FAILED: the manifest names a file that no bundle has" in by_hand(foreign).stderr
    unnamed = packed(tmp_path, {**sound, "reports/profit.json": b"{}\n"}, "unnamed.tar")
    assert "FAILED: the files are not those that the manifest names" in by_hand(unnamed).stderr
    with pytest.raises(FileNotFoundError):
        verified(tmp_path / "none.tar")


def test_any_tar_reads_it_and_members_are_what_they_were(sound: Files, tmp_path: Path) -> None:
    """Reading part by part gives what was packed, and a small member that is large is refused."""
    archive = Archive(packed(tmp_path, sound))
    for name in archive.names:
        with archive.open(name) as member:
            assert member.read() == sound[name]
    with pytest.raises(ProofFailed, match=r"records\.jsonl.*of 10 allowed"):
        archive.read("records.jsonl", 10)
    with pytest.raises(ProofFailed, match="nothing is missing in it"):
        archive.open("nothing")


def test_what_cannot_become_a_bundle_is_refused(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """A file that exists, nothing, a half transaction, and records that are not the checkpoint's leave no file."""
    bundled(tmp_path, entries)
    with pytest.raises(InvalidCommand, match="it exists"):
        bundled(tmp_path, entries)
    with pytest.raises(InvalidCommand, match="it is of no record"):
        bundled(tmp_path, [], "empty.tar")
    with pytest.raises(InvalidCommand, match="it ends within transaction"):
        bundled(tmp_path, entries[:-1], "half.tar")
    with pytest.raises(ProofFailed, match=r"records\.jsonl.*and the checkpoint is of"):
        write_bundle(tmp_path / "short.tar", LEDGER_ID, entries[:-2], note_of(entries))
    forged = sign(Checkpoint(KEY.name, len(entries), bytes(32)), KEY)
    with pytest.raises(ProofFailed, match="do not have the root"):
        write_bundle(tmp_path / "forged.tar", LEDGER_ID, entries, forged)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.tar"]


def test_no_line_has_a_newline_in_it(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """A payload that somebody wrote otherwise, with a newline, is refused with its place before anything is written."""
    first, second, *rest = entries
    broken = second._replace(event=second.event._replace(payload='{"asset":"USD",\n"scale":2}'))

    with pytest.raises(ProofFailed, match=r"\$ledger version 2.*there is a newline in it"):
        bundled(tmp_path, [first, broken, *rest])
    assert list(tmp_path.iterdir()) == []


def anchor_of(path: Path, entries: list[FeedEntry], *sizes: int) -> Path:
    """An anchor file with the checkpoints of a feed at these sizes."""
    anchor, last = FileAnchor(path, [KEY.verifier]), 0
    for size in sizes:
        leaves = [entry.event.event_hash for entry in entries[:size]]

        def subtree(level: int, index: int, leaves: list[bytes] = leaves) -> bytes:
            part = Frontier()
            part.extend(leaves[index << level : (index + 1) << level])
            return part.root()

        anchor.record(note_of(entries[:size]), consistency_proof(last, size, subtree) if last else [])
        last = size
    return path


def test_anchors_must_be_of_these_records(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """Earlier checkpoints that somebody else kept are verified against the records, and another history is found."""
    kept = anchor_of(tmp_path / "kept", entries, 20, 33, len(entries))
    with kept.open("ab") as file:
        file.write(b'{"checkpoint": "cut by a cra')
    found = verified(bundled(tmp_path, entries, anchors=[kept]))
    assert [each.size for each in found.anchored] == [len(entries)]
    done = by_hand(tmp_path / "bundle.tar")
    assert f"its checkpoint of {len(entries)} records is of these" in done.stdout

    other = [*told([[AssetDefined("EUR", 2), AssetDefined("PTS", 0)], *islice(commands(), 1, 40)])]
    forged = anchor_of(tmp_path / "forged", other, 20, 33)
    bundle = bundled(tmp_path, entries, "forged.tar", anchors=[kept, forged])
    with pytest.raises(ProofFailed, match=r"anchors/02\.jsonl.*its checkpoint of 20 records"):
        verified(bundle)
    assert "line 2 of anchors/02.jsonl has a checkpoint of 33 records that are not these" in by_hand(bundle).stderr


def test_what_a_former_key_has_signed_is_verified(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """After a key was replaced both keys are given, to us and by hand, in any order; one alone does not do."""
    new = SigningKey(KEY.name, OTHER.seed)
    kept = anchor_of(tmp_path / "kept", entries, 20, 33)
    bundle = tmp_path / "bundle.tar"
    write_bundle(bundle, LEDGER_ID, entries, note_of(entries, new), anchors=[kept])

    assert verify_bundle(bundle, [new.verifier, KEY.verifier]).anchored[0].size == 33
    for keys in ((new, KEY), (KEY, new)):
        done = by_hand(bundle, *keys)
        assert (done.returncode, done.stderr) == (0, "")
        assert "its checkpoint of 33 records is of these" in done.stdout
        shutil.rmtree(bundle.with_suffix(".unpacked"))
    with pytest.raises(ProofFailed, match=r"Line 1 of anchors/01\.jsonl.*none of the keys"):
        verified(bundle, new)
    done = by_hand(bundle, new)
    assert done.stderr == "FAILED: the checkpoint in line 2 of anchors/01.jsonl is not signed with any of the keys\n"


ANCHOR: Final = "anchors/01.jsonl"
NESTED: Final = b"[" * 200_000 + b"\n"
DAMAGED: Final[dict[str, tuple[Change, str, str]]] = {
    "empty": (
        lambda files: files.update({ANCHOR: b""}),
        f"{ANCHOR} does not hold: there is",
        f"{ANCHOR} has no checkpoint",
    ),
    "garbage": (lambda files: files.update({ANCHOR: b"garbage\n"}), f"Line 1 of {ANCHOR}", f"line 1 of {ANCHOR}"),
    "nested": (lambda files: files.update({ANCHOR: NESTED}), f"Line 1 of {ANCHOR}", f"line 1 of {ANCHOR}"),
    "its second line": (on_line(ANCHOR, 2, lambda line: line[1:]), f"Line 2 of {ANCHOR}", f"line 2 of {ANCHOR}"),
    "cut short": (on_line(ANCHOR, 2, lambda line: line[:40] + b"\n"), f"Line 2 of {ANCHOR}", f"line 2 of {ANCHOR}"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_anchor_is_found(what: str, tmp_path: Path, entries: list[FeedEntry]) -> None:
    """Whole lines are all that a bundle has of an anchor: any other is found and named, by us and by hand."""
    change, ours, theirs = DAMAGED[what]
    kept = anchor_of(tmp_path / "kept", entries, 20, 33)
    files = unpacked(bundled(tmp_path, entries, anchors=[kept]))
    change(files)
    bundle = packed(tmp_path, with_manifest(files))

    with pytest.raises(ProofFailed, match=ours):
        verified(bundle)
    assert f"FAILED: {theirs}" in by_hand(bundle).stderr


@pytest.mark.parametrize("content", [b"", b'{"checkpoint": "cut by a cra', note_of(feed(3)), NESTED, b"text\n"])
def test_a_file_that_is_no_anchor_does_not_get_into_a_bundle(
    content: bytes, tmp_path: Path, entries: list[FeedEntry]
) -> None:
    """Nothing is written with an anchor that is empty, or another file."""
    (tmp_path / "kept").write_bytes(content)
    with pytest.raises((InvalidCommand, ProofFailed), match=r"kept.*(there is|it is) no checkpoint"):
        bundled(tmp_path, entries, anchors=[tmp_path / "kept"])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["ledger.json", *FILES])
def test_nesting_without_end_is_found(name: str, sound: Files, tmp_path: Path) -> None:
    """What no parser can follow is a line that is wrong, and no error of ours."""
    files = dict(sound)
    on_line(name, 1, lambda _: NESTED)(files)
    with pytest.raises(ProofFailed, match=name):
        verified(packed(tmp_path, with_manifest(files)))


def test_the_script_needs_a_key(sound: Files, tmp_path: Path) -> None:
    """Without any key, and with certificates alone, nothing is checked; a file that is not there is named."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "verify.sh").write_bytes(sound["verify.sh"])
    (folder / "roots").write_text("-----BEGIN CERTIFICATE-----\n", "utf-8")
    for given, problem in (([], "a verifier key is needed"), (["roots"], "key is needed"), (["none"], "none cannot")):
        done = subprocess.run(
            ["sh", "verify.sh", *given],  # noqa: S607
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert problem in done.stderr


def test_timestamps_are_verified_with_the_certificates_given(tmp_path: Path, entries: list[FeedEntry]) -> None:
    """A timestamp of this checkpoint is verified, of another it is found; without certificates nothing is said."""
    authority = TimestampAuthority(tmp_path / "authority")
    for name, signed in (("c.tsr", entries), ("other.tsr", entries[:-2])):
        (tmp_path / name).write_bytes(authority(timestamp_request(note_of(signed))))
    good = bundled(tmp_path, entries, "good.tar", timestamps=[tmp_path / "c.tsr"])
    bad = bundled(tmp_path, entries, "bad.tar", timestamps=[tmp_path / "other.tsr"])

    assert (verified(good).timestamps, verified(good).unchecked) == ((), ("timestamps/01.tsr",))
    (at,) = verified(good, roots=authority.roots).timestamps
    assert at > BEGUN
    done = by_hand(good, roots=authority.roots)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProofFailed, match=r"timestamps/01\.tsr"):
        verified(bad, roots=authority.roots)
    assert "timestamps/01.tsr is no timestamp of the checkpoint" in by_hand(bad, roots=authority.roots).stderr


def test_the_manual_names_the_script(sound: Files) -> None:
    """Who compares the script of a bundle with what the ledger is published with finds its hash there."""
    assert sha256(sound["verify.sh"]).hexdigest() in MANUAL.read_text("utf-8")


@pytest.mark.parametrize(
    "events", [5_000, pytest.param(70_000, marks=pytest.mark.campaign)], ids=["some", "seventy-thousand"]
)
def test_large_bundles_are_checked_by_hand(events: int, tmp_path: Path) -> None:
    """A bundle of 70,000 events is checked with `openssl`, `sha256sum` and `jq`, following its own instructions."""
    entries = feed(events // 2)
    assert len(entries) >= events
    bundle = bundled(tmp_path, entries)

    assert verified(bundle).counts["events"] == len(entries)
    done = by_hand(bundle)
    assert (done.returncode, done.stderr) == (0, "")
