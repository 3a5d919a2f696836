import os
import signal

import pytest

from icckd.training import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def interrupt_twice():
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_second_signal_acts_as_before():
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


@pytest.fixture
def noted():
    """Signals that reach this process outside of the context, and the handlers of before afterwards."""
    found = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: found.append(number)) for number in numbers}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def obey():
    with StopSignal(launched=True) as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        raise RuntimeError(f"obeyed {stop.received}")


def test_of_a_launchers_signals_the_first_counts(noted):
    with pytest.raises(RuntimeError, match="obeyed 2"):
        obey()
    # The process is ending: the launcher's next changes nothing.
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted == []


def test_a_launchers_signal_that_came_too_late_is_raised_again(noted):
    with StopSignal(launched=True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == []
    assert noted == [signal.SIGTERM]
