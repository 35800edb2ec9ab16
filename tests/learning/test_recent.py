"""What is kept: the values used last, up to a number of bytes."""

import threading

import pytest

from utils.learning.recent import RecentlyUsed


def made_by(kept, keys, made):
    for key in keys:
        assert kept.get(key, lambda key=key: (made.append(key), "x" * key)[1]) == "x" * key


def test_the_value_not_used_for_longest_goes_first():
    kept, made = RecentlyUsed(9, len), []
    made_by(kept, [2, 3, 4], made)  # 9 bytes: all stay
    made_by(kept, [2, 3, 4, 2], made)
    assert made == [2, 3, 4]
    made_by(kept, [1], made)  # 3 goes, whose use lies back longest
    made_by(kept, [4, 2, 1], made)
    assert made == [2, 3, 4, 1]
    made_by(kept, [3], made)  # 4 goes
    made_by(kept, [2, 1, 3], made)
    assert made == [2, 3, 4, 1, 3]


def test_a_value_larger_than_all_room_is_given_but_not_kept():
    kept, made = RecentlyUsed(3, len), []
    made_by(kept, [4, 4, 2, 2], made)
    assert made == [4, 4, 2]


def test_a_value_that_cannot_be_made_is_not_kept():
    kept = RecentlyUsed(3, len)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.get("a", lambda: 1 / 0)
    assert kept.get("a", lambda: "x") == "x"


def test_threads_that_make_one_value_count_it_once():
    kept, together = RecentlyUsed(3, len), threading.Barrier(2)

    def make():
        together.wait(30)
        return "xx"

    threads = [threading.Thread(target=kept.get, args=("a", make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    made = []
    made_by(kept, [1], made)  # 2 + 1 bytes: both stay
    assert kept.get("a", lambda: "made again") == "xx"
