"""A teacher and its student, each a LightningModule: icckd's losses beside Lightning's logging, checkpoints, precision.

    pip install lightning
    python examples/lightning_distillation.py
    python examples/lightning_distillation.py --precision bf16-mixed --devices 2

trains on scikit-learn's digits, on GPUs where there are some. The teacher learns by `TeacherLoss` from two views of
every image; its best checkpoint then teaches a student of a tenth of the parameters by `kd_kl` and RKD. Curves and
checkpoints go to lightning_logs/.
"""

import argparse

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.utils.data import DataLoader, TensorDataset

from icckd import TeacherLoss
from icckd.functional import kd_kl, rkd_angle, rkd_distance


class Network(nn.Module):
    """Images (N, 1, 8, 8) → embeddings (N, 2 · width) and logits (N, 10)."""

    def __init__(self, width: int):
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * width, 2 * width)),
        )
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return features, self.classifier(features)


class Classifier(lightning.LightningModule):
    """What teacher and student share: accuracy and optimiser."""

    network: Network

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes that train together, where there are several: rows are compared with those of all."""
        return dist.group.WORLD if self.trainer.world_size > 1 else None

    def validation_step(self, batch: list[Tensor]) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images)[1].argmax(1) == labels).float().mean(), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=3e-3)


class Teacher(Classifier):
    """Cross-entropy of the first view, and the intra-class loss of both."""

    def __init__(self, weight: float, width: int = 32):
        super().__init__()
        self.save_hyperparameters()
        self.network, self.criterion = Network(width), TeacherLoss(weight)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        features, logits = self.network(torch.cat([view(images), view(images)]))
        (anchor, positive), (logits, _) = features.chunk(2), logits.chunk(2)
        losses = self.criterion(logits, labels, anchor, positive, group=self.group)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses._asdict().items()}, sync_dist=True)
        return losses.total


class Student(Classifier):
    """Cross-entropy, the teacher's soft labels, and distances and angles among its embeddings."""

    def __init__(self, teacher: Network, width: int = 8):
        super().__init__()
        self.save_hyperparameters(ignore="teacher")
        self.network = Network(width)
        self.teacher = teacher.eval().requires_grad_(False)  # Lightning leaves in eval() what is.

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = view(batch[0]), batch[1]
        features, logits = self.network(images)
        with torch.no_grad():
            its_features, its_logits = self.teacher(images)
        losses = {
            "cross_entropy": 0.1 * cross_entropy(logits, labels),
            "kd": 0.9 * kd_kl(logits, its_logits, temperature=4.0),
            "rkd_distance": rkd_distance(features, its_features, group=self.group),
            "rkd_angle": 2 * rkd_angle(features, its_features, group=self.group),
        }
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, sync_dist=True)
        return sum(losses.values())


def view(images: Tensor) -> Tensor:
    """Every image turned, scaled and moved by a little."""
    angle, scale, right, down = torch.empty(4, len(images), device=images.device).uniform_(-0.2, 0.2)
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    places = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(places, list(images.shape), align_corners=False), align_corners=False)


def digits() -> list[TensorDataset]:
    """Training, validation and test images (N, 1, 8, 8) in [0, 1], with labels."""
    images, labels = load_digits(return_X_y=True)
    data = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(*(x[part] for x in data)) for part in order.split([1197, 300, 300])]


def train(module: Classifier, options: argparse.Namespace) -> str:
    """Train, say the test accuracy of the epoch that was best in validation, and return that one's checkpoint."""
    best = ModelCheckpoint(monitor="accuracy", mode="max")
    trainer = lightning.Trainer(
        max_epochs=options.epochs, devices=options.devices, precision=options.precision, callbacks=best
    )
    training, validation, test = digits()
    trainer.fit(module, DataLoader(training, 64, shuffle=True), DataLoader(validation, 300))
    (result,) = trainer.test(module, DataLoader(test, 300), ckpt_path=best.best_model_path, verbose=False)
    if trainer.is_global_zero:
        print(f"{type(module).__name__}: test accuracy {result['accuracy']:.1%}", flush=True)
    return best.best_model_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--weight", type=float, default=0.02, help="of the intra-class loss")
    parser.add_argument("--precision", default="32-true", help="as lightning.Trainer has it, such as bf16-mixed")
    parser.add_argument("--devices", type=int, default=1, help="processes that train together")
    options = parser.parse_args()
    lightning.seed_everything(0)
    teacher = Teacher.load_from_checkpoint(train(Teacher(options.weight), options))
    train(Student(teacher.network), options)


if __name__ == "__main__":
    main()
