"""Each test gets a database of its own, cloned from a template that is migrated once: the fixtures we ship."""

import os

pytest_plugins = ["ledger.testing"]

# Hundreds of programs are started here: each would compile all of the package again where nothing may be kept of that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
