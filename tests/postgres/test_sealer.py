"""The sealer: what it signs can be proved, and it signs nothing that does not extend what it signed before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from proxy import Fault, FaultyProxy, Point
from sqlalchemy import make_url

from ledger import ConcurrencyError, ConnectionLost, CorruptLog, InvalidCommand, Ledger, ProofFailed, Transfer
from ledger.audit.anchors import FileAnchor
from ledger.audit.checkpoint import SigningKey, open_checkpoint
from ledger.audit.inclusion import InclusionProof
from ledger.audit.tiles import LogFolder
from ledger.core.commands import build
from ledger.core.merkle import Frontier, verify_consistency
from ledger.storage import leases
from ledger.storage.tree import SEALER

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]

NAME: Final = "example.org/ledger"
POINTS_MAX: Final = 60


@pytest.fixture
def key() -> SigningKey:
    """A key outside of the database."""
    return SigningKey.generate(NAME)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The file beside the key."""
    return tmp_path / "sealer.key.checkpoint"


def grown(ledger: Ledger, transfers: int) -> None:
    """Two more events in the feed for each transfer."""
    ledger.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(transfers)])
    while ledger.stamp():
        pass


def root_of(ledger: Ledger, size: int) -> bytes:
    """The root over the hashes of the feed, without any tile."""
    frontier = Frontier()
    frontier.extend(entry.event.event_hash for entry in ledger.feed(limit=size))
    assert frontier.size == size
    return frontier.root()


def test_an_empty_ledger_has_nothing_to_seal(ledger: Ledger, key: SigningKey, state: Path) -> None:
    """Nothing is signed where nothing was stamped, and whoever asks for a checkpoint is told what to do."""
    assert ledger.seal(key, state=state) is None
    assert not state.exists()
    with pytest.raises(InvalidCommand, match="nothing was sealed yet"):
        ledger.checkpoint()


def test_seal_signs_what_was_stamped(funded: Ledger, key: SigningKey, state: Path) -> None:
    """The checkpoint is of the whole feed, in the database and in the file; nothing new is no new checkpoint."""
    assert funded.seal(key, state=state) is None
    funded.stamp()
    sealed = funded.seal(key, state=state)
    assert sealed is not None
    assert (sealed.size, sealed.root) == (8, root_of(funded, 8))
    opened = open_checkpoint(sealed.note, [key.verifier])
    assert (opened.origin, opened.size, opened.root) == (NAME, sealed.size, sealed.root)
    assert state.read_bytes() == sealed.note
    assert funded.checkpoint() == funded.checkpoint(8) == sealed
    assert funded.seal(key, state=state) is None


def test_every_event_can_be_proved(funded: Ledger, key: SigningKey) -> None:
    """By each checkpoint that covers it: at the edges of tiles, in full ones, and in levels above the first."""
    sizes = []
    for transfers in (124, 1, 130, 400):
        grown(funded, transfers)
        sealed = funded.seal(key)
        assert sealed is not None
        sizes.append(sealed.size)
    assert sizes == [256, 258, 518, 1_318]
    for size in sizes:
        note = funded.checkpoint(size).note
        assert funded.checkpoint(size).root == root_of(funded, size)
        for position in {1, 2, 255, 256, 257, 258, 512, 513, size - 1, size}:
            if position > size:
                with pytest.raises(ProofFailed):
                    funded.prove_position(position, note=note)
            else:
                proof = InclusionProof.parse(funded.prove_position(position, note=note).to_bytes())
                assert proof.verify([key.verifier]).size == size
    (entry,) = funded.feed(after=299, limit=1)
    assert funded.prove(entry.event.stream, entry.event.version) == funded.prove_position(300)


@pytest.mark.campaign
def test_the_levels_above_are_kept(funded: Ledger, key: SigningKey, psql: Psql) -> None:
    """Beyond 65,536 events there is a full tile of the first level above the leaves, and proofs go by it."""
    sealer = funded.sealer(key)
    for _ in range(8):
        grown(funded, 4_100)
    while sealer.step():
        pass
    sealer.close()
    counts = psql.execute("SELECT level, count(*) FROM tree_tiles GROUP BY level ORDER BY level").fetchall()
    assert counts == [(0, 256), (1, 1)]
    for position in (1, 65_536, 65_537, 65_608):
        assert funded.prove_position(position).verify([key.verifier]).size == 65_608
    assert funded.checkpoint().root == root_of(funded, 65_608)


def test_checkpoints_extend_each_other(funded: Ledger, key: SigningKey, tmp_path: Path) -> None:
    """Between any two the proof holds, and an anchor takes them without any exported log."""
    anchor = FileAnchor(tmp_path / "anchor", [key.verifier])
    old = None
    for transfers in (10, 130, 3):
        grown(funded, transfers)
        new = funded.seal(key)
        assert new is not None
        proof: list[bytes] = [] if old is None else funded.extension(old.size, new.size)
        if old is not None:
            assert verify_consistency(old.size, new.size, proof, old.root, new.root)
        anchor.record(new.note, proof)
        old = new
    assert [each.size for each in anchor.verify()] == [28, 288, 294]
    with pytest.raises(InvalidCommand):
        funded.extension(294, 28)


def test_the_log_is_exported(funded: Ledger, key: SigningKey, tmp_path: Path) -> None:
    """A folder of tiles, of the last checkpoint or of an earlier one, that verifies by itself."""
    for transfers in (10, 200):
        grown(funded, transfers)
        funded.seal(key)
    assert funded.export_log(tmp_path / "now").size == 428
    assert LogFolder(tmp_path / "now").verify([key.verifier]).root == root_of(funded, 428)
    assert funded.export_log(tmp_path / "then", note=funded.checkpoint(28).note).size == 28
    assert LogFolder(tmp_path / "then").verify([key.verifier]).root == root_of(funded, 28)


def test_a_backlog_is_sealed_in_steps(funded: Ledger, key: SigningKey) -> None:
    """Each step takes so many events, and the tree is that of all of them together."""
    grown(funded, 300)
    sealer = funded.sealer(key)
    sealer._limit = 100  # noqa: SLF001
    sizes = []
    while (sealed := sealer.step()) is not None:
        sizes.append(sealed.size)
        assert sealed.root == root_of(funded, sealed.size)
    sealer.close()
    assert sizes == [100, 200, 300, 400, 500, 600, 608]


def test_two_sealers(funded: Ledger, ledger_url: str, key: SigningKey) -> None:
    """One has the lease; the other takes over when it is let go, reads what was sealed meanwhile, and goes on."""
    funded.stamp()
    with Ledger.connect(ledger_url) as other:
        first, second = funded.sealer(key), other.sealer(key)
        assert first.step() is not None
        assert second.step() is None
        grown(funded, 300)
        assert second.step() is None
        first.close()
        taken = second.step()
        assert taken is not None
        assert (taken.size, taken.root) == (608, root_of(funded, 608))
        second.close()
        grown(funded, 1)
        again = first.step()
        assert again is not None
        assert (again.size, again.root) == (610, root_of(funded, 610))
        first.close()


def test_what_another_has_yet_to_seal_is_not_nothing_new(funded: Ledger, key: SigningKey, psql: Psql) -> None:
    """While somebody else has the lease, what is not sealed yet is an error that says who and until when."""
    funded.stamp()
    killed = funded.sealer(key)
    killed.owner = "elsewhere/7"
    assert killed.step() is not None
    assert funded.seal(key) is None

    grown(funded, 1)
    with pytest.raises(
        ConcurrencyError, match=r"2 events are not sealed yet, and elsewhere/7 has the sealer's lease until 20"
    ) as busy:
        funded.seal(key)
    assert busy.value.retryable
    assert funded.sealer(key).step() is None
    assert funded.checkpoint().size == 8

    psql.execute("UPDATE leases SET until = now() WHERE name = 'sealer'")
    sealed = funded.seal(key)
    assert sealed is not None
    assert sealed.size == 10


def test_a_sealer_that_lost_its_lease_writes_nothing(funded: Ledger, key: SigningKey, psql: Psql) -> None:
    """Who stood still while another took the lease finds out when it would write."""
    funded.stamp()
    sealer = funded.sealer(key)
    assert sealer.step() is not None
    grown(funded, 5)
    psql.execute("UPDATE leases SET epoch = epoch + 1, owner = 'another' WHERE name = 'sealer'")
    assert sealer.step() is None
    assert funded.checkpoint().size == 8
    psql.execute("UPDATE leases SET until = now() WHERE name = 'sealer'")
    sealed = sealer.step()
    assert sealed is not None
    assert sealed.size == 18
    sealer.close()


@pytest.mark.parametrize("point", Point)
def test_sealer_whose_connection_breaks(
    funded: Ledger, ledger_url: str, psql: Psql, key: SigningKey, state: Path, point: Point
) -> None:
    """At whichever statement, and with a new sealer each time: what is sealed goes on where the last commit ended."""
    with FaultyProxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            grown(funded, 130)
            assert client.feed_head() == funded.feed_head()
            proxy.arm(Fault(point, number))
            with suppress(ConnectionLost):
                client.sealer(key, state=state).step()
            struck = proxy.disarm()
            proxy.await_rest(psql)
            psql.execute("UPDATE leases SET until = now() WHERE name = 'sealer'")
            funded.seal(key, state=state)
            size = funded.feed_head()
            sealed = funded.checkpoint()
            assert (sealed.size, sealed.root) == (size, root_of(funded, size))
            assert open_checkpoint(state.read_bytes(), [key.verifier]).size == size
            if not struck:
                break
        else:
            pytest.fail(f"a step has more than {POINTS_MAX} statements")
    assert number > 5
    assert funded.verify_against(sealed.note, [key.verifier]).ok


def test_a_crash_before_the_file_is_written(funded: Ledger, key: SigningKey, state: Path) -> None:
    """The file may be behind the database: what it has is extended all the same."""
    funded.stamp()
    funded.seal(key, state=state)
    before = state.read_bytes()
    grown(funded, 10)
    funded.seal(key, state=state)
    state.write_bytes(before)
    grown(funded, 1)
    sealed = funded.seal(key, state=state)
    assert sealed is not None
    assert state.read_bytes() == sealed.note


def test_a_database_that_was_set_back(funded: Ledger, key: SigningKey, state: Path, tamper: Tamper) -> None:
    """What was signed is not there any more: nothing else is signed, and the reason is said."""
    grown(funded, 10)
    funded.seal(key, state=state)
    grown(funded, 10)
    funded.seal(key, state=state)
    tamper("DELETE FROM checkpoints WHERE size = 48", "DELETE FROM feed WHERE position > 28")
    for _ in range(2):
        with pytest.raises(ProofFailed, match="up to 28 events only, and 48 were signed: it was set back"):
            funded.seal(key, state=state)
    assert funded.checkpoint().size == 28


def test_a_tail_that_was_deleted(funded: Ledger, key: SigningKey, tamper: Tamper) -> None:
    """Without any file the checkpoint in the database alone says that there was more."""
    grown(funded, 10)
    funded.seal(key)
    tamper("DELETE FROM feed WHERE position > 20")
    with pytest.raises(ProofFailed, match="it ends at position 20, of 28"):
        funded.seal(key)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_history_that_was_rewritten(
    funded: Ledger, key: SigningKey, state: Path, psql: Psql, tamper: Tamper, forgets: bool
) -> None:
    """With all hashes made anew it is sound in itself, and not what was signed; not even if the database forgets so."""
    grown(funded, 10)
    funded.seal(key, state=state)
    grown(funded, 10)
    psql.execute("ALTER TABLE feed DISABLE TRIGGER ALL")
    changed = "UPDATE feed SET event_hash = sha256(event_hash) WHERE position = 5"
    tamper(changed, *(["DELETE FROM checkpoints"] if forgets else []))
    with pytest.raises(ProofFailed, match="set back" if forgets else "have another root than was signed"):
        funded.seal(key, state=state)
    with pytest.raises(ProofFailed):
        funded.sealer(key, state=state).step()


def test_a_sealer_signs_nothing_that_nobody_could_open(funded: Ledger, key: SigningKey, tamper: Tamper) -> None:
    """A new event that is not what its hash says, or follows a version that is missing, is refused and named."""
    funded.stamp()
    funded.seal(key)
    grown(funded, 3)
    tamper("UPDATE events SET amount = 7 WHERE stream = 'alice' AND version = 4")
    with pytest.raises(CorruptLog, match="of alice contradicts itself at version 4"):
        funded.seal(key)
    assert funded.checkpoint().size == 8


def test_another_key_does_not_go_on(funded: Ledger, key: SigningKey, state: Path) -> None:
    """A new key of the same name goes on only where the former one is named."""
    funded.stamp()
    funded.seal(key, state=state)
    grown(funded, 1)
    new = SigningKey.generate(NAME)
    with pytest.raises(ProofFailed, match="none of the keys"):
        funded.seal(new, state=state)
    sealed = funded.seal(new, state=state, former=[key.verifier])
    assert sealed is not None
    assert open_checkpoint(sealed.note, [new.verifier]).size == 10


def test_tiles_beyond_the_last_checkpoint(funded: Ledger, key: SigningKey, tamper: Tamper) -> None:
    """Where a checkpoint was taken out and no file remembers it, the tiles that came with it still do."""
    grown(funded, 200)
    funded.seal(key)
    tamper("DELETE FROM checkpoints")
    with pytest.raises(ProofFailed, match="it has tiles beyond its last checkpoint"):
        funded.seal(key)


@pytest.mark.parametrize("asked", [{"every": 0}, {"every": 1e9}])
def test_pauses_are_bounded(ledger: Ledger, key: SigningKey, asked: dict[str, Any]) -> None:
    """A pause of nothing would never end, nor one of years."""
    with pytest.raises(InvalidCommand):
        ledger.sealer(key, **asked)


def test_who_seals_is_said(funded: Ledger, key: SigningKey) -> None:
    """The lease names its owner, and is let go at the end."""
    funded.stamp()
    assert funded.sealing() is None
    sealer = funded.sealer(key)
    sealer.step()
    lease = funded.sealing()
    assert lease is not None
    assert lease.owner == sealer.owner
    sealer.close()
    assert funded._database.ask(lambda c: leases.claim(c, SEALER, "another", 1)) == 2  # noqa: SLF001
