"""What asks a process to end is heard at a safe point, and only where it is not ignored."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rib_harness.errors import InterruptedRun
from rib_harness.signals import StopFlag, TerminateAsInterrupt

ENDINGS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    # What was not heard would end the tests.
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, *ENDINGS)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDINGS])
def test_a_signal_sets_the_flag_and_a_second_one_stops_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRun), StopFlag() as stop:
        assert not stop.hit
        send(number)
        assert stop.hit
        send(signal.SIGHUP)  # of one closed terminal the kernel and the shell tell both
        send(signal.SIGTERM)
        pytest.fail("it went on")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", ENDINGS)
def test_outside_of_a_fit_it_is_an_interruption(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRun), TerminateAsInterrupt():
        send(number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDINGS])
def test_what_is_ignored_stays_ignored(number: int) -> None:
    """As `nohup` and `&` in a script have it."""
    signal.signal(number, signal.SIG_IGN)
    with TerminateAsInterrupt(), StopFlag() as stop:
        send(number)
        assert not stop.hit
    assert signal.getsignal(number) == signal.SIG_IGN
