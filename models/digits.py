"""Scikit-learn's handwritten digits (1,797 images of 8x8), resized to what a network takes.

The split is fixed: four fifths to train on, one fifth to test on, with equal shares of each digit.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from models import Network


def load_train_set(network: Network) -> tuple[Tensor, Tensor]:
    """Return 1,437 images, float32 [N, C, H, W] in -1..1, and their labels, int64 [N]."""
    train, _ = _split()
    return _resize(train, network)


def load_test_set(network: Network) -> tuple[Tensor, Tensor]:
    """Return 360 images, float32 [N, C, H, W] in -1..1, and their labels, int64 [N]."""
    _, test = _split()
    return _resize(test, network)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` [N, C, H, W], passed as one batch, that get their label [N].

    `model` runs in the mode it is in.
    """
    with torch.inference_mode():
        predictions: Tensor = model(images).argmax(dim=1)
    return (predictions == labels).float().mean().item()


def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and test set, each as images [N, 1, 8, 8] and labels [N]."""
    pixels, labels = load_digits(return_X_y=True)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels / 8 - 1, labels, test_size=0.2, random_state=0, stratify=labels
    )
    train, test = (
        (torch.from_numpy(x).float().reshape(-1, 1, 8, 8), torch.from_numpy(y).long())
        for x, y in ((train_pixels, train_labels), (test_pixels, test_labels))
    )
    return train, test


def _resize(digits: tuple[Tensor, Tensor], network: Network) -> tuple[Tensor, Tensor]:
    """Scale the images [N, 1, 8, 8] bilinearly and repeat them over the network's channels."""
    images, labels = digits
    channels, height, width = network.input_shape
    images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return images.repeat(1, channels, 1, 1), labels
