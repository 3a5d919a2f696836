"""Each training image's latest embedding."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks


class LatestEmbeddings(nn.Module):
    """The latest embedding of each of N images, float32 (N, D), by the image's place in the training data.

    Where each image comes once an epoch, what is found is of the epoch before. Nothing here waits for a GPU.

    With a group each rank holds those of image i with i mod ranks = rank, ⌈N / ranks⌉ at most. All ranks then find and
    keep at the same time, each its own images of the batch, given what all of them know of the batch: its counts and
    indices.
    """

    embeddings: Tensor
    known: Tensor

    def __init__(self, images: int, dim: int, group: "ProcessGroup | None" = None):
        super().__init__()
        self.images = images
        self.rank, self.ranks = (0, 1) if group is None else (group.rank(), group.size())
        held = -(-images // self.ranks)
        self.register_buffer("embeddings", torch.zeros(held, dim))
        self.register_buffer("known", torch.zeros(held, dtype=torch.bool))

    def find(self, indices: Tensor, ranks: "Ranks | None" = None) -> tuple[Tensor, Tensor]:
        """The embeddings (B, D) of the images at `indices` (B,), 0 where there is none, and whether there is (B,)."""
        if ranks is None:
            return self.embeddings[indices], self.known[indices]
        route, places = ranks.to_images(indices.device)
        with torch.no_grad():
            embeddings, known = route.back(self.embeddings[places], self.known[places])
        return embeddings, known

    @torch.no_grad()
    def keep(self, indices: Tensor, features: Tensor, taken: Tensor, ranks: "Ranks | None" = None) -> None:
        """Remember `features` (B, D) of the images at `indices` (B,), those that are finite, if `taken`, 0-dim bool."""
        if ranks is not None:
            route, indices = ranks.to_images(indices.device)
            (features,) = route.there(features)
        before, known = self.embeddings[indices], self.known[indices]
        good = taken & features.isfinite().all(1)
        self.embeddings.index_copy_(0, indices, torch.where(good.unsqueeze(1), features.float(), before))
        self.known.index_copy_(0, indices, known | good)

    def whole_state(self, group: "ProcessGroup") -> dict[str, Tensor] | None:
        """The state dict, on the CPU, of one process's embeddings that are what all parts hold; None but on rank 0.

        All ranks of the group that they are divided among call it.
        """
        # Not every build of PyTorch has torch.distributed.
        from icckd.exchange.divided import whole

        state = {name: whole(part, self.images, group) for name, part in self.named_buffers()}
        return None if self.rank else {name: part for name, part in state.items() if part is not None}

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Hold what is this part's of a state dict of one process's embeddings."""
        for name, buffer in self.named_buffers():
            own = state[name][self.rank :: self.ranks]
            buffer[: len(own)].copy_(own)
