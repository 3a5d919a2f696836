"""The errors that this package raises beyond Python's own ValueError and TypeError."""


def printable(text: str) -> str:
    """`text` on one line of characters that can be seen and encoded: others, as file names may hold, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class BackendUnavailable(RuntimeError):
    """A backend cannot run here; the message says why and what would make it available."""


class UserError(ValueError):
    """A setting or an input file is wrong. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class TrainingDiverged(RuntimeError):
    """The loss, the network or its answers are not finite and will not be again. The command line exits with 3."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop; a checkpoint was saved first. The command line exits with 128 + signal."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number} after saving a checkpoint; --resume continues")
        self.signal_number = signal_number
