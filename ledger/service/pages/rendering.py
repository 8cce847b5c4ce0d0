"""
Templates → HTML, and how each kind of value is shown: exact amounts, moments in UTC, ids that can be copied whole.

Every answer says which sources a browser may use for it, and that nobody keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from fastapi import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ledger.core.canonical import utc_text
from ledger.core.money import Money

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}

FOR_EVER: Final = "public, max-age=31536000, immutable"
_HASH_SHOWN: Final = 12

_TYPES: Final[Mapping[str, str]] = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


class Asset(NamedTuple):
    """A file that pages refer to: its address changes with its content."""

    content: bytes
    media_type: str
    version: str


@cache
def assets() -> Mapping[str, Asset]:
    """The files that pages refer to, by name; there are no others."""
    found = {}
    for file in (files("ledger.service.pages") / "static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, kind, sha256(content).hexdigest()[:_HASH_SHOWN])
    return found


def asset_url(name: str) -> str:
    """The address of such a file."""
    return f"/static/{name}?v={assets()[name].version}"


def html(template: str, status: int = HTTPStatus.OK, /, **context: Any) -> Response:
    """A page."""
    text = _environment().get_template(template).render(**context)
    return Response(text, status, headers=dict(HEADERS), media_type="text/html; charset=utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("ledger.service.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "amount": amount,
        "count": counted,
        "moment": moment,
        "ident": ident,
        "pretty": pretty,
        "plain": plain,
        "span": span,
        "words": words,
    }
    made.globals |= {"asset_url": asset_url, "link": link}
    return made


def link(path: str, **parameters: object) -> str:
    """An address with what is asked there; what is None or empty is not asked."""
    asked = {name: str(value) for name, value in parameters.items() if value is not None and value != ""}
    return f"{path}?{urlencode(asked)}" if asked else path


def grouped(number: Decimal | str) -> str:
    """A number with its thousands apart, and every digit that it has."""
    sign, digits = ("\N{MINUS SIGN}", str(number)[1:]) if str(number).startswith("-") else ("", str(number))
    whole, point, decimals = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{decimals}"


def amount(money: Money | None) -> Markup:
    """An amount as people read it; as its value, the text that programs read."""
    if money is None:
        return Markup('<span class="none">none</span>')
    number, _, asset = str(money).partition(" ")
    shown = Markup('<data class="amount{}" value="{}">{}<span class="asset">\N{NO-BREAK SPACE}{}</span></data>')
    return shown.format(" below" if money.minor < 0 else "", str(money), grouped(number), asset)


def plain(money: Money) -> str:
    """An amount as a text of its own, for what is read aloud."""
    number, _, asset = str(money).partition(" ")
    return f"{grouped(number)} {asset}"


def counted(number: int) -> str:
    """A count."""
    return f"{number:,}"


def moment(when: datetime | None) -> Markup:
    """A moment in UTC: to the second as it is shown, to the microsecond where it is pointed at."""
    if when is None:
        return Markup('<span class="none">never</span>')
    exact = utc_text(when)
    date, _, time = exact.partition("T")
    shown = Markup('<time datetime="{}" title="{}">{}<span class="clock">\N{NO-BREAK SPACE}{}</span></time>')
    return shown.format(exact, exact, date, time[:8])


def ident(name: object, href: str | None = None) -> Markup:
    """An id: the whole of it, of which as much is seen as there is room for."""
    text = str(name)
    if href is None:
        return Markup('<code class="ident" title="{0}" tabindex="-1">{0}</code>').format(text)
    return Markup('<a class="ident" href="{1}" title="{0}">{0}</a>').format(text, href)


def pretty(value: object) -> str:
    """JSON for people: a text of it, or what it is of."""
    read = json.loads(value) if isinstance(value, str) else value
    return json.dumps(read, indent=2, ensure_ascii=False)


_SPANS: Final = ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min"))


def span(seconds: float) -> str:
    """How long, to what matters of it."""
    for least, size, name in _SPANS:
        if seconds >= least:
            return f"{int(seconds // size):,}\N{NO-BREAK SPACE}{name}"
    return f"{seconds:.0f}\N{NO-BREAK SPACE}s" if seconds >= 1 else "under 1\N{NO-BREAK SPACE}s"


def words(code: str) -> str:
    """The name of a kind, as a text."""
    return str(escape(code.replace("_", " ").capitalize()))
