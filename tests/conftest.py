"""Each test gets a database of its own, cloned from a template that is migrated once: the fixtures we ship."""

pytest_plugins = ["ledger.testing"]
