"""
What a service is that does nothing but insert: one route of FastAPI, one row and one commit a request.

`python -m benchmarks.bare URL` says where it listens.  The peer of `benchmarks.service`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

import uvicorn
from fastapi import FastAPI, Header
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

CONNECTIONS: Final = 16

TABLE: Final = """
CREATE TABLE IF NOT EXISTS bare_transfers (
    key text PRIMARY KEY, debit text NOT NULL, credit text NOT NULL, amount numeric(38, 0) NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
)
"""
INSERT: Final = "INSERT INTO bare_transfers (key, debit, credit, amount) VALUES (%s, %s, %s, %s)"


class Transfer(BaseModel):
    """What is inserted."""

    amount: str
    debit: str
    credit: str


def bare(url: str) -> FastAPI:
    """The application: what a tutorial would end with, asynchronous and with a pool."""
    pool = AsyncConnectionPool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, kwargs={"autocommit": True})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with pool:
            async with pool.connection() as connection:
                await connection.execute(TABLE)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/transfer", status_code=201)
    async def transfer(body: Transfer, idempotency_key: Annotated[str, Header()]) -> dict[str, str]:
        amount = body.amount.removesuffix(" USD").replace(".", "")
        async with pool.connection() as connection:
            await connection.execute(INSERT, (idempotency_key, body.debit, body.credit, amount))
        return {"key": idempotency_key, "amount": body.amount}

    return app


def main() -> None:
    """Listen on any port, and say on which."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2_048)
    sys.stdout.write(f"listening on http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    server = uvicorn.Server(uvicorn.Config(bare(sys.argv[1]), log_level="warning", access_log=False))
    server.run(sockets=[listening])
    os._exit(0)


if __name__ == "__main__":
    main()
