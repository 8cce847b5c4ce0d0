"""The only layer that speaks SQL to the ledger's tables."""
