"""Disparity learning: what people share of an activity is kept apart from how each of them does it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from icckd.backends.arithmetic import accumulation_dtype
from icckd.errors import UserError
from icckd.methods.base import (
    EvaluationSet,
    Findings,
    MethodSettings,
    Network,
    Outputs,
    Rule,
    Samples,
    TeacherMethod,
    TrainingSet,
    register,
)

# Of the ramp of the reversed gradient: Ganin & Lempitsky 2015.
_STEEPNESS = 10
# Of so many test windows codes are kept for the report's picture.
_KEPT = 400
_DECODED_AT_ONCE = 500


@dataclass
class SpectrumSettings(MethodSettings):
    """Disparity learning for sensor signals of several people (arXiv 2007.06831).

    Args:
        reconstruction: Weight of the squared error of the windows that are decoded from both codes.
        spectrum: Weight of the difference of their magnitude spectra from the windows', λ_s.
        adversarial: Weight, at the end of the training, of the reversed gradient by which the network's features hide
            the person; it rises from 0.
        swap: Weight of the cross-entropy of windows decoded with the disparity code of another person of their class.
        width: Channels of the disparity encoder after its first layer and of the decoder before its last; between there
            are twice as many. Both are dropped after training, as the discriminator is.
    """

    reconstruction: float = 3.0
    spectrum: float = 0.5
    adversarial: float = 0.3
    swap: float = 0.1
    width: int = 16

    def rules(self) -> dict[str, Rule]:
        return {**super().rules(), "width": Rule(self.width >= 1, "1 or more")}


@register
class Spectrum(TeacherMethod):
    """Windows x (channels, 1, length) of signals of several people, each with its class y and its person.

    The network's features are the class code z_p = E_p(x), which is kept; an encoder of the method's gives the
    disparity code z_d = E_d(x), as wide; x' = G(z_p + z_d) is decoded from both. The means over the windows of

        CE(x, y) + reconstruction · ‖x − x'‖² + spectrum · ‖ |FFT x| − |FFT x'| ‖₁ + CE(D(R(z_p), y), person)
        + swap · CE(G(z_p + z_d of another person of the class), y)

    ‖·‖² and ‖·‖₁ are means over a window's numbers; FFT is orthonormal, along time, of real signals. The discriminator
    D tells the person from (z_p, y); R reverses its gradient, times adversarial · (2 / (1 + exp(−10 · progress)) − 1),
    the ramp of Ganin & Lempitsky 2015 (arXiv 1409.7495): at first D has learned nothing that is worth hiding from. In
    the last term the network judges as it is: it learns from the window, through both codes and G, and not from its
    own judgement. The other person's window is the batch's next of the class, cyclically; a window that has none adds
    0. Only the abstract of arXiv 2007.06831 is followed: formulas, ramp and networks are this project's choice.
    """

    name = "spectrum"
    spans_ranks = True
    settings: SpectrumSettings
    encoder: nn.Module
    decoder: nn.Module
    discriminator: nn.Module
    people: Tensor

    def __init__(self, settings: SpectrumSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.network = network

    def prepare(self, known: TrainingSet) -> None:
        if known.people is None:
            raise UserError(
                "teacher.loss.method is spectrum, which compares people, and of these data nobody knows whose they "
                "are; data.name should be signals"
            )
        everybody, people = known.people.unique(return_inverse=True)
        if len(everybody) < 2:
            raise UserError(
                "teacher.loss.method is spectrum, which compares people, and all training windows are of one person; "
                "there should be two people or more"
            )
        width, dim, (channels, height, length) = self.settings.width, self.network.feature_dim, known.shape
        self.encoder = _encoder(channels * height, length, width, dim)
        self.decoder = _Decoder(dim, width, known.shape)
        self.discriminator = _Discriminator(dim, self.network.classes, len(everybody))
        self.register_buffer("people", people, persistent=False)

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        settings, images, labels = self.settings, samples.images, samples.labels
        assert images is not None
        people, kept = self.people[samples.indices], outputs.features
        disparity = self.encoder(images)
        decoded, window = _precise(self.decoder(kept + disparity)), _precise(images)
        person = self.discriminator(reverse(kept, settings.adversarial * _ramp(samples.progress)), labels)
        losses = {
            "cross_entropy": samples.mean(_cross_entropy(outputs.logits, labels).sum()),
            "reconstruction": samples.mean((window - decoded).square().flatten(1).mean(dim=1).sum()),
            "spectrum": samples.mean((magnitudes(window) - magnitudes(decoded)).abs().flatten(1).mean(dim=1).sum()),
            "adversarial": samples.mean(_cross_entropy(person, people).sum()),
            "swap": samples.mean(self._swapped(kept, disparity, people, samples).sum()),
        }
        loss = losses["cross_entropy"] + settings.reconstruction * losses["reconstruction"]
        loss = loss + settings.spectrum * losses["spectrum"] + losses["adversarial"] + settings.swap * losses["swap"]
        return {"loss": loss, **losses}

    @torch.no_grad()
    def findings(self, test: EvaluationSet) -> Findings:
        """The swap test, and the codes of up to 400 test windows, evenly spread over their order.

        Of the test windows that have a partner, as above but among all test windows, the network names the class of
        the decoded window rightly: reconstruction_accuracy, the fraction where both codes are the window's own;
        swap_accuracy, where the disparity code is the partner's. nan where no window has a partner: all test windows
        of each class are of one person. "people" counts the test windows' people from 0.
        """
        assert test.people is not None
        codes = [(test.ask(images).features, self.encoder(images)) for images in test.images]
        kept, disparity = (torch.cat(each) for each in zip(*codes, strict=True))
        labels, people = test.labels.to(kept.device), test.people.to(kept.device)
        partner = partners(labels, people)
        paired = (partner >= 0).nonzero().flatten()
        numbers = {
            f"{name}_accuracy": self._accuracy(kept[paired] + disparity[other], labels[paired], test)
            for name, other in (("reconstruction", paired), ("swap", partner[paired]))
        }
        shown = torch.linspace(0, len(labels) - 1, min(len(labels), _KEPT), dtype=torch.float64).round().long()
        tensors = {
            "class_codes": kept.float(),
            "disparity_codes": disparity.float(),
            "labels": labels,
            "people": people.unique(return_inverse=True)[1],
        }
        return Findings(numbers, {name: tensor.cpu()[shown] for name, tensor in tensors.items()})

    def _accuracy(self, codes: Tensor, labels: Tensor, test: EvaluationSet) -> float:
        """The fraction of windows decoded from `codes` (M, dim) that the network names as `labels` (M,) say."""
        parts = zip(codes.split(_DECODED_AT_ONCE), labels.split(_DECODED_AT_ONCE), strict=True)
        right = [test.ask(self.decoder(part)).logits.argmax(dim=1) == label for part, label in parts]
        return torch.cat(right).double().mean().item()

    def _swapped(self, kept: Tensor, disparity: Tensor, people: Tensor, samples: Samples) -> Tensor:
        """What the network makes of each window (B,) with another person's disparity code; 0 where there is none."""
        labels, own, ranks = samples.labels, slice(None), samples.ranks
        assert samples.ask is not None
        if ranks is not None:
            disparity, own = ranks.gather_with_gradient(disparity), ranks.own
            labels, people = ranks.gather(labels), ranks.gather(people)
        partner = partners(labels, people)[own]
        decoded = self.decoder(kept + disparity[partner.clamp(min=0)])
        return _cross_entropy(samples.ask(decoded).logits, samples.labels).where(partner >= 0, 0)


def partners(labels: Tensor, people: Tensor) -> Tensor:
    """Of each of N rows the next of its class that is of another person, cyclically: int64 (N,), −1 where none is.

    O(N log N), and nothing waits for a GPU. `labels` and `people` are int64 (N,).
    """
    count = len(labels)
    order = labels.argsort(stable=True)
    label, person = labels[order], people[order]
    places = torch.arange(count, device=labels.device)
    begins = (label != label.roll(1)) | (person != person.roll(1))
    # Of each place, sorted by class, the next at which a row of another person or class stands; `count` for none.
    at_or_after = torch.where(begins, places, count).flip(0).cummin(0).values.flip(0)
    following = torch.cat([at_or_after[1:], places.new_full((1,), count)])
    first = torch.searchsorted(label, label)
    around = torch.where(person[first] == person, following[first], first)
    found = torch.where(_of_class(following, label), following, around)
    partner = torch.where(_of_class(found, label), order[found.clamp(max=count - 1)], -1)
    return torch.empty_like(partner).index_copy_(0, order, partner)


def _of_class(places: Tensor, label: Tensor) -> Tensor:
    """Is at each of these places, which may lie beyond the last, a row of the class in `label`?"""
    return (places < len(label)) & (label[places.clamp(max=len(label) - 1)] == label)


def reverse(x: Tensor, weight: float) -> Tensor:
    """`x`, whose gradient is multiplied by −`weight` on its way back (Ganin & Lempitsky 2015, arXiv 1409.7495)."""
    reversed_: Tensor = _Reverse.apply(x, weight)
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def magnitudes(windows: Tensor) -> Tensor:
    """The orthonormal magnitude spectra (…, length // 2 + 1) along time of windows (…, length)."""
    if not windows.numel():  # Of no windows PyTorch has no transform.
        return windows[..., : windows.shape[-1] // 2 + 1]
    return torch.fft.rfft(windows, norm="ortho").abs()


def _ramp(progress: float) -> float:
    return 2 / (1 + math.exp(-_STEEPNESS * progress)) - 1


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(_precise(logits), labels, reduction="none")


def _precise(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x))


def _encoder(channels: int, length: int, width: int, dim: int) -> nn.Sequential:
    """Windows (B, …, length) → codes (B, dim). Where in the window something happens is kept: nothing is averaged."""
    return nn.Sequential(
        nn.Flatten(1, 2),
        *(nn.Conv1d(channels, width, 5, stride=2, padding=2), nn.GroupNorm(1, width), nn.ReLU()),
        *(nn.Conv1d(width, 2 * width, 5, stride=2, padding=2), nn.GroupNorm(1, 2 * width), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * width * _quarter(length), dim)),
    )


class _Decoder(nn.Module):
    """Codes (B, dim) → windows (B, *shape)."""

    def __init__(self, dim: int, width: int, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape
        channels, height, length = shape
        self.layers = nn.Sequential(
            *(nn.Linear(dim, 2 * width * _quarter(length)), nn.Unflatten(1, (2 * width, _quarter(length)))),
            *(nn.GroupNorm(1, 2 * width), nn.ReLU()),
            *(nn.ConvTranspose1d(2 * width, width, 4, stride=2, padding=1), nn.GroupNorm(1, width), nn.ReLU()),
            nn.ConvTranspose1d(width, channels * height, 4, stride=2, padding=1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers(codes)[..., : self.shape[2]].unflatten(1, self.shape[:2])


class _Discriminator(nn.Module):
    """Class codes (B, dim) and classes (B,) → logits of the people (B, people)."""

    def __init__(self, dim: int, classes: int, people: int):
        super().__init__()
        self.classes = classes
        self.layers = nn.Sequential(nn.Linear(dim + classes, dim), nn.ReLU(), nn.Linear(dim, people))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        # one_hot looks at the labels.
        own = labels.unsqueeze(1) == torch.arange(self.classes, device=labels.device)
        person: Tensor = self.layers(torch.cat([codes, own.to(codes.dtype)], dim=1))
        return person


def _quarter(length: int) -> int:
    return -(-length // 4)
