"""One function over many items: the same outcomes in this process, in several, and on a Dask cluster."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import ClassVar

import pytest

from utils import execution
from utils.execution import free_memory_bytes, in_shard, one_ahead, outcomes
from utils.settings import worker_count


def square(number: int) -> int:
    return number * number


def pid_of(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    time.sleep(0.2)  # long enough to be at work when the other dies
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_its_outcome(workers):
    assert sorted(outcomes(square, range(7), workers=workers)) == [(n, n * n) for n in range(7)]


def test_no_items_are_no_outcomes():
    assert list(outcomes(square, [], workers=0)) == []


def test_several_processes_share_the_work():
    here = {pid for _, pid in outcomes(pid_of, range(4), workers=1)}
    apart = {pid for _, pid in outcomes(pid_of, range(12), workers=2)}
    assert here == {os.getpid()}
    assert len(apart) == 2 and os.getpid() not in apart


def test_the_largest_goes_first():
    sizes = {"a": 3, "b": 9, "c": 1}
    assert [item for item, _ in outcomes(str.upper, sizes, bytes_of=sizes.get)] == ["b", "a", "c"]


def test_a_killed_process_costs_its_own_item_alone():
    found = dict(outcomes(die_at_three, range(6), workers=2))
    assert found.pop(3).startswith("a process that was killed")
    assert found == {n: n for n in range(6) if n != 3}


def test_processes_killed_while_the_caller_is_busy_cost_no_item():
    """Nothing runs then, so that the next item is given to processes that are gone."""
    others = set(multiprocessing.active_children())
    found = outcomes(square, range(6), workers=2)
    first = next(found)
    processes = set(multiprocessing.active_children()) - others
    assert processes
    for process in processes:
        process.kill()
        process.join(WAIT_SECONDS)
    assert sorted([first, *found]) == [(n, n * n) for n in range(6)]


class PoolOfThisProcess:
    """Runs what it is given at once; the first of its kind breaks at item 1."""

    made: ClassVar[list["PoolOfThisProcess"]] = []

    def __init__(self, count):
        self.made.append(self)

    def submit(self, work, item):
        future = Future()
        if item == 1 and self is self.made[0]:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(work(item))
        return future

    def shutdown(self, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_an_item_that_was_done_when_another_was_killed_is_not_done_again(monkeypatch):
    monkeypatch.setattr(execution, "_pool", PoolOfThisProcess)
    done = []
    assert sorted(outcomes(done.append, [0, 1], workers=2)) == [(0, None), (1, None)]
    assert sorted(done) == [0, 1]


def test_what_starts_fits_into_the_memory():
    base, size = execution.BASE_BYTES, 10 * execution.BASE_BYTES

    def startable(waiting, running, budget, count=4):
        return execution._startable(waiting, running, count, budget)

    assert startable([size, size, size], [], 2 * (base + size)) == [0, 1]
    assert startable([size, size], [size], 2 * (base + size)) == [0]
    # The large one does not fit beside what runs; the small one behind it does.
    assert startable([5 * size, size // 2], [size], 2 * (base + size)) == [1]
    assert startable([size], [], 0) == [0]  # nothing runs: one is tried whatever its size
    assert startable([1, 1, 1], [1], 2**60, count=2) == [0]


def test_the_size_of_an_item_is_asked_for_once():
    asked = []
    found = outcomes(square, range(5), workers=2, bytes_of=lambda item: asked.append(item) or item)
    assert sorted(found) == [(n, n * n) for n in range(5)]
    assert sorted(asked) == list(range(5))


def test_the_free_memory_is_no_more_than_the_container_has(tmp_path, monkeypatch):
    machine = free_memory_bytes()
    assert machine > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(execution, "_CGROUP_DIRS", (tmp_path,))
    assert free_memory_bytes() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes() > 600_000


def test_shards_hold_every_item_once():
    items = list("abcdefg")
    shards = [in_shard(items, f"{number}/3") for number in (1, 2, 3)]
    assert shards == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert in_shard(items, None) == items


def test_a_cluster_that_does_not_know_the_project_gives_the_same(scheduler):
    found = sorted(outcomes(worker_count, range(1, 6), scheduler=scheduler))
    assert found == [(n, n) for n in range(1, 6)]


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(execution, "CONNECT_SECONDS", 1)
    with pytest.raises(
        ValueError, match=r"--scheduler tcp://127\.0\.0\.1:9: expected a Dask scheduler, found"
    ):
        list(outcomes(square, [1], scheduler="tcp://127.0.0.1:9"))


WAIT_SECONDS = 20


def test_one_item_is_prepared_ahead_and_no_more():
    begun = {number: threading.Event() for number in range(4)}

    def prepare(number):
        begun[number].set()
        return number * number

    found = []
    for number, result in one_ahead(prepare, range(4)):
        found.append((number, result()))
        if number < 3:
            assert begun[number + 1].wait(WAIT_SECONDS)
        assert not any(begun[later].is_set() for later in range(number + 2, 4))
    assert found == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_an_item_that_may_not_be_prepared_ahead_is_prepared_in_its_turn():
    begun, pairs = [], []

    def may_begin(current, following):
        pairs.append((current, following))
        return False

    for number, result in one_ahead(begun.append, "abc", may_begin=may_begin):
        assert begun == list("abc"[: "abc".index(number) + 1]) and result() is None
    assert pairs == [("a", "b"), ("b", "c")]


def test_an_error_of_preparing_is_raised_at_its_own_item():
    def prepare(number):
        return 1 // number

    found = one_ahead(prepare, [1, 0, 1])
    assert next(found)[1]() == 1
    _, result = next(found)
    with pytest.raises(ZeroDivisionError):
        result()
    assert next(found)[1]() == 1


def test_an_interrupted_run_does_not_wait_for_what_is_prepared_ahead():
    begun, end = threading.Event(), threading.Event()

    def prepare(number):
        if number == 1:
            begun.set()
            end.wait(WAIT_SECONDS)

    def run():
        for _ in one_ahead(prepare, range(3)):
            begun.wait(WAIT_SECONDS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    (thread,) = [each for each in threading.enumerate() if each.name == "one-ahead"]
    assert thread.daemon
    end.set()
    thread.join(WAIT_SECONDS)
