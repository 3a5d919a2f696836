"""Whether the settings' values are right.

`checking` puts together what `data` says of the images, `signals` of what has no meaning for windows of signals,
`networks` of both networks' trainings and losses; `rule` says what each of them is.
"""

from icckd.settings.checks.checking import check, check_text

__all__ = ["check", "check_text"]
