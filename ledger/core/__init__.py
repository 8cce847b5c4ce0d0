"""Pure rules and facts: no clock, no randomness, no environment, no I/O."""
