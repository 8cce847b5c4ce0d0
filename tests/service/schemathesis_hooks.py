"""What schemathesis is told about this service: how lines of JSON are sent."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Any value, as one line."""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogatepass")
