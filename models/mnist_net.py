"""The MNIST example of PyTorch with a BatchNorm after each hidden layer, in functional style."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MNISTNet(nn.Module):
    """Two convolutions and two linear layers, 1x28x28 to 10 log-probabilities.

    Three BatchNorms, two after convolutions and a one-dimensional one after a linear layer, all
    before the activation, so all fold backward. Activations and pooling are function calls and
    appear in the graph of the network only, not among its modules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.bn2 = nn.BatchNorm2d(64)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.bn3 = nn.BatchNorm1d(128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, 28, 28] to log-probabilities [N, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))  # [N, 32, 26, 26]
        x = F.relu(self.bn2(self.conv2(x)))  # [N, 64, 24, 24]
        x = self.dropout1(F.max_pool2d(x, 2))  # [N, 64, 12, 12]
        x = torch.flatten(x, 1)
        x = F.relu(self.bn3(self.fc1(x)))  # [N, 128]
        x = self.fc2(self.dropout2(x))
        return F.log_softmax(x, dim=1)
