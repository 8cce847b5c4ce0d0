"""An issuer of tokens: its keys in a file, and tokens as it would sign them, or as somebody else would."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from ledger.settings import Tokens

ISSUER = "https://issuer.example"
AUDIENCE = "ledger"


class Issuer:
    """Signs with a key on the curve P-256, whose public half is in a file."""

    def __init__(self, folder: Path) -> None:
        self.key: EllipticCurvePrivateKey = generate_private_key(SECP256R1())
        self.file = folder / "keys.json"
        self.publish(one=self.key)

    def publish(self, **keys: EllipticCurvePrivateKey) -> None:
        """Write the file: the public half of each key, by its id."""
        listed = [
            {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"}
            for name, key in keys.items()
        ]
        self.file.write_text(json.dumps({"keys": listed}), encoding="utf-8")

    @property
    def settings(self) -> Tokens:
        """Whose tokens are accepted: its."""
        return Tokens(ISSUER, AUDIENCE, str(self.file))

    def token(self, scope: str = "read", *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for `somebody`, good for an hour, or as the test says."""
        now = int(time.time())
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "scope": scope, "exp": now + 3_600, **claims}
        kept = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(kept, self.key, "ES256", headers={"kid": "one", **(header or {})})
