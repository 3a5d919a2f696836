"""How the rows of a batch are spread over the ranks of a process group, and how they travel.

Not every build of PyTorch has torch.distributed, which all of this needs: it is imported where there is a group.
"""

from icckd.exchange.ranks import Ranks, line_up

__all__ = ["Ranks", "line_up"]
