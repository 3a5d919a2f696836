"""Test images whose soft labels are worth looking at."""

import torch
from torch import Tensor

from icckd.data.streaming import ImageFiles
from icckd.experiment.evaluation import Predictions


def choose_examples(predictions: Predictions, images: Tensor | ImageFiles, count: int = 12) -> dict[str, Tensor]:
    """Up to `count` of the N test images, with what the network says about them, ready for safetensors.

    The first half are typical: of every class in turn, the correctly classified image whose soft label has the
    median entropy. The rest are the images whose second most probable class is most probable, one for each pair of
    most probable and second class. Images with a non-finite logit are left out. The choice depends on nothing but
    `predictions`.

    `images` is uint8, or float32 for signals, (N, C, H, W). Returns "images" likewise (K, C, H, W), "labels" int64
    (K,), "logits" float32 (K, classes), and "indices" int64 (K,): where they stand among the N. Raises ValueError where
    `images` has another shape or dtype.
    """
    signals = images.dtype == torch.float32 and images.ndim == 4 and images.shape[2] == 1
    if not (images.dtype == torch.uint8 or signals) or images.ndim != 4 or len(images) != len(predictions.labels):
        raise ValueError(
            f"images is {images.dtype} of shape {tuple(images.shape)}; it should be torch.uint8 of shape (N, C, H, W) "
            f"with N = {len(predictions.labels)}, or torch.float32 with H = 1 too"
        )
    typical = _typical(predictions)[: (count + 1) // 2]
    chosen = torch.tensor(_unlike(predictions, typical, count), dtype=torch.int64)
    return {
        "images": images[chosen].cpu().contiguous(),
        "labels": predictions.labels[chosen],
        "logits": predictions.logits[chosen],
        "indices": chosen,
    }


def _typical(predictions: Predictions) -> list[int]:
    """For each class that has one, its correctly classified image of median entropy."""
    probabilities = predictions.logits.double().softmax(dim=1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    right = entropy.isfinite() & (probabilities.argmax(dim=1) == predictions.labels)
    typical = []
    for label in range(predictions.logits.shape[1]):
        rows = (right & (predictions.labels == label)).nonzero().flatten()
        if len(rows):
            by_entropy = rows[entropy[rows].argsort(stable=True)]
            typical.append(int(by_entropy[(len(rows) - 1) // 2]))
    return typical


def _unlike(predictions: Predictions, typical: list[int], count: int) -> list[int]:
    """`typical`, filled up to `count` with the images of largest second probability, one per pair of classes."""
    chosen = list(typical)
    if predictions.logits.shape[1] < 2:
        return chosen
    probability, best = predictions.logits.double().softmax(dim=1).topk(2, dim=1)
    second = torch.where(predictions.logits.isfinite().all(dim=1), probability[:, 1], -1.0)
    seen: set[tuple[int, ...]] = set()
    for row in second.argsort(descending=True, stable=True).tolist():
        if len(chosen) >= count or second[row] < 0:
            break
        pair = tuple(best[row].tolist())
        if pair not in seen and row not in typical:
            seen.add(pair)
            chosen.append(row)
    return chosen
