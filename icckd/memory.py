"""A cache of earlier embeddings: further negatives where one batch holds too few rows of a class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from icckd import backends
from icckd.compiling import disable
from icckd.functional import checks
from icckd.ops.class_memory import class_memory_push
from icckd.ops.transforms import mapped
from icckd.ops.values import labels_below, labels_owned

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_FLOAT8 = torch.float8_e4m3fn
_LARGEST_CODE = 448.0
# Scales of float8 rows: what is read is exact in bfloat16 from this one on …
_SMALLEST_SCALE = 2.0**-124
# … and finite, in float32 too, for rows whose largest magnitude is no more than this.
_LARGEST = 240 * 2.0**120


class ClassMemory(nn.Module):
    """The `capacity` most recent embeddings of every class, oldest overwritten first.

    That there is a cache of earlier samples of the class is arXiv 2509.22053's; that it holds the most recent ones,
    class by class, is this project's choice. Everything is in the state dict. Nothing here synchronises with a GPU
    but `len()`.

    With a group each rank holds the classes that it owns, c with c mod ranks = rank, ⌈C / ranks⌉ at most, so what fits
    grows with the ranks. Rows are kept where they are owned: `push` sends them there if it is given the group, and a
    loss leaves those that it has moved itself in `icckd.exchange.Ranks.arrived`. All parts together hold what one
    process's memory would. Without a group every rank has a memory of its own. Under DistributedDataParallel use
    broadcast_buffers=False, or keep it out of the wrapped module.

    torch.float8_e4m3fn (4 significant bits, exponents from −6 to 8) keeps each row x as codes times a scale s of the
    row's own, a power of two, by which the row's largest magnitude lands in (224, 448], just below the largest code; s
    is 2⁻¹²⁴ at least. The number x̂ that is read differs from x by at most 2⁻⁴ |x| where |x| ≥ 2⁻⁶ s, and by 2⁻¹⁰ s,
    half a step of the smallest codes, below; that is less than 2⁻¹⁷ of the row's largest magnitude, unless s is the
    least. Rows are rounded to float32 first, and read as bfloat16, which holds every such product.

    Args:
        num_classes: C; rows are labelled 0 … C − 1.
        capacity: Embeddings kept per class.
        dim: D, numbers per embedding.
        dtype: Float dtype that embeddings are kept in, torch.float8_e4m3fn included.
        group: Process group among whose ranks the memory is divided.

    Attributes:
        rank, ranks: Which part of how many this is.

    Raises:
        TypeError, ValueError: A size is not a positive integer, or dtype no such dtype.
    """

    slots: Tensor
    scales: Tensor
    pushed: Tensor

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        group: "ProcessGroup | None" = None,
    ):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("capacity", capacity), ("dim", dim)):
            checks.positive_integer(name, value)
        if dtype not in (*checks.FLOAT_DTYPES, _FLOAT8):
            raise TypeError(f"dtype is {dtype}; it should be a float dtype such as torch.float32, or {_FLOAT8}")
        self.num_classes, self.capacity, self.dim = num_classes, capacity, dim
        self.rank, self.ranks = (0, 1) if group is None else (group.rank(), group.size())
        # Class c = i · ranks + rank owns slots [i · capacity, (i + 1) · capacity). The last slot takes what a push does
        # not keep.
        classes = -(-num_classes // self.ranks)
        rows = classes * capacity + 1
        if dtype == _FLOAT8:
            # The codes' bits, as few operators of PyTorch take the dtype itself; and of the scales the exponents' bits.
            self.register_buffer("slots", torch.zeros(rows, dim, dtype=torch.uint8))
            self.register_buffer("scales", torch.zeros(rows, 1, dtype=torch.uint8))
        else:
            self.register_buffer("slots", torch.zeros(rows, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.int64))

    @property
    def dtype(self) -> torch.dtype:
        """What embeddings are kept in."""
        return _FLOAT8 if self.slots.dtype == torch.uint8 else self.slots.dtype

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor, group: "ProcessGroup | Ranks | None" = None) -> None:
        """Store rows, in order, as the newest of their classes.

        Args:
            features: (N, D) float. A row with a number that is not finite, or would not be in the memory's dtype, is
                skipped: one batch that overflowed must not spoil the losses of all that come after it.
            labels: (N,) integers; rows with a negative label are skipped. In a memory that is divided they are of
                classes that this rank owns, unless `group` is given.
            group: What the memory is divided among, or an `icckd.exchange.Ranks` of it. All ranks then call this with
                rows of their own, any number of any classes, which travel to their classes' owners.

        Raises:
            TypeError, ValueError: A wrong type, shape, device or label, or a group that the memory is not divided
                among. A label of C or more, or of a class that another rank owns, is noticed on the CPU only; a GPU
                skips the row.
            RuntimeError: Within torch.vmap; or the memory was made under torch.inference_mode(), and this is outside.
        """
        self._check_changeable()
        checks.float_matrix("features", features, columns=self.dim)
        checks.integer_vector("labels", labels, features.shape[0])
        checks.same_device("features", features, "the memory", self.slots)
        checks.same_device("labels", labels, "the memory", self.slots)
        features, labels = features.detach(), labels.long()
        if group is not None:
            features, labels = self._to_owners(group, features, labels)
        if self.ranks > 1:
            labels_below("labels", labels, self.num_classes)
            labels_owned("labels", labels, self.rank, self.ranks)
            own = (labels % self.ranks == self.rank) & (labels >= 0) & (labels < self.num_classes)
            labels = torch.where(own, labels // self.ranks, -1)
        if self.dtype == _FLOAT8:
            codes, scales, fits = _in_float8(features)
            labels = torch.where(fits, labels, -1)
            # The same places twice, in plain PyTorch on every device.
            class_memory_push(self.scales, self.pushed.clone(), scales, labels, "reference")
            class_memory_push(self.slots, self.pushed, codes, labels, "reference")
        else:
            dtype = torch.promote_types(features.dtype, self.dtype)
            backend = backends.select("auto", features.device, dtype, "class_memory")
            class_memory_push(self.slots, self.pushed, features, labels, backend)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The embeddings (C · capacity, D) and their labels (C · capacity,), −1 where a slot is empty.

        With a group those of ⌈C / ranks⌉ classes.

        The embeddings are no copy: a later push changes them. Those kept in float8 are one, in bfloat16, of 2 bytes a
        number.
        """
        classes = torch.arange(len(self.pushed), device=self.pushed.device) * self.ranks + self.rank
        labels = torch.where(self._filled(), classes.unsqueeze(1), -1).flatten()
        embeddings = self.slots.narrow(0, 0, len(labels))
        if self.dtype == _FLOAT8:
            embeddings = _from_float8(embeddings, self.scales.narrow(0, 0, len(labels)))
        return embeddings, labels

    def reset(self) -> None:
        """Forget everything."""
        self._check_changeable()
        for buffer in self.buffers():
            buffer.zero_()

    def whole_state(self, group: "ProcessGroup") -> dict[str, Tensor] | None:
        """The state dict, on the CPU, of one process's memory that holds what all parts do; None but on the first rank.

        All ranks of the group that the memory is divided among call it.
        """
        # Not every build of PyTorch has torch.distributed.
        from icckd.exchange.divided import whole

        state = {}
        for name, buffer in self.named_buffers():
            classes = whole(self._by_class(buffer, len(self.pushed)), self.num_classes, group)
            if classes is not None:
                last = classes.new_zeros(1, *buffer.shape[1:])
                state[name] = classes if buffer is self.pushed else torch.cat([classes.flatten(0, 1), last])
        return None if self.rank else state

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Hold what is this part's of a state dict of one process's memory."""
        for name, buffer in self.named_buffers():
            own = self._by_class(state[name], self.num_classes)[self.rank :: self.ranks]
            self._by_class(buffer, len(self.pushed))[: len(own)].copy_(own)

    def check_divided_among(self, ranks: "Ranks") -> None:
        """Raise ValueError unless this is the part of the memory that the rank holds, of as many parts as ranks."""
        if (self.rank, self.ranks) != (ranks.rank, ranks.size):
            raise ValueError(
                f"memory holds part {self.rank} of {self.ranks}; it should hold part {ranks.rank} of {ranks.size}, "
                "as group divides it"
            )

    @disable
    def _to_owners(self, group: "ProcessGroup | Ranks", features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from icckd.exchange import line_up

        ranks = line_up(group, {"features": features}, labels=labels, num_classes=self.num_classes)
        self.check_divided_among(ranks)
        return ranks.to_owners(features, labels)

    def _by_class(self, buffer: Tensor, classes: int) -> Tensor:
        """What a buffer of so many classes holds of each, (classes, …)."""
        return buffer if buffer.dim() == 1 else buffer[:-1].view(classes, self.capacity, -1)

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
        return f"num_classes={self.num_classes}, capacity={self.capacity}, dim={self.dim}, dtype={self.dtype}"


def memory_bytes(num_classes: int, capacity: int, dim: int, dtype: torch.dtype, ranks: int = 1) -> int:
    """The bytes of a `ClassMemory`'s embeddings on each of `ranks`; with float8 those of the copy that is read too."""
    bytes_a_row = (1 + 2) * dim + 1 if dtype == _FLOAT8 else dtype.itemsize * dim
    return -(-num_classes // ranks) * capacity * bytes_a_row


def _in_float8(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D) as the bits of codes, uint8 (N, D), and of scales' exponents, uint8 (N, 1); and which fit, bool (N,).

    Each scale is the power of two that is least, and no less than _SMALLEST_SCALE, of those by which the row's
    magnitudes become 448 or less.
    """
    features = features.float()
    largest = features.abs().amax(1, keepdim=True)
    # Rounded up to a power of two: what a float32 has besides its exponent carries into that.
    bits = (largest / _LARGEST_CODE).clamp(min=_SMALLEST_SCALE).view(torch.int32)
    exponents = (bits + 0x7FFFFF).bitwise_right_shift(23)
    scales = exponents.bitwise_left_shift(23).view(torch.float32)
    codes = (features / scales).to(_FLOAT8).view(torch.uint8)
    return codes, exponents.to(torch.uint8), (largest <= _LARGEST).squeeze(1)


def _from_float8(codes: Tensor, exponents: Tensor) -> Tensor:
    """The rows that the bits of codes (N, D) and of scales' exponents (N, 1) stand for, bfloat16 (N, D)."""
    # Sign, exponent and fraction where bfloat16 has them: values · 2⁻¹²⁰. On a CPU PyTorch's own conversion takes ten
    # times as long.
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(~0x7800)
    scales = exponents.to(torch.int16).bitwise_left_shift_(7).view(torch.bfloat16)
    return bits.view(torch.bfloat16).mul_(2.0**120).mul_(scales)
