# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Torch's threads are as many after a block of one thread as before it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from monai_autoaug.tensors import one_thread


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_blocks_within_each_other() -> None:
    with one_thread():
        with one_thread():
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_error_within() -> None:
    with pytest.raises(ValueError, match="mine"), one_thread():
        raise ValueError("mine")
    assert torch.get_num_threads() == 2


def test_a_thread_that_begins_while_another_is_within() -> None:
    """It would take the other's single thread for its own number."""
    found: list[int] = []

    def work() -> None:
        with one_thread():
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    with one_thread():
        other = threading.Thread(target=work)
        other.start()
        other.join()
        assert torch.get_num_threads() == 1
    assert found == [1, 2]
    assert torch.get_num_threads() == 2


def test_a_block_that_is_left_while_another_thread_is_within() -> None:
    entered, left, found = threading.Event(), threading.Event(), []

    def work() -> None:
        with one_thread():
            entered.set()
            left.wait()
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    other = threading.Thread(target=work)
    with one_thread():
        other.start()
        entered.wait()
    left.set()
    other.join()
    assert found == [1, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_is_within() -> None:
    within, end = threading.Event(), threading.Event()

    def work() -> None:
        with one_thread():
            within.set()
            end.wait()

    other = threading.Thread(target=work)
    other.start()
    within.wait()
    torch.set_num_threads(2)
    pid = os.fork()
    if pid == 0:  # no assertion: pytest must not go on here
        with one_thread():
            inside = torch.get_num_threads()
        os._exit(0 if (inside, torch.get_num_threads()) == (1, 2) else 1)
    end.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
