"""Launch options for Triton's interpreter: tiles so small that tests of a few rows meet every branch."""

TABLE = {}
