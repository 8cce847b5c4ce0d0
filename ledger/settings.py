"""Environment → frozen settings.  The only reader of the environment."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from ledger.core.errors import InvalidCommand
from ledger.health import Check
from ledger.storage.tables import DEFAULT_SCHEMA

_SERVE: Final = (
    *("HOST", "PORT", "CERTIFICATE", "PRIVATE_KEY", "BEHIND_PROXY"),
    *("OPEN_METRICS", "READY_WITHOUT", "LOG_LEVEL"),
    *("TOKEN_ISSUER", "TOKEN_AUDIENCE", "TOKEN_KEYS", "TOKEN_ALGORITHMS"),
)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LIMIT_MAX: Final = 2**31
_PORT: Final = 8321
_PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Which ledger a program of ours works on.

    Without a `database_url` it is the embedded PostgreSQL with its data in `folder`; without a folder
    that one lives in the user's data folder.
    """

    database_url: str | None = None
    schema: str = DEFAULT_SCHEMA
    folder: Path | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read LEDGER_DATABASE_URL, LEDGER_SCHEMA and LEDGER_DATA; an empty one counts as not set."""
        folder = environment.get("LEDGER_DATA")
        return cls(
            database_url=environment.get("LEDGER_DATABASE_URL") or None,
            schema=environment.get("LEDGER_SCHEMA") or DEFAULT_SCHEMA,
            folder=Path(folder) if folder else None,
        )

    def data_folder(self) -> Path:
        """
        Where the embedded PostgreSQL keeps its data.

        Raises:
            InvalidCommand: No folder is named, and the library that knows the user's is not installed.
        """
        if self.folder is not None:
            return self.folder
        try:
            platformdirs = importlib.import_module("platformdirs")
        except ImportError:
            raise InvalidCommand("LEDGER_DATA", "name a folder for the data, or install ledger[cli]") from None
        return Path(platformdirs.user_data_path("ledger")) / "postgresql"


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How much the service takes at once; beyond it a request is refused, and nothing is done.

    Bytes are those of a body, seconds those until an answer.  `rate` is requests a second of one credential in this
    process, which may be exceeded for a second's worth; `requests` are all that are on their way at once.  A connection
    is closed that says no whole request head for `head_seconds`, or more than `head_bytes` (and what one read brings)
    of one, and where nobody reads an answer for `unread_seconds`.
    """

    body_bytes: int = 256 * 1024
    bulk_bytes: int = 16 * 1024 * 1024
    bulk_lines: int = 10_000
    bulks: int = 4
    requests: int = 2_000
    rate: int = 20_000
    readers: int = 8
    auditors: int = 2
    followers: int = 256
    append_seconds: float = 10.0
    read_seconds: float = 10.0
    audit_seconds: float = 300.0
    follow_seconds: float = 300.0
    several_seconds: float = 60.0
    shutdown_seconds: float = 30.0
    head_bytes: int = 64 * 1024
    head_seconds: float = 10.0
    unread_seconds: float = 30.0

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """
        Read LEDGER_SERVE_BODY_BYTES and so on, one for each field; an empty one counts as not set.

        Raises:
            InvalidCommand: One of them is no number above 0, or is not whole where it counts.
        """
        given: dict[str, Any] = {}
        for limit in fields(cls):
            name = f"LEDGER_SERVE_{limit.name.upper()}"
            text = environment.get(name)
            if text:
                try:
                    given[limit.name] = int(text) if isinstance(limit.default, int) else float(text)
                except ValueError:
                    given[limit.name] = 0
                if not 0 < given[limit.name] <= _LIMIT_MAX:
                    raise InvalidCommand(name, f"{text!r:.80} is not a number above 0 and at most {_LIMIT_MAX}")
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Tokens:
    """
    Whose JSON Web Tokens are accepted: of this issuer, for this audience, signed with one of these algorithms.

    `keys` is a file or an https URL with the issuer's public keys, a JSON Web Key Set (RFC 7517).
    """

    issuer: str
    audience: str
    keys: str
    algorithms: tuple[str, ...] = ("ES256", "EdDSA", "RS256")
    leeway_seconds: int = 60


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """
    Where the service listens, and whom it lets in.

    Without `authentication` everybody may do everything, which only this machine's own address is good for.
    `behind_proxy` says that a proxy in front does TLS.  With `open_metrics` whoever reaches it may read metrics,
    without a key.  It is ready without the checks in `ready_without`: on a standby "writable", where nobody stamps
    "stamper".  From `log_level` on it is logged what happens; each request at "info".
    """

    host: str = "127.0.0.1"
    port: int = _PORT
    certificate: Path | None = None
    private_key: Path | None = None
    behind_proxy: bool = False
    authentication: bool = True
    tokens: Tokens | None = None
    open_metrics: bool = False
    ready_without: frozenset[Check] = frozenset()
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """
        Read LEDGER_SERVE_HOST, …_PORT, …_CERTIFICATE, …_PRIVATE_KEY, …_BEHIND_PROXY (1), …_OPEN_METRICS (1),
        …_READY_WITHOUT (checks), …_LOG_LEVEL, and of tokens …_TOKEN_ISSUER, …_TOKEN_AUDIENCE, …_TOKEN_KEYS and
        …_TOKEN_ALGORITHMS, and the limits; an empty one counts as not set.

        Raises:
            InvalidCommand: One of them is not what it should be.
        """
        given = {name: environment.get(f"LEDGER_SERVE_{name}") or None for name in _SERVE}
        return cls(
            host=given["HOST"] or "127.0.0.1",
            port=_port(given["PORT"]),
            certificate=_path(given["CERTIFICATE"]),
            private_key=_path(given["PRIVATE_KEY"]),
            behind_proxy=given["BEHIND_PROXY"] == "1",
            open_metrics=given["OPEN_METRICS"] == "1",
            ready_without=_checks(given["READY_WITHOUT"] or ""),
            log_level=_log_level(given["LOG_LEVEL"] or "info"),
            tokens=_tokens(given),
            limits=Limits.read(environment),
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _port(text: str | None) -> int:
    if text is None:
        return _PORT
    if not text.isdecimal() or int(text) > _PORT_MAX:
        raise InvalidCommand("LEDGER_SERVE_PORT", f"{text!r:.80} is not a port from 0 to {_PORT_MAX}")
    return int(text)


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise InvalidCommand("LEDGER_SERVE_LOG_LEVEL", f"{text!r:.80} is none of {', '.join(LOG_LEVELS)}")
    return text


def _checks(text: str) -> frozenset[Check]:
    try:
        return frozenset(map(Check, text.replace(",", " ").split()))
    except ValueError:
        known = ", ".join(Check)
        raise InvalidCommand(
            "LEDGER_SERVE_READY_WITHOUT", f"{text!r:.80} names a check that is none of {known}"
        ) from None


def _tokens(given: Mapping[str, str | None]) -> Tokens | None:
    issuer, audience, keys = (given[f"TOKEN_{name}"] for name in ("ISSUER", "AUDIENCE", "KEYS"))
    if issuer is None and audience is None and keys is None:
        return None
    if issuer is None or audience is None or keys is None:
        raise InvalidCommand("LEDGER_SERVE_TOKEN_…", "tokens take an issuer, an audience and keys, all three")
    algorithms = given["TOKEN_ALGORITHMS"]
    if algorithms is None:
        return Tokens(issuer, audience, keys)
    return Tokens(issuer, audience, keys, tuple(algorithms.replace(",", " ").split()))
