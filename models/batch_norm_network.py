"""BN after the activation, in a `Sequential`, beside the same network without BN."""

from torch import nn


class BatchNormNetwork(nn.Sequential):
    """Two convolutions and three linear layers, [N, 1, 28, 28] to logits [N, 10].

    Two BatchNorms, both after an activation, which bars the way back: the first, behind ReLU and
    max pooling, folds forward into the second convolution, exactly because that has no padding;
    the one-dimensional one, behind ReLU, folds forward into the second linear layer.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.BatchNorm2d(6),  # [N, 6, 12, 12]
            nn.Conv2d(6, 12, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Flatten(start_dim=1),  # [N, 192]
            nn.Linear(12 * 4 * 4, 120),
            nn.ReLU(),
            nn.BatchNorm1d(120),
            nn.Linear(120, 60),
            nn.ReLU(),
            nn.Linear(60, 10),
        )


class NetworkWithoutBatchNorm(nn.Sequential):
    """The twin of `BatchNormNetwork` without BatchNorm, [N, 1, 28, 28] to logits [N, 10].

    No BatchNorm, so folding leaves it as it is.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),  # [N, 6, 12, 12]
            nn.Conv2d(6, 12, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Flatten(start_dim=1),  # [N, 192]
            nn.Linear(12 * 4 * 4, 120),
            nn.ReLU(),
            nn.Linear(120, 60),
            nn.ReLU(),
            nn.Linear(60, 10),
        )
