"""Steps of a work done by several processes at once; what they come to arrives in the order of the steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

from ledger.core.errors import DatabaseUnavailable, InvalidCommand, LedgerError

Tell: TypeAlias = Callable[[str, Any], None]
"""Is told how far a step is: what was the last that is done, and what was found since it was told before."""

Workplace: TypeAlias = Callable[..., AbstractContextManager[Callable[[Any, Tell], Any]]]
"""Called in each process: sets up what it needs, and lends the function that does a step."""


def in_order(
    steps: Sequence[Any],
    jobs: int,
    workplace: Workplace,
    arguments: Sequence[Any],
    tell: Callable[[int, str, Any], None],
) -> Generator[Any, None, None]:
    """
    The outcomes of `steps`, in their order, while `jobs` processes do them.

    `tell` is called with the number of a step and how far it is.  Whoever closes this iterator ends them at once.

    Raises:
        LedgerError: As raised by a step, or because a process is gone.
        InvalidCommand: This process may begin no others.
    """
    outcomes: dict[int, Any] = {}
    waiting = iter(enumerate(steps))
    crew = _Crew(jobs, workplace, arguments)
    try:
        for following in range(len(steps)):
            while following not in outcomes:
                for pipe in crew.talking():
                    kind, *said = crew.hear(pipe)
                    if kind == "ready":
                        crew.say(pipe, next(waiting, None))
                    elif kind == "at":
                        tell(*said)
                    elif kind == "done":
                        outcomes[said[0]] = said[1]
                    else:
                        raise said[0]
            yield outcomes.pop(following)
    finally:
        crew.end()


class _Crew:
    """Processes, each at the other end of a pipe."""

    def __init__(self, jobs: int, workplace: Workplace, arguments: Sequence[Any]) -> None:
        if current_process().daemon:
            raise InvalidCommand("jobs", "a daemonic process may begin no others: ask for 1, or from another process")
        # A fork would share the sockets of this process's connections.
        context = get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._pipes: list[Pipe] = []
        try:
            for _ in range(jobs):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, workplace, arguments), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        except BaseException:
            self.end()
            raise

    def talking(self) -> list[Any]:
        """Wait until somebody has said something, or is gone."""
        return wait(self._pipes)

    def hear(self, pipe: Pipe) -> tuple[Any, ...]:
        """What was said."""
        with _still_there():
            said: tuple[Any, ...] = pipe.recv()
        return said

    def say(self, pipe: Pipe, work: tuple[int, Any] | None) -> None:
        """Give somebody the next step, or nothing more to do."""
        with _still_there():
            pipe.send(work)
        if work is None:
            self._pipes.remove(pipe)

    def end(self) -> None:
        """End all of them now, whatever they do."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


@contextmanager
def _still_there() -> Iterator[None]:
    """Say what it means when the other end of a pipe is gone."""
    try:
        yield
    except (EOFError, OSError):
        raise DatabaseUnavailable(
            "A process of this verification has ended before it was done.",
            "Look for what ended it (memory?), or use fewer jobs; a program that asks for more than one begins with"
            ' `if __name__ == "__main__":`.',
        ) from None


def _work(pipe: Pipe, workplace: Workplace, arguments: Sequence[Any]) -> None:
    """Do steps until there are no more."""
    # A Ctrl-C reaches all processes of a terminal; whoever began this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Whoever hears of it may be gone.
    with suppress(EOFError, OSError):
        try:
            with workplace(*arguments) as perform:
                pipe.send(("ready",))
                while (work := pipe.recv()) is not None:
                    number, step = work
                    pipe.send(("done", number, perform(step, partial(_tell, pipe, number))))
                    pipe.send(("ready",))
        except LedgerError as error:
            pipe.send(("failed", error))


def _tell(pipe: Pipe, number: int, last: str, found: Any) -> None:
    pipe.send(("at", number, last, found))
