"""Where a BatchNorm may stand: before the activation, after it, and after a linear layer."""

from torch import Tensor, nn


class Placement(nn.Module):
    """The rules of placement in one network, 3x32x32 to 10 logits.

    Four BatchNorms, all foldable:

    - `norm1`, before the activation: folds backward into `conv1`, which has no bias and gains one.
    - `norm2`, after the activation: the ReLU bars the way back, so it folds forward into `conv3`.
      A convolution takes over a shift exactly only without padding, which `conv3` has none of.
    - `norm3`, before the activation: folds backward into the same `conv3`, which takes two.
    - `norm4`, one-dimensional, after a linear layer without bias: folds backward into it.

    A layer straight before a BatchNorm has no bias, since the normalisation would subtract it.
    Dropout follows the activation and does nothing in evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(12, 16, kernel_size=3)
        self.norm2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 20, kernel_size=3, stride=2, bias=False)
        self.norm3 = nn.BatchNorm2d(20)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(20 * 6 * 6, 32, bias=False)
        self.norm4 = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(32, 10)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, 10]."""
        x = self.pool(self.relu(self.norm1(self.conv1(x))))  # [N, 12, 16, 16]
        x = self.norm2(self.relu(self.conv2(x)))  # [N, 16, 14, 14]
        x = self.dropout(self.relu(self.norm3(self.conv3(x))))  # [N, 20, 6, 6]
        x = self.dropout(self.relu(self.norm4(self.linear(self.flatten(x)))))  # [N, 32]
        x = self.classifier(x)
        return x
