"""Many requests at once, a bounded number in flight, results as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
POLL = 0.1  # seconds between questions whether the caller has cancelled


def completed(
    count: int,
    work: Callable[[int, threading.Event], T],
    *,
    concurrency: int,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield `(i, work(i, stopped))` for every `i` below `count`, in the order in which they end.

    After a failure, or once `cancelled` says so, no more are begun, those in flight are waited for and yielded, and
    then the first failure is raised. A consumer that goes away (an interrupt) sets `stopped` and waits for nobody: the
    threads are daemons.

    Args:
        count: how many.
        work: does one; `stopped` tells it that nobody waits any more.
        concurrency: how many at once.
        cancelled: asked ten times a second; then the indices that were not begun are never yielded.
    """
    ended: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    indices, hand_out = iter(range(count)), threading.Lock()
    no_more, stopped = threading.Event(), threading.Event()

    def next_index() -> int | None:
        with hand_out:
            return None if no_more.is_set() else next(indices, None)

    def worker() -> None:
        while (index := next_index()) is not None:
            try:
                ended.put((index, work(index, stopped), None))
            except BaseException as failed:
                no_more.set()
                ended.put((index, None, failed))
        ended.put((-1, None, None))

    running = min(concurrency, count)
    for number in range(running):
        threading.Thread(target=worker, name=f"rung-api-{number}", daemon=True).start()
    failure: BaseException | None = None
    try:
        while running:
            if cancelled is not None and cancelled():
                no_more.set()
            try:
                index, result, failed = ended.get(timeout=POLL)
            except queue.Empty:
                continue
            if failed is not None:
                failure = failure or failed
            elif index < 0:
                running -= 1
            else:
                yield index, result  # type: ignore[misc]
    finally:
        no_more.set()
        stopped.set()
    if failure is not None:
        raise failure
