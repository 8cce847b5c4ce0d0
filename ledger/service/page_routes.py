"""The audit page: a route for each of its pages, for people; what programs ask is under `/v1`."""

from __future__ import annotations

from fastapi import APIRouter

from ledger.service.desk import Desk
from ledger.service.pages.account_pages import AccountPages
from ledger.service.pages.entrance import Entrance
from ledger.service.pages.order_pages import OrderPages
from ledger.service.pages.overview_pages import OverviewPages
from ledger.service.pages.site import Site
from ledger.service.pages.transaction_pages import TransactionPages


def router(desk: Desk) -> APIRouter:
    """A route for each page."""
    site = Site(desk)
    for pages in (Entrance, OverviewPages, AccountPages, TransactionPages, OrderPages):
        pages(site)
    return site.routes
