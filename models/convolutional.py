"""Conv · BN · ReLU twice: the textbook arrangement, and the options of `BatchNorm2d`."""

from torch import Tensor, nn


class Convolutional(nn.Module):
    """Two convolution blocks and a classifier, 3x32x32 to 10 logits.

    Two BatchNorms, each straight after its convolution, so each folds backward into it. The
    arguments are those of `BatchNorm2d` and apply to both:

    - `affine=False` leaves gamma = 1 and beta = 0: foldable.
    - `momentum=None` averages the running statistics over all batches: foldable, since it changes
      how they were gathered and not how they are used.
    - `track_running_stats=False` normalises by the statistics of the batch, in evaluation too: no
      constant scale and shift exist, and the BatchNorm has to be kept.
    """

    def __init__(
        self,
        affine: bool = True,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.block1 = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1),
            nn.BatchNorm2d(
                16, momentum=momentum, affine=affine, track_running_stats=track_running_stats
            ),
            nn.ReLU(),
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(
                32, momentum=momentum, affine=affine, track_running_stats=track_running_stats
            ),
            nn.ReLU(),
        )
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(32 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, 10]."""
        x = self.block1(x)  # [N, 16, 32, 32]
        x = self.block2(x)  # [N, 32, 16, 16]
        x = self.classifier(self.flatten(x))
        return x


def convolutional_no_affine() -> Convolutional:
    """Build the network with BatchNorms that have no gamma and beta; both fold."""
    return Convolutional(affine=False)


def convolutional_cumulative() -> Convolutional:
    """Build the network with running statistics averaged over all batches; both BatchNorms fold."""
    return Convolutional(momentum=None)


def convolutional_batch_statistics() -> Convolutional:
    """Build the network without running statistics; neither BatchNorm can be folded."""
    return Convolutional(track_running_stats=False)
