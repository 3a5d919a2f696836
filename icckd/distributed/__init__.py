"""The processes of a run.

`launch` says who and how many they are; `lifeline` ends all where one dies or fails, as the `hub` decides, which has a
`line` to each; `world` is what the rest of the package sees of them. Training has `replicas`, `parts` and `batch_norm`.
"""

from icckd.distributed.launch import Launch, launched
from icckd.distributed.world import ALONE, World, check_available, join, tell

__all__ = ["ALONE", "Launch", "World", "check_available", "join", "launched", "tell"]
