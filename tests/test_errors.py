import pytest

from icckd.errors import UserError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 写 – text", "plain é 写 – text"),
        ("a\nb\tc", r"a\nb\tc"),
        ("caf\udce9", r"caf\udce9"),
        ("\x1b[31m", r"\x1b[31m"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_cannot_be_printed_on_a_line_is_escaped(text, shown):
    assert printable(text) == shown
    assert str(UserError(text)) == shown
    shown.encode()
