"""How images are made: a generator learns to please the teacher and to puzzle the student."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icckd.errors import TrainingDiverged
from icckd.methods.rgal import Rgal
from icckd.procedures.procedure import Lesson
from icckd.procedures.rgal.generator import Generator, to_bytes
from icckd.procedures.rgal.statistics import distances_of_statistics
from icckd.training.loop import MAX_SKIPS_IN_A_ROW
from icckd.training.tasks.frozen import ask_as_it_is

# First word of the seeds of synthesis, so that it shares no stream with orders and augmentation.
_SYNTHESIS = 3
_REHEARSED = 4
_BETAS = (0.5, 0.999)  # As DCGAN's.


class Synthesis:
    """A generator, its optimiser, and the networks that judge its images, which it leaves as they are.

    With the state below and the student, what is made before an epoch is a pure function of the run's seed and the
    epoch.
    """

    def __init__(self, method: Rgal, lesson: Lesson):
        self.method = method
        self.student, self.teacher = lesson.student, lesson.teacher
        self.seed, self.device = lesson.settings.seed, lesson.device
        settings, model = method.settings, lesson.student
        generator = Generator(settings.noise, settings.width, model.channels, model.image_shape[-1])
        self.generator = generator.to(lesson.device)
        self._adam = torch.optim.Adam(self.generator.parameters(), lr=settings.generator_rate, betas=_BETAS)
        self._mean, self._std = (
            torch.tensor(values, device=lesson.device).view(-1, 1, 1) for values in (lesson.data.mean, lesson.data.std)
        )

    def make(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Let the generator learn; its images, uint8 (B, C, H, W), and what the teacher takes them for, int64 (B,).

        Their noise is drawn anew and learns beside the generator, and as many as can be are meant for every class (both
        this project's choice). A step whose loss or gradient is not finite is skipped. Raises TrainingDiverged after
        more of them in a row than a training bears.
        """
        settings, draws = self.method.settings, self._random_numbers(epoch)
        wanted = torch.arange(settings.images, device=self.device) % self.student.classes
        noise = torch.randn(settings.images, settings.noise, generator=draws, device=self.device).requires_grad_()
        noise_adam = torch.optim.Adam([noise], lr=settings.generator_rate, betas=_BETAS)
        skipped = 0
        # What was compiled would not see the hooks.
        with torch.compiler.set_stance("force_eager"):
            for _ in range(settings.synthesis_steps):
                taken = self._step(noise, wanted, draws, noise_adam)
                skipped = 0 if taken else skipped + 1
                if skipped > MAX_SKIPS_IN_A_ROW:
                    raise TrainingDiverged(
                        f"the generator's loss or its gradient was not finite in {skipped} steps in a row before "
                        f"epoch {epoch + 1}; a lower student.loss.rgal.generator_rate may help"
                    )
            with torch.no_grad():
                images = to_bytes(self.generator(noise))
            return images, self.teacher(self.normalised(images / 255)).logits.argmax(1)

    def confidences(self, images: Tensor, labels: Tensor) -> Tensor:
        """The teacher's probability of each uint8 image's label, float32 (B,)."""
        probabilities = self.teacher(self.normalised(images / 255)).logits.float().softmax(1)
        return probabilities.gather(1, labels[:, None])[:, 0]

    def rehearse(self) -> None:
        """Compute the generator's losses of a few images once, and their gradient; nothing learns."""
        wanted = torch.arange(_REHEARSED, device=self.device) % self.student.classes
        noise = torch.zeros(_REHEARSED, self.method.settings.noise, device=self.device)
        self.losses(noise, wanted, self._random_numbers(0))["loss"].backward()
        self.generator.zero_grad()

    def losses(self, noise: Tensor, wanted: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
        """The generator's losses by name, of images made of `noise` and meant to be of the `wanted` classes."""
        images = self.normalised(self.generator(noise))
        with distances_of_statistics(self.teacher.model) as distances:
            teacher = self.teacher.with_gradient(images)
        student = ask_as_it_is(self.student, images)
        return self.method.synthesis(student, teacher, torch.stack(distances).sum(), wanted, draws)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the student sees images."""
        return (pixels - self._mean) / self._std

    def _step(self, noise: Tensor, wanted: Tensor, draws: torch.Generator, noise_adam: torch.optim.Adam) -> bool:
        loss = self.losses(noise, wanted, draws)["loss"]
        learning = [noise, *self.generator.parameters()]
        for parameter, gradient in zip(learning, torch.autograd.grad(loss, learning), strict=True):
            parameter.grad = gradient
        norm = nn.utils.get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
        taken = bool(loss.isfinite() & norm.isfinite())
        if taken:
            self._adam.step()
            noise_adam.step()
        return taken

    def _random_numbers(self, epoch: int) -> torch.Generator:
        (seed,) = np.random.SeedSequence([_SYNTHESIS, self.seed, epoch]).generate_state(1, np.uint64).tolist()
        return torch.Generator(self.device).manual_seed(seed)

    def state(self) -> dict[str, Tensor]:
        """Generator and optimiser, by name."""
        weights = {f"generator.{name}": x for name, x in self.generator.state_dict().items()}
        numbered: dict[int, dict[str, Tensor]] = self._adam.state_dict()["state"]
        moments = {f"adam.{number}.{name}": x for number, of in numbered.items() for name, x in of.items()}
        return weights | moments

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state()` gave."""
        weights, numbered = {}, dict[int, dict[str, Any]]()
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "generator":
                weights[name] = tensor
            else:
                number, _, buffer = name.partition(".")
                numbered.setdefault(int(number), {})[buffer] = tensor
        self.generator.load_state_dict(weights)
        self._adam.load_state_dict({**self._adam.state_dict(), "state": numbered})
