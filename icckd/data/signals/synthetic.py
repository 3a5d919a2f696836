"""The built-in windows of made-up sensor signals: twelve people, five activities, three channels of 64 samples.

They are nobody's. Activity a repeats every 64 / f_a samples, and its harmonics have amplitudes A and phases φ of their
own in each channel. Person p does everything at a tempo r_p, has in each channel an offset o, an amplitude g and a
colouring h of the harmonics, and an oscillation of their own, b at a frequency u_p, whatever they do:

    x_c(t) = o_pc + g_pc Σ_{k=1..4} A_ack h_pck sin(2π k f_a r_p ρ_w t / 64 + k θ_w + φ_ack)
                  + b_pc sin(2π u_p t / 64 + η_w) + ε_ct,    t = 0 … 63

with θ_w and η_w uniform, a tempo ρ_w that varies a little from window to window, and normal noise ε. Tempi overlap, so
that one person's slow activity looks like another's fast one: whoever has not seen a person is often wrong about them.
All of that, and every number below, is this project's choice.
"""

import numpy as np

from icckd.data.signals.windows import Windows

PEOPLE = tuple(f"person {number:02}" for number in range(1, 13))
ACTIVITIES = tuple(f"activity {number}" for number in range(1, 6))
_WINDOWS = 24  # Of each person and activity.
_CHANNELS, _LENGTH, _HARMONICS = 3, 64, 4
_SEED = 7
_PERIODS = 2.5 * 1.3 ** np.arange(len(ACTIVITIES))  # f_a: of each activity, in a window.
_TEMPO, _OWN_TEMPO = 0.2, 0.02  # Deviations of log r_p and log ρ_w.
_COLOURING, _AMPLITUDE, _OFFSET = 0.6, 0.2, 0.5  # Deviations of log h, log g and o.
_OWN_AMPLITUDE = 1.5  # b is uniform up to that, u_p between 2 and 12 periods a window.
_NOISE = 0.5


def synthetic_windows() -> Windows:
    """The windows, 1440 of (3, 64), by person, then by activity; always the same."""
    random = np.random.default_rng(_SEED)
    shape = (len(ACTIVITIES), _CHANNELS, _HARMONICS)
    amplitude = random.gamma(2.0, 0.5, shape) / np.sqrt(np.arange(1, _HARMONICS + 1))
    phase = random.uniform(0, 2 * np.pi, shape)
    people = [_windows_of_person(random, amplitude, phase) for _ in PEOPLE]
    person = np.repeat(np.arange(len(PEOPLE)), len(ACTIVITIES) * _WINDOWS)
    activity = np.tile(np.repeat(np.arange(len(ACTIVITIES)), _WINDOWS), len(PEOPLE))
    signals = np.concatenate(people).astype(np.float32)
    return Windows(signals, activity, person, ACTIVITIES, PEOPLE, "synthetic signals")


def _windows_of_person(random: np.random.Generator, amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """A person's windows of every activity, float64 (activities · windows, channels, length)."""
    tempo = np.exp(random.normal(0, _TEMPO))
    colouring = np.exp(random.normal(0, _COLOURING, (_CHANNELS, _HARMONICS)))
    gain = np.exp(random.normal(0, _AMPLITUDE, (_CHANNELS, 1)))
    offset = random.normal(0, _OFFSET, (_CHANNELS, 1))
    own = random.uniform(0, _OWN_AMPLITUDE, (_CHANNELS, 1)), random.uniform(2, 12)
    windows = []
    for periods, amplitudes, phases in zip(_PERIODS, amplitude * colouring, phase, strict=True):
        for _ in range(_WINDOWS):
            rate = periods * tempo * np.exp(random.normal(0, _OWN_TEMPO))
            signal = gain * _harmonics(rate, random.uniform(0, 2 * np.pi), amplitudes, phases)
            confusion = own[0] * np.sin(_angles(own[1]) + random.uniform(0, 2 * np.pi))
            windows.append(offset + signal + confusion + random.normal(0, _NOISE, signal.shape))
    return np.stack(windows)


def _harmonics(rate: float, start: float, amplitudes: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """The sum of the harmonics of `rate` periods a window, (channels, length); amplitudes, phases (channels, k)."""
    number = np.arange(1, _HARMONICS + 1)
    angles = number[:, None] * (_angles(rate) + start)
    return (amplitudes[..., None] * np.sin(angles + phases[..., None])).sum(axis=1)


def _angles(rate: float) -> np.ndarray:
    return 2 * np.pi * rate * np.arange(_LENGTH) / _LENGTH
