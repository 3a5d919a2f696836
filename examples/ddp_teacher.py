"""A teacher trained by several processes: a loop of one's own, DistributedDataParallel and `icckd.TeacherLoss`.

    torchrun --standalone --nproc-per-node 2 examples/ddp_teacher.py

needs nothing but icckd, trains on scikit-learn's digits, and takes a GPU a process where there are GPUs.

Every anchor is contrasted with the rows of its class in the batches of *all* processes, and with earlier ones in a
memory that is divided among them. What several processes compute is what one would compute from all images at once:
before its last step the script compares the loss and its gradients with those.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.distributed.nn  # Before there is a group: it would keep that, and threads that can abort at the end.
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from icckd import ClassMemory, TeacherLoss
from icckd.losses import TeacherLossOutput


class Network(nn.Module):
    """Images (N, 1, 8, 8) → embeddings (N, 64) and logits (N, 10).

    Its normalisation looks at one image at a time. Batch normalisation would look at those of one process alone, and
    several processes would compute something else than one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.LayerNorm(64), nn.ReLU()),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return features, self.classifier(features)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test images (N, 1, 8, 8) in [0, 1], with labels."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    parts = train_test_split(images, torch.from_numpy(labels), test_size=0.2, random_state=0, stratify=labels)
    return TensorDataset(*parts[0::2]), TensorDataset(*parts[1::2])


def view(images: Tensor) -> Tensor:
    """Every image turned, scaled and moved by a little."""
    angle, scale, right, down = torch.empty(4, len(images), device=images.device).uniform_(-0.2, 0.2)
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    places = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(places, list(images.shape), align_corners=False), align_corners=False)


def compute(
    network: nn.Module, criterion: TeacherLoss, views: Tensor, labels: Tensor, memory: ClassMemory
) -> tuple[TeacherLossOutput, Tensor]:
    """The losses of images whose first views, then second views are (2N, …), and the first ones' embeddings (N, D)."""
    features, logits = network(views)
    (anchor, positive), (logits, _) = features.chunk(2), logits.chunk(2)
    return criterion(logits, labels, anchor, positive, memory), anchor


def compare(network: Network, weight: float, views: Tensor, labels: Tensor, memory: ClassMemory, loss: Tensor) -> None:
    """Say what one process makes of the images of all ranks, beside what they have made of them together."""
    views = torch.cat([x.unflatten(0, (2, -1)) for x in all_gather(views)], dim=1).flatten(0, 1)
    labels, mean = torch.cat(all_gather(labels)), torch.stack(all_gather(loss.detach())).mean()
    state = memory.whole_state(dist.group.WORLD)
    if state is None:  # Only the first rank has it.
        return
    whole = ClassMemory(memory.num_classes, memory.capacity, memory.dim).to(views.device)
    whole.load_state_dict(state)
    losses, _ = compute(network, TeacherLoss(weight), views, labels, whole)
    gradients = torch.autograd.grad(losses.total, list(network.parameters()))
    largest = max(gradient.abs().max() for gradient in gradients)
    pairs = zip(network.parameters(), gradients, strict=True)
    difference = max((parameter.grad - gradient).abs().max() for parameter, gradient in pairs)
    print(f"loss of {dist.get_world_size()} processes {mean:.6f}, of one {losses.total:.6f}; ", end="")
    print(f"gradients differ by {difference / largest:.0e} of the largest, {losses.active_fraction:.0%} are anchors")


def all_gather(x: Tensor) -> list[Tensor]:
    """`x` of every rank; all have the same shape."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return parts


@torch.no_grad()
def accuracy(network: Network, data: TensorDataset, device: torch.device) -> float:
    images, labels = (x.to(device) for x in data.tensors)
    return (network(images)[1].argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="images a step, of all processes together")
    parser.add_argument("--weight", type=float, default=0.02, help="of the intra-class loss")
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if has_gpu else "cpu")
    dist.init_process_group("nccl" if has_gpu else "gloo")
    torch.manual_seed(dist.get_rank())  # Other views on every rank; all start from the first one's parameters.
    train, test = digits()
    sampler = DistributedSampler(train)
    loader = DataLoader(train, options.batch_size // dist.get_world_size(), sampler=sampler)
    network = DistributedDataParallel(Network().to(device))
    criterion = TeacherLoss(options.weight, group=dist.group.WORLD)
    memory = ClassMemory(num_classes=10, capacity=16, dim=64, group=dist.group.WORLD).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        for step, batch in enumerate(loader, start=1):
            images, labels = (x.to(device) for x in batch)
            views = torch.cat([view(images), view(images)])
            losses, anchor = compute(network, criterion, views, labels, memory)
            optimizer.zero_grad()
            losses.total.backward()
            if epoch == options.epochs and step == len(loader):
                compare(network.module, options.weight, views, labels, memory, losses.total)
            optimizer.step()
            memory.push(anchor, labels, group=dist.group.WORLD)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: test accuracy {accuracy(network.module, test, device):.1%}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
