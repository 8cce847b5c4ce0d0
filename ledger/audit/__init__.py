"""Re-derive, never trust."""
