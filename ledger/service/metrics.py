"""
Metrics as Prometheus reads them: what this process counted, and how the ledger stands in the database.

Each application has a registry of its own, so that several in one process do not add up.  Labels take few values:
routes as templates, codes of errors, names of sources and subscriptions up to a bound; never an account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.counters import SECONDS_BOUNDS, Counts, Distribution
from ledger.service.problem_details import CODES
from ledger.storage.gauges import OTHER_SOURCES, Gauges

UNROUTED: Final = "(none)"
"""The route of what no route answers."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD: Final = "_OTHER"
"""What OpenTelemetry calls a method that HTTP does not know."""

_STATUSES: Final = ("waiting", "parked", "retrying")

_WRITER: Final = (
    ("appends", "appended", "Transactions that this process appended to the log through its writer."),
    ("appended_events", "events", "Events of these transactions."),
    ("replays", "replayed", "Commands that found their transaction by their idempotency key."),
    (
        "failed_batches",
        "failed",
        "Batches that were given up with an error; none of their commands was refused by a rule.",
    ),
    ("conflicts", "conflicts", "Attempts at a batch that lost a race and were decided again."),
    ("retries", "retries", "Attempts at a batch after its first one, whatever was in the way."),
    ("lost_connections", "connections_lost", "Connections that broke under an attempt at a batch."),
    ("rebuilds", "rebuilt", "Projections that did not match the log and were rebuilt before a write in this process."),
)
"""Metric, the count that it shows, and its help."""

_INBOX: Final = {
    "received": "Messages received.",
    "processed": "Messages that took effect.",
    "duplicates": "Messages that had been received before.",
    "out_of_order": "Messages that came after a later one of their stream and took effect in order all the same.",
    "late": "Messages whose stream had gone on without them.",
    "conflicts": "Messages that contradict one with their sequence or id.",
    "unnumbered": "Messages without the sequence that their stream needs.",
    "set_aside": "Messages set aside because their stream waited too long or had no room.",
    "gaps_opened": "Gaps opened.",
    "gaps_filled": "Gaps filled by the message that was missing.",
    "gaps_timed_out": "Gaps that outlasted their wait.",
    "rejected": "Messages that a rule of the ledger refused.",
    "failed": "Attempts at messages that failed.",
    "undecodable": "Messages that could not be read.",
    "dead_lettered": "Messages that became dead letters.",
    "replayed": "Messages that were sent through the inbox again.",
}
"""All that an inbox counts, and what it means."""


class Metrics:
    """The metrics of one application; its requests are counted on its event loop, and nowhere else."""

    def __init__(self, counts: Callable[[], Counts], waiting: Callable[[], int]) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}
        self.durations: dict[tuple[str, str], Distribution] = {}
        self.problems: dict[str, int] = dict.fromkeys(CODES, 0)
        self.in_flight = 0
        self._counts = counts
        self._waiting = waiting
        self._gauges: Gauges | None = None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Ours(self._collect))

    def answered(self, method: str, route: str, status: int | None, seconds: float, code: str | None) -> None:
        """Count a request; without a status nobody was there any more to answer."""
        known = method if method in METHODS else OTHER_METHOD
        place = known, route, "none" if status is None else str(status)
        self.requests[place] = self.requests.get(place, 0) + 1
        self.durations.setdefault((known, route), Distribution(SECONDS_BOUNDS)).add(seconds)
        if code in self.problems:
            self.problems[code] += 1

    def exposition(self, gauges: Gauges | None, accept: str) -> tuple[bytes, str]:
        """The text of all metrics and its media type; `gauges` are None where the database did not answer."""
        self._gauges = gauges
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _collect(self) -> Iterator[Metric]:
        yield _labelled_gauge("build_info", "Which release this is.", ["version"], [((version("ledger"),), 1)])
        yield from self._of_requests()
        yield from _of_writer(self._counts())
        yield _gauge("queued_commands", "Commands that wait in the batcher for their turn.", self._waiting())
        yield _gauge("up", "Whether the database answered this scrape.", self._gauges is not None)
        if self._gauges is not None:
            yield from _of_database(self._gauges)
            yield from _of_inboxes(self._gauges)

    def _of_requests(self) -> Iterator[Metric]:
        yield _counter(
            "http_requests", "Requests answered.", ["method", "route", "status"], sorted(self.requests.items())
        )
        seconds = HistogramMetricFamily(
            "ledger_http_request_duration_seconds",
            "From a request's headers to the end of its answer.",
            labels=["method", "route"],
        )
        for place, distribution in sorted(self.durations.items()):
            seconds.add_metric(place, _buckets(distribution), distribution.total)
        yield seconds
        yield _gauge("http_requests_in_flight", "Requests on their way.", self.in_flight)
        told = "Problems that requests were answered with, by their code."
        yield _counter("http_problems", told, ["code"], [((code,), count) for code, count in self.problems.items()])


class _Ours(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is the only one of its registry whose names begin with `ledger_`."""
        return []


def _of_writer(counts: Counts) -> Iterator[Metric]:
    for name, counted, told in _WRITER:
        yield _counter(name, told, [], [((), getattr(counts, counted))])
    told = "Commands that a rule refused, by the code of the rejection."
    yield _counter("rejections", told, ["code"], [((code,), count) for code, count in sorted(counts.rejected.items())])
    for name, told, distribution in (
        ("batch_size_commands", "Commands that one transaction carried out.", counts.sizes),
        ("batch_duration_seconds", "From taking a batch up to its answer, retries included.", counts.seconds),
    ):
        family = HistogramMetricFamily(f"ledger_{name}", told)
        family.add_metric([], _buckets(distribution), distribution.total)
        yield family


def _of_database(gauges: Gauges) -> Iterator[Metric]:
    yield _gauge("feed_position", "The last position of the feed.", gauges.position)
    yield _gauge("feed_lag_seconds", "How long the oldest row of the outbox has waited.", gauges.feed_lag_seconds)
    yield _gauge("outbox_rows", "Database transactions that wait to be stamped.", gauges.outbox)
    lag = [((name,), behind) for name, behind in gauges.subscriptions.items()]
    yield _labelled_gauge("subscription_lag_events", "How far a subscription is behind.", ["subscription"], lag)
    yield _gauge("sealed_events", "Events under the last signed checkpoint.", gauges.sealed)
    unsealed = max(0, gauges.position - gauges.sealed)
    yield _gauge("unsealed_events", "Events of the feed that no checkpoint covers yet.", unsealed)
    if gauges.seal_age_seconds is not None:
        # Nothing is stale where nobody ever sealed.
        yield _gauge("seal_age_seconds", "Time since the last checkpoint was signed.", gauges.seal_age_seconds)
    told = "Projections that did not match the log and were mended, by whoever noticed."
    yield _counter("projection_repairs", told, [], [((), gauges.repairs)])


def _of_inboxes(gauges: Gauges) -> Iterator[Metric]:
    sources = sorted({*gauges.counters, *(each.source for each in gauges.stuck)} - {OTHER_SOURCES})
    sources += [OTHER_SOURCES] if OTHER_SOURCES in gauges.counters else []
    for name, told in _INBOX.items():
        rows = [((source,), counts.get(name, 0)) for source, counts in sorted(gauges.counters.items())]
        yield _counter(f"inbox_{name}", told, ["source"], rows)
    stuck = {(each.source, each.status): each for each in gauges.stuck}
    places = [
        *{**dict.fromkeys((source, status) for source in sources for status in _STATUSES), **dict.fromkeys(stuck)}
    ]
    for name, told, field in (
        ("inbox_streams", "Streams that do not flow, by what they do instead.", "streams"),
        ("inbox_held_messages", "Messages held for streams that do not flow.", "held"),
        ("inbox_oldest_wait_seconds", "The longest that a stream has not flowed.", "oldest_seconds"),
    ):
        values = [(place, getattr(stuck[place], field) if place in stuck else 0) for place in places]
        yield _labelled_gauge(name, told, ["source", "status"], values)
    letters = [((each.source, each.why), each.open) for each in gauges.letters]
    yield _labelled_gauge("dead_letters", "Dead letters that a person has to decide about.", ["source", "why"], letters)


def _counter(
    name: str, told: str, labels: Sequence[str], rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"ledger_{name}", told, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ledger_{name}", told, value=float(value))


def _labelled_gauge(
    name: str, told: str, labels: Sequence[str], rows: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"ledger_{name}", told, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Each bound with how many were up to it, as Prometheus counts them."""
    bounds = [*(str(bound) for bound in distribution.bounds), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, accumulate(distribution.counts), strict=True)]
