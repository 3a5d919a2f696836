"""Each training image's latest embedding."""

import torch
from torch import Tensor, nn


class LatestEmbeddings(nn.Module):
    """The latest embedding of each of N images, float32 (N, D), by the image's place in the training data.

    Where each image comes once an epoch, what is found is of the epoch before. Nothing here waits for a GPU.
    """

    embeddings: Tensor
    known: Tensor

    def __init__(self, images: int, dim: int):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(images, dim))
        self.register_buffer("known", torch.zeros(images, dtype=torch.bool))

    def find(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, D) of the images at `indices` (B,), 0 where there is none, and whether there is (B,)."""
        return self.embeddings[indices], self.known[indices]

    @torch.no_grad()
    def keep(self, indices: Tensor, features: Tensor, taken: Tensor) -> None:
        """Remember `features` (B, D) of the images at `indices` (B,), those that are finite, if `taken`, 0-dim bool."""
        before, known = self.find(indices)
        good = taken & features.isfinite().all(1)
        self.embeddings.index_copy_(0, indices, torch.where(good.unsqueeze(1), features.float(), before))
        self.known.index_copy_(0, indices, known | good)
