"""`icckd bench`: this package's functions beside the ways that others compute them, timed on the machine at hand.

command      what `icckd bench` does
options      what may be written behind it, and what is wrong with what was written
functions/   what is computed: a file per family with its inputs, contenders and least work; their names and usual sizes
case         what a definition in functions/ consists of
peers        the intra-class loss as people compute it
accuracy     results beside float64: who is too far off to be timed
measure      clocks, turns, quantiles, and what a number was measured on
floor        the least that a case can take here
speed        all of that for one case: its rows
table, plot  the rows for a person
output       the rows in files
recorded/    the rows of machines that were measured before

The repository's own benchmarks, in bench/, are built on it. Needs nothing but PyTorch and NumPy where nothing is drawn.
"""
