"""Conv · BN · ReLU · MaxPool twice: the small image classifier of most tutorials."""

from torch import Tensor, nn


class CNNWithBatchNorm(nn.Module):
    """Two convolution stages with pooling and a classifier, 3x32x32 to 10 logits.

    Two BatchNorms, each between its convolution and the ReLU, so each folds backward. One ReLU and
    one pooling module serve both stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.fc = nn.Linear(64 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, 10]."""
        x = self.pool(self.relu(self.bn1(self.conv1(x))))  # [N, 32, 16, 16]
        x = self.pool(self.relu(self.bn2(self.conv2(x))))  # [N, 64, 8, 8]
        x = x.view(-1, 64 * 8 * 8)
        x = self.fc(x)
        return x
