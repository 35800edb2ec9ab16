"""Running one function over many items: in this process, in several, on a Dask cluster, or in shards.

All ways give the same outcomes; they differ in where the function runs and in the order of the outcomes.
The function, its items and its outcomes are pickled, so the function stands at the top of a module.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import psutil

from utils.interruption import end_with_parent, starting_processes
from utils.settings import shard_numbers, worker_count

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

PROJECT_DIR = Path(__file__).resolve().parents[1]
#: An interpreter with NumPy, SciPy and nibabel, before it has read anything.
BASE_BYTES = 200 * 2**20
#: Seconds until a scheduler that does not answer counts as absent.
CONNECT_SECONDS = 15
_KILLED = "a process that was killed (out of memory? rerun with fewer --workers)"
#: Where Linux tells a container how much memory it may use, which is less than the machine has.
_CGROUP_DIRS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def in_shard(items: Sequence[Item], shard: str | None) -> list[Item]:
    """Give the part of the items that belongs to the shard "i/n": every n-th, from the i-th on."""
    number, shards = shard_numbers(shard)
    return list(items[number - 1 :: shards])


def outcomes(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    bytes_of: Callable[[Item], int] = lambda item: 0,
) -> Iterator[tuple[Item, Outcome | str]]:
    """Run a function over items.

    Parameters
    ----------
    work : callable
        Function of an item. What it raises ends the run; it should give its failure as an outcome.
    items : sequence
        The items.
    workers : int
        Processes; 0 means one a core. With 1 (or one item) all is done in this process.
    scheduler : str, optional
        Address of a Dask scheduler whose workers run the function instead.
    bytes_of : callable
        Peak memory that an item needs. The items that need most are begun first, which shortens the end of
        a run, and never more at once than the free memory holds.

    Yields
    ------
    item, outcome
        In the order in which they end. The outcome is a text where the process was killed: it completes
        "expected to be done, found ...".

    Raises
    ------
    ValueError
        If the scheduler does not answer.
    """
    needed = sorted(((item, bytes_of(item)) for item in items), key=lambda pair: pair[1], reverse=True)
    ordered = [item for item, _ in needed]
    if scheduler is not None:
        yield from _on_cluster(work, ordered, scheduler)
        return
    count = min(worker_count(workers), len(ordered))
    if count <= 1:
        yield from ((item, work(item)) for item in ordered)
    else:
        yield from _in_processes(work, needed, count)


def one_ahead(
    prepare: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    may_begin: Callable[[Item, Item], bool] = lambda current, following: True,
) -> Iterator[tuple[Item, Callable[[], Outcome]]]:
    """Prepare each item while the caller is busy with the one before, such as read a scan.

    Parameters
    ----------
    prepare : callable
        Function of an item; runs in a thread, but for the first one.
    items : sequence
        The items.
    may_begin : callable
        From the current item and the one after it to whether that may be prepared now, while the current
        one is kept. If not, it is prepared when its turn comes.

    Yields
    ------
    item, result
        In the order of the items. `result()` gives what `prepare` gave, or raises what it raised. Never
        more than one item is prepared ahead.
    """
    ahead: Future[Outcome] | None = None
    for place, item in enumerate(items):
        result = ahead or _prepare_into(prepare, item, Future())
        result.exception()  # waits: two at once would only hold each other up
        following = items[place + 1 : place + 2]
        ahead = _in_thread(prepare, following[0]) if following and may_begin(item, following[0]) else None
        yield item, result.result


def _in_thread(prepare: Callable[[Item], Outcome], item: Item) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    # A daemon, unlike the threads of an executor: a run that is interrupted does not wait for it.
    arguments = (prepare, item, future)
    threading.Thread(target=_prepare_into, args=arguments, name="one-ahead", daemon=True).start()
    return future


def _prepare_into(prepare: Callable[[Item], Outcome], item: Item, future: Future[Outcome]) -> Future[Outcome]:
    try:
        future.set_result(prepare(item))
    except Exception as error:  # raised again where the result is asked for
        future.set_exception(error)
    return future


def free_memory_bytes() -> int:
    """Give the memory that processes started now may use: the machine's, or what is left of a container's."""
    free = psutil.virtual_memory().available
    for folder, names in itertools.product(_CGROUP_DIRS, _CGROUP_FILES):
        limit, used = (_text_of(folder / name) for name in names)
        if limit.isdecimal() and used.isdecimal():  # "max" where there is no limit
            free = min(free, int(limit) - int(used))
    return max(free, 0)


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# Processes -----------------------------------------------------------------------------------------


def _in_processes(
    work: Callable[[Item], Outcome], waiting: list[tuple[Item, int]], count: int
) -> Iterator[tuple[Item, Outcome | str]]:
    """Run a function over items, each with the bytes it needs."""
    running: dict[Future[Outcome], tuple[Item, int]] = {}
    budget = free_memory_bytes()
    pool = _pool(count)
    try:
        while waiting or running:
            sizes = [size for _, size in running.values()]
            for place in reversed(_startable([size for _, size in waiting], sizes, count, budget)):
                pair = waiting.pop(place)  # from behind, so that the places before it stay right
                running[_submit(pool, work, pair[0])] = pair
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if any(map(_is_lost, done)):
                # A process was killed and took all others with it: what they left is tried again, one by one.
                pool.shutdown()
                done, pool = set(running), _pool(count)
            for future in done:
                item, _ = running.pop(future)
                yield item, _alone(work, item) if _is_lost(future) else future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: Executor, work: Callable[[Item], Outcome], item: Item) -> Future[Outcome]:
    try:
        with starting_processes():  # submitting an item may start one
            return pool.submit(work, item)
    except BrokenProcessPool as error:  # a process was killed while the caller was busy with an outcome
        lost: Future[Outcome] = Future()
        lost.set_exception(error)
        return lost


def _is_lost(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _startable(waiting: Sequence[int], running: Sequence[int], count: int, budget: int) -> list[int]:
    """Choose what to start now, by the bytes needed: what fits beside what runs, one at least.

    Gives places in `waiting`.
    """
    used = sum(BASE_BYTES + size for size in running)
    started: list[int] = []
    for place, size in enumerate(waiting):
        alone = not running and not started
        if len(running) + len(started) == count:
            break
        if alone or used + BASE_BYTES + size <= budget:
            started.append(place)
            used += BASE_BYTES + size
    return started


def _alone(work: Callable[[Item], Outcome], item: Item) -> Outcome | str:
    with _pool(1) as pool:
        future = _submit(pool, work, item)
        return _KILLED if _is_lost(future) else future.result()


def _pool(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a child starts clean whatever threads the parent runs.
    context = multiprocessing.get_context("spawn")
    with starting_processes():
        return ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent)


# Cluster -------------------------------------------------------------------------------------------


def _on_cluster(
    work: Callable[[Item], Outcome], ordered: list[Item], scheduler: str
) -> Iterator[tuple[Item, Outcome | str]]:
    from distributed import Client, KilledWorker

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise ValueError(
            f"--scheduler {scheduler}: expected a Dask scheduler, found none ({found})."
        ) from None
    with client:
        executor: Executor = client.get_executor(pure=False)
        call = _portable_call()
        futures = {executor.submit(call, pickle.dumps((work, item))): item for item in ordered}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except KilledWorker:
                yield futures[future], _KILLED


def _portable_call() -> Callable[[bytes], Any]:
    """Give a function that calls a pickled function on a cluster where this project is not on the path.

    Scheduler and workers unpickle what they are sent before any line of it runs. A function made here is
    sent whole, and bytes are left alone, so the project is imported in the call only.
    """
    folder = str(PROJECT_DIR)

    def call(payload: bytes) -> Any:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        function, item = pickle.loads(payload)
        return function(item)

    return call
