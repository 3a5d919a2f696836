"""A cache of earlier embeddings: further negatives where one batch holds too few rows of a class."""

import torch
from torch import Tensor, nn

from icckd import backends
from icckd.functional import checks
from icckd.ops.class_memory import class_memory_push
from icckd.ops.transforms import mapped


class ClassMemory(nn.Module):
    """The `capacity` most recent embeddings of every class, oldest overwritten first.

    That there is a cache of earlier samples of the class is arXiv 2509.22053's; that it holds the most recent ones,
    class by class, is this project's choice. Everything is in the state dict. Nothing here synchronises with a GPU
    but `len()`.
    Under DistributedDataParallel every rank has a memory of its own: use broadcast_buffers=False, or keep it out of the
    wrapped module.

    Args:
        num_classes: C; rows are labelled 0 … C − 1.
        capacity: Embeddings kept per class.
        dim: D, numbers per embedding.
        dtype: Float dtype that embeddings are kept in.

    Raises:
        TypeError, ValueError: A size is not a positive integer, or dtype no float dtype.
    """

    slots: Tensor
    pushed: Tensor

    def __init__(self, num_classes: int, capacity: int, dim: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("capacity", capacity), ("dim", dim)):
            checks.positive_integer(name, value)
        if dtype not in checks.FLOAT_DTYPES:
            raise TypeError(f"dtype is {dtype}; it should be a float dtype such as torch.float32")
        self.num_classes, self.capacity, self.dim = num_classes, capacity, dim
        # Class c owns slots [c · capacity, (c + 1) · capacity). The last slot takes what a push does not keep.
        self.register_buffer("slots", torch.zeros(num_classes * capacity + 1, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor) -> None:
        """Store rows, in order, as the newest of their classes.

        Args:
            features: (N, D) float. A row with a number that is not finite, or would not be in the memory's dtype, is
                skipped: one batch that overflowed must not spoil the losses of all that come after it.
            labels: (N,) integers; rows with a negative label are skipped.

        Raises:
            TypeError, ValueError: A wrong type, shape, device or label. A label of C or more is noticed on the CPU
                only; a GPU skips the row.
            RuntimeError: Within torch.vmap; or the memory was made under torch.inference_mode(), and this is outside.
        """
        self._check_changeable()
        checks.float_matrix("features", features, columns=self.dim)
        checks.integer_vector("labels", labels, features.shape[0])
        checks.same_device("features", features, "the memory", self.slots)
        checks.same_device("labels", labels, "the memory", self.slots)
        dtype = torch.promote_types(features.dtype, self.slots.dtype)
        backend = backends.select("auto", features.device, dtype, "class_memory")
        class_memory_push(self.slots, self.pushed, features.detach(), labels.long(), backend)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The embeddings (C · capacity, D) and their labels (C · capacity,), −1 where a slot is empty.

        The embeddings are no copy: a later push changes them.
        """
        classes = torch.arange(self.num_classes, device=self.pushed.device)
        labels = torch.where(self._filled(), classes.unsqueeze(1), -1)
        return self.slots.narrow(0, 0, labels.numel()), labels.flatten()

    def reset(self) -> None:
        """Forget everything."""
        self._check_changeable()
        self.slots.zero_()
        self.pushed.zero_()

    def __len__(self) -> int:
        """The number of filled slots. Synchronises with a GPU."""
        return int(self._filled().sum())

    def __bool__(self) -> bool:
        """True: an empty memory is a memory."""
        return True

    def _filled(self) -> Tensor:
        return torch.arange(self.capacity, device=self.pushed.device) < self.pushed.unsqueeze(1)

    def _check_changeable(self) -> None:
        if not torch.compiler.is_compiling() and self.slots.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "the memory was made under torch.inference_mode(), and can be changed there only; make it outside"
            )
        if mapped():
            raise RuntimeError("a memory cannot be changed within torch.vmap; push or reset outside of it")

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, capacity={self.capacity}, dim={self.dim}, dtype={self.slots.dtype}"
