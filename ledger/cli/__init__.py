"""The command line: one sub-command per task."""
