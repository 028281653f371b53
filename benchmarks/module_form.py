"""How many BatchNorms of timm's architectures fold as a module, and as a graph.

    python -m benchmarks.module_form [NAME ...]      needs timm; nothing is downloaded

One line an architecture: BatchNorms found, folded in either form, verdicts, generated submodules,
seconds. Weights are those of the initialisation, statistics and gammas (of both signs) random.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn

import bnfold
from bnfold.errors import BnfoldError

NAMES = (
    *("resnet10t", "regnetx_002", "mobilenetv3_small_050", "mobileone_s0", "repvgg_a0"),
    *("efficientnet_lite0", "tf_mobilenetv3_small_075", "ghostnet_050", "hardcorenas_a"),
    *("densenet121", "dla46_c", "fbnetc_100", "lcnet_050", "mnasnet_small", "selecsls42"),
    *("resnetv2_50", "seresnet18", "res2net50_14w_8s", "skresnet18", "vovnet39a", "xception41"),
)


def trained(net: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            size = layer.num_features
            layer.running_mean = torch.randn(size, generator=draw)
            layer.running_var = torch.rand(size, generator=draw) + 0.2
            layer.weight.data = torch.randn(size, generator=draw)
            layer.bias.data = torch.randn(size, generator=draw)
    return net.eval()


def row(net: nn.Module, form: Any) -> str:
    start = time.perf_counter()
    try:
        result = bnfold.fold(net, "1x3x96x96", form=form)
    except BnfoldError as error:
        return f"{form} error: {error}"
    count, seconds = result.plan.batchnorms, time.perf_counter() - start
    made = sum(note.startswith("generated") for note in result.notes)
    kinds = f", {made} kinds generated" if made else ""
    return f"{form} {count.folded}/{count.found} {result.verdict}{kinds}, {seconds:.0f} s"


def main() -> None:
    import timm

    for name in sys.argv[1:] or NAMES:
        net = trained(timm.create_model(name))
        print(f"{name}: {row(net, 'graph')}; {row(net, 'module')}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
