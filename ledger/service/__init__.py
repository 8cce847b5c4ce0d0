"""The ledger behind an API: HTTP, access, and what is served there."""
