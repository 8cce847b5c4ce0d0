"""Each test gets a database of its own, cloned from a template that is migrated once: the fixtures we ship."""

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["ledger.testing"]

# Hundreds of programs are started here: each would compile all of the package again where nothing may be kept of that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)  # Without pytest-xdist there is no such hook.
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are processors: a fifth of its time, a worker waits for brokers and browsers."""
    return (os.cpu_count() or 1) + 1
