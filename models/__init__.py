"""Example networks with batch normalisation, one file per article they are taken from.

`NETWORKS` lists them by name. Their trained weights lie in `models/checkpoints`; `models.forms`
reads and writes them, `models.digits` holds the data and `models.train` trains.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.batch_norm_network import BatchNormNetwork, NetworkWithoutBatchNorm
from models.cnn_with_batchnorm import CNNWithBatchNorm
from models.convolutional import (
    Convolutional,
    convolutional_batch_statistics,
    convolutional_cumulative,
    convolutional_no_affine,
)
from models.mnist_net import MNISTNet
from models.placement import Placement

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True)
class Network:
    """A network of this folder: how to build it and what it takes."""

    name: str
    factory: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    """Channels, height and width, without the batch axis."""

    @property
    def address(self) -> str:
        """The factory as `package.module:callable`."""
        return f"{self.factory.__module__}:{self.factory.__name__}"


_COLOUR = (3, 32, 32)
_GREY = (1, 28, 28)

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("convolutional", Convolutional, _COLOUR),
        Network("convolutional_no_affine", convolutional_no_affine, _COLOUR),
        Network("convolutional_cumulative", convolutional_cumulative, _COLOUR),
        Network("convolutional_batch_statistics", convolutional_batch_statistics, _COLOUR),
        Network("placement", Placement, _COLOUR),
        Network("cnn_with_batchnorm", CNNWithBatchNorm, _COLOUR),
        Network("batch_norm_network", BatchNormNetwork, _GREY),
        Network("network_without_batch_norm", NetworkWithoutBatchNorm, _GREY),
        Network("mnist_net", MNISTNet, _GREY),
    )
}
