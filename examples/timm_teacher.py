"""A network of timm learns by `icckd.TeacherLoss`, and a smaller one from it.

    pip install timm
    python examples/timm_teacher.py

trains on scikit-learn's digits with timm's own loader, augmentation, optimiser and schedule, on a GPU where there is
one. The data set gives every image's two views as a tuple; timm's collation then puts all first views before all second
ones, with the labels repeated.
"""

import argparse
from collections.abc import Callable

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from icckd import ClassMemory, TeacherLoss
from icckd.functional import kd_kl, rkd_angle, rkd_distance

SIZE = 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Digits(Dataset):
    """Images and labels; of each image one view, or a tuple of several."""

    transform: Callable[[Image.Image], Tensor]  # Set by timm's loader.

    def __init__(self, images: np.ndarray, labels: np.ndarray, views: int):
        self.images, self.labels, self.views = images, labels, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | tuple[Tensor, ...], int]:
        image = Image.fromarray((255 / 16 * self.images[index]).astype(np.uint8))
        views = tuple(self.transform(image) for _ in range(self.views))
        return views if self.views > 1 else views[0], int(self.labels[index])


def loader(training: bool, views: int = 1) -> timm.data.loader.PrefetchLoader:
    """Batches of images (views · N, 1, 32, 32) and labels (views · N,)."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    part = order[360:] if training else order[:360]
    options = {"scale": (0.7, 1.0), "hflip": 0.0, "color_jitter": 0.0} if training else {"crop_pct": 1.0}
    options |= {"mean": (0.5,), "std": (0.5,), "num_workers": 0, "persistent_workers": False, "device": DEVICE}
    data = Digits(images[part].reshape(-1, 8, 8), labels[part], views)
    return create_loader(data, input_size=(1, SIZE, SIZE), batch_size=64, is_training=training, **options)


class Network(nn.Module):
    """A network of timm, and what its classifier sees: images → embeddings (N, head_hidden_size) and logits (N, 10)."""

    def __init__(self, name: str):
        super().__init__()
        self.network = timm.create_model(name, in_chans=1, num_classes=10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return features, self.network.get_classifier()(features)


def teachers_loss(network: Network, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    criterion = TeacherLoss(weight)
    memory = ClassMemory(num_classes=10, capacity=16, dim=network.network.head_hidden_size).to(DEVICE)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        features, logits = network(images)
        (anchor, positive), (logits, _), (labels, _) = features.chunk(2), logits.chunk(2), labels.chunk(2)
        total = criterion(logits, labels, anchor, positive, memory).total
        memory.push(anchor, labels)
        return total

    return loss


def students_loss(network: Network, teacher: Network) -> Callable[[Tensor, Tensor], Tensor]:
    teacher.eval().requires_grad_(False)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        features, logits = network(images)
        with torch.no_grad():
            its_features, its_logits = teacher(images)
        predictions = 0.1 * cross_entropy(logits, labels) + 0.9 * kd_kl(logits, its_logits, temperature=4.0)
        return predictions + rkd_distance(features, its_features) + 2 * rkd_angle(features, its_features)

    return loss


def train(network: Network, loss: Callable[[Tensor, Tensor], Tensor], views: int, options: argparse.Namespace) -> None:
    """Train, and say the test accuracy after every epoch."""
    batches, test = loader(training=True, views=views), loader(training=False)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=options.lr, weight_decay=0.05)
    schedule, _ = create_scheduler_v2(
        optimizer, num_epochs=options.epochs, step_on_epochs=False, updates_per_epoch=len(batches)
    )
    if options.compile:
        loss = torch.compile(loss)
    print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters")
    for epoch in range(options.epochs):
        network.train()
        for step, (images, labels) in enumerate(batches, start=epoch * len(batches) + 1):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=options.amp):
                value = loss(images, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step_update(step)
        network.eval()
        with torch.no_grad():
            right = sum((network(images)[1].argmax(1) == labels).sum().item() for images, labels in test)
        print(f"epoch {epoch + 1}: loss {value.item():.3f}, test accuracy {right / len(test.dataset):.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="edgenext_xx_small", help="a name of timm's")
    parser.add_argument("--student", default="test_resnet", help="another")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight", type=float, default=0.02, help="of the intra-class loss")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the loss with the network")
    options = parser.parse_args()
    torch.manual_seed(0)
    teacher, student = Network(options.teacher).to(DEVICE), Network(options.student).to(DEVICE)
    train(teacher, teachers_loss(teacher, options.weight), 2, options)
    train(student, students_loss(student, teacher), 1, options)


if __name__ == "__main__":
    main()
