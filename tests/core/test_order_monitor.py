"""The monitor tells how each message came, and its counters add up, within bounded memory."""

from __future__ import annotations

import doctest
import itertools
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.order import monitor as module
from ledger.order.monitor import OTHER_SOURCES, SEQUENCE_MAX, SOURCES_MAX, Counters, Order, OrderMonitor

ARRIVALS = st.lists(st.integers(0, 12), max_size=30)


def orders(monitor: OrderMonitor, *sequences: int, stream: str = "a") -> list[str]:
    """What the monitor says about each of these."""
    return [str(monitor.check(stream, sequence)) for sequence in sequences]


def test_the_example_in_the_module() -> None:
    """The example at the top of the module is true."""
    result = doctest.testmod(module)

    assert result.attempted > 5
    assert result.failed == 0


def test_works_alone(tmp_path: Path) -> None:
    """Copied to where neither the ledger nor anything else is installed, its one file is all that it takes."""
    (tmp_path / "monitor.py").write_text(Path(module.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    program = "import monitor; print(monitor.OrderMonitor(start=1).check('a', 3))"
    # Without site-packages.
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "gap\n", "")


def test_verdicts() -> None:
    """In order, a gap and how much is missing, late, duplicate: each is told from the others."""
    monitor = OrderMonitor()

    assert orders(monitor, 7, 8, 12, 10, 10, 12, 9, 11, 13) == [
        "in_order",
        "in_order",
        "gap",
        "late",
        "duplicate",
        "duplicate",
        "late",
        "late",
        "in_order",
    ]
    assert monitor.stats().total == Counters(received=9, in_order=3, duplicates=2, late=3, gaps_opened=1, gaps_filled=1)


def test_start() -> None:
    """With a start the first messages can be missing; without one the first seen is the first."""
    assert orders(OrderMonitor(), 3, 1) == ["in_order", "stale"]
    monitor = OrderMonitor(start=1)
    assert monitor.check("a", 3).missing == 2
    assert orders(monitor, 0, 1) == ["stale", "late"]
    assert monitor.missing("a") == ((2, 2),)


def test_streams_and_sources_are_apart() -> None:
    """A stream is a source's: the same name elsewhere is another one, and each source has its counters."""
    monitor = OrderMonitor()
    for source, stream in itertools.product(("x", "y"), ("a", "b")):
        assert monitor.check(stream, 5, source=source).order is Order.IN_ORDER
    monitor.check("a", 7, source="y")

    assert monitor.missing("a", source="x") == monitor.missing("nowhere") == ()
    assert monitor.missing("a", source="y") == ((6, 6),)
    assert [monitor.stats().sources[source].gaps_opened for source in ("x", "y")] == [0, 1]
    assert monitor.stats().streams == 4


@given(ARRIVALS, st.sampled_from([None, 0, 3]))
def test_agrees_with_a_set(arrivals: list[int], start: int | None) -> None:
    """Within its memory the monitor says what one who remembers every number would say."""
    monitor = OrderMonitor(start)
    seen: set[int] = set()
    first = start
    for sequence in arrivals:
        first = sequence if first is None else first
        expected = max(seen, default=first - 1) + 1
        verdict = monitor.check("a", sequence)
        if sequence < first:
            assert verdict.order is Order.STALE
            continue
        assert verdict.expected == expected
        assert verdict.missing == max(sequence - expected, 0)
        if sequence >= expected:
            assert verdict.order is (Order.GAP if sequence > expected else Order.IN_ORDER)
        else:
            assert verdict.order is (Order.DUPLICATE if sequence in seen else Order.LATE)
        seen.add(sequence)

    missing = [number for low, high in monitor.missing("a") for number in range(low, high + 1)]
    assert missing == [number for number in range(first or 0, max(seen, default=-1)) if number not in seen]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 20)), max_size=60), st.integers(1, 3), st.booleans())
def test_counters_add_up(arrivals: list[tuple[str, int]], bound: int, starts: bool) -> None:
    """Every message is counted once, and what is missing is what is remembered, whatever was forgotten."""
    monitor = OrderMonitor(0 if starts else None, streams_max=bound, holes_max=bound)
    for stream, sequence in arrivals:
        monitor.check(stream, sequence)
    total = monitor.stats().total
    holes = {stream: monitor.missing(stream) for stream in "abcd"}

    assert total.received == len(arrivals)
    assert total.received == total.in_order + total.gaps_opened + total.late + total.duplicates + total.stale
    assert total.missing == sum(last - first + 1 for each in holes.values() for first, last in each)
    assert total.gaps_opened >= total.gaps_filled + total.gaps_forgotten
    assert (total.gaps_opened == total.gaps_filled + total.gaps_forgotten) or total.missing
    assert all(len(each) <= bound for each in holes.values())
    assert monitor.stats().streams <= bound


def test_forgotten_holes_are_stale() -> None:
    """Beyond its memory the monitor says that it does not know, and not that a message is a duplicate."""
    monitor = OrderMonitor(holes_max=2)

    assert orders(monitor, 1, 3, 5, 7) == ["in_order", "gap", "gap", "gap"]
    assert monitor.missing("a") == ((4, 4), (6, 6))
    assert orders(monitor, 2, 1, 3, 4) == ["stale", "stale", "duplicate", "late"]
    assert monitor.stats().total.gaps_forgotten == 1


def test_half_forgotten_gap_is_not_filled() -> None:
    """A gap of which a part was forgotten is not called filled when the rest of it came."""
    monitor = OrderMonitor(holes_max=1)

    assert orders(monitor, 1, 5, 3, 4) == ["in_order", "gap", "late", "late"]
    total = monitor.stats().total
    assert (total.gaps_opened, total.gaps_filled, total.gaps_forgotten, total.missing) == (1, 0, 1, 0)


def test_forgotten_stream_is_no_alarm() -> None:
    """A stream that was forgotten begins anew where it goes on, even with a start; the busy ones stay."""
    monitor = OrderMonitor(start=1, streams_max=2)
    orders(monitor, 1, 2, stream="old")
    orders(monitor, 1, stream="a")
    orders(monitor, 3, stream="old")
    orders(monitor, 2, stream="b")

    assert monitor.stats().streams_forgotten == 1
    assert orders(monitor, 3, 4, stream="old") == ["duplicate", "in_order"]
    assert orders(monitor, 9, stream="a") == ["in_order"]


def test_sources_are_bounded() -> None:
    """Beyond the most sources the rest is counted together."""
    monitor = OrderMonitor()
    for number in range(SOURCES_MAX + 5):
        monitor.check("a", 1, source=f"s{number}")

    assert len(monitor.stats().sources) == SOURCES_MAX + 1
    assert monitor.stats().sources[OTHER_SOURCES].received == 5


def test_a_huge_jump_is_cheap() -> None:
    """A gap is a range, however wide."""
    monitor = OrderMonitor(start=0)

    assert monitor.check("a", SEQUENCE_MAX).missing == SEQUENCE_MAX
    assert monitor.missing("a") == ((0, SEQUENCE_MAX - 1),)


@pytest.mark.parametrize(
    ("sequence", "error"),
    [(-1, ValueError), (SEQUENCE_MAX + 1, ValueError), ("1", TypeError), (True, TypeError), (1.0, TypeError)],
)
def test_what_is_no_sequence(sequence: int, error: type[Exception]) -> None:
    """What is no sequence is refused, and counted nowhere."""
    monitor = OrderMonitor()
    with pytest.raises(error):
        monitor.check("a", sequence)

    assert monitor.stats().total == Counters()
    with pytest.raises(ValueError, match="at least 1"):
        OrderMonitor(streams_max=0)


def test_threads() -> None:
    """Threads that share a monitor lose no count."""
    monitor = OrderMonitor(start=0)
    barrier = Barrier(4)

    def count(first: int) -> None:
        barrier.wait(10)
        for sequence in range(first, 8_000, 4):
            monitor.check("a", sequence)

    threads = [Thread(target=count, args=(first,)) for first in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # So that a missing lock shows.
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)

    total = monitor.stats().total
    assert total.received == 8_000
    assert total.gaps_opened == total.gaps_filled + total.gaps_forgotten
    assert total.missing == 0
