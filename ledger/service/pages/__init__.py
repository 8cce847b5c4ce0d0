"""The audit page: the ledger for people who would rather look than read, in HTML that needs no script."""
