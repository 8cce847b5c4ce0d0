"""What an auditor asks for, by name: each report is pinned, so that the same question has the same answer for ever."""
