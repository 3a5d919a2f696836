"""The processes of a run.

`launch` says who and how many they are; `lifeline` ends all where one dies or fails; `world` is what the rest of the
package sees of them.
"""

from icckd.distributed.launch import Launch, launched
from icckd.distributed.world import ALONE, World, check_available, join, tell

__all__ = ["ALONE", "Launch", "World", "check_available", "join", "launched", "tell"]
