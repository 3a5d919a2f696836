"""Which training images each client of a federation holds."""

import numpy as np
import torch
from torch import Tensor

from icckd.errors import UserError

# A single image has no variance to be normalised by.
LEAST_IMAGES = 2
# First word of the seed, so that it shares no stream with orders and augmentation.
_PARTITION = 3


def partition(labels: Tensor, clients: int, concentration: float, seed: int) -> list[Tensor]:
    """The places of each client's images, int64, rising: every image belongs to one client.

    The images of each class, in a random order, are cut into parts in the proportions that a symmetric Dirichlet
    distribution of this concentration draws for the clients, class after class (Yurochkin et al. 2019, arXiv
    1905.12022): the smaller the concentration, the fewer clients hold most of a class. A client with fewer than two
    images is then given some, one after another, of whichever client has the most (this project's choice). A pure
    function of its arguments: the same for every network, method and number of rounds.

    Raises UserError where there are fewer than two of the N `labels`, int64 (N,), for each client.
    """
    if len(labels) < LEAST_IMAGES * clients:
        raise UserError(
            f"federated.clients is {clients}; there are {len(labels)} training images, and each client needs "
            f"{LEAST_IMAGES} or more: give {len(labels) // LEAST_IMAGES} clients at most"
        )
    random, on_host = np.random.default_rng([_PARTITION, seed]), labels.cpu().numpy()
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in range(on_host.max() + 1):
        of_class = random.permutation(np.flatnonzero(on_host == label))
        shares = random.dirichlet(np.full(clients, concentration))
        ends = np.rint(np.cumsum(shares) * len(of_class)).astype(int)[:-1]
        for part, more in zip(parts, np.split(of_class, ends), strict=True):
            part += more.tolist()
    for part in parts:
        while len(part) < LEAST_IMAGES:
            part.append(max(parts, key=len).pop())
    return [torch.tensor(sorted(part)) for part in parts]
