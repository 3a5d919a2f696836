"""Fitting a procedure's training to the end, or to where something ends it before."""

import signal

import torch

from icckd.training import Checkpoint, StopSignal


class Killed(Exception):
    """As a kill does, it leaves nothing but the checkpoint that was written last."""


def fit(training, folder, *, every=1, stop_after=None, kill_after=None):
    """Train, with a checkpoint `every` steps; as if a signal came, or a kill, after so many steps, if given."""
    stop, steps = StopSignal(), 0

    def on_step(epoch, step, loss):
        nonlocal steps
        steps += 1
        if steps == stop_after:
            stop.received = signal.SIGTERM
        if steps == kill_after:
            raise Killed

    training.fit(Checkpoint(folder), every, lambda: {"test_accuracy": 0.5}, on_step, lambda history: None, stop)
    return training


def without_time(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def the_same(one, other):
    """Are the histories of two trainings, but for their seconds, and their networks?"""
    assert without_time(one.history) == without_time(other.history)
    networks = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    return True
