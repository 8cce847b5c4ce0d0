"""Speed, side by side: the ledger, a hand-written one under pgbench, and PyPI's eventsourcing, on one server."""
