"""What is told to a person while work goes on, on standard error."""

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """`line` on standard error, as it is: unwrapped, and without markup."""
    console.print(line, soft_wrap=True, markup=False)
