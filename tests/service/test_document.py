"""The document is true: what it says of each route holds for whatever schemathesis can think of."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig

from ledger import Ledger
from ledger.access import Scope
from ledger.settings import Limits

CONFIG = {
    "checks": {
        # What has a well-formed body may still be against the rules: an amount of more decimals than its asset has,
        # both sides of a transfer on one account, the key of another request.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "401", "403", "404", "409", "412", "422", "5xx"]},
    },
}
