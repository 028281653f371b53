"""Vision: convolutional networks, mobile hybrids, detectors with frozen norms, re-parameterised."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hub
from torch import Tensor, nn
from transformers.models.d_fine.modeling_d_fine import DFineHybridEncoder
from transformers.models.detr.modeling_detr import DetrConvEncoder
from transformers.models.efficientloftr.modeling_efficientloftr import EfficientLoFTRepVGG
from transformers.models.rt_detr.modeling_rt_detr import RTDetrConvEncoder
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.models.vitmatte.modeling_vitmatte import VitMatteConvStream

from tests.zoo.architecture import Architecture

STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32]}
EVEN = (2, 3, 64, 64)


def masked(model: nn.Module, x: Tensor) -> Any:
    """The encoder of a detector wants to know which pixels are padding; here none are."""
    features = model(x, torch.ones_like(x[:, 0], dtype=torch.bool))
    return [feature for feature, _ in features]


def pyramid(model: nn.Module, x: Tensor) -> Any:
    """Three levels of features made of one image, as a backbone would give them."""
    return model([x, x[:, :, ::2, ::2], x[:, :, ::4, ::4]])[0]


def pyramid_of_channels(model: nn.Module, x: Tensor) -> Any:
    return model([x, x[:, :, ::2, ::2], x[:, :, ::4, ::4], x[:, :, ::8, ::8]])


def feature_maps(model: nn.Module, x: Tensor) -> Any:
    return model(x).feature_maps


def detr() -> nn.Module:
    backbone = hub.ResNetConfig(
        **STAGES, depths=[1, 2, 1, 1], layer_type="basic", out_features=["stage3", "stage4"]
    )
    return DetrConvEncoder(hub.DetrConfig(use_timm_backbone=False, backbone_config=backbone))


def rt_detr() -> nn.Module:
    backbone = hub.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage4"],
    )
    return RTDetrConvEncoder(hub.RTDetrConfig(backbone_config=backbone))


def d_fine() -> nn.Module:
    config = hub.DFineConfig(
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=24,
        encoder_attention_heads=2,
        encode_proj_layers=[2],
        depth_mult=0.34,
        hidden_expansion=0.5,
    )
    return DFineHybridEncoder(config)


def hg_net() -> nn.Module:
    config = hub.HGNetV2Config(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16, 32, 48],
        stage_mid_channels=[8, 16, 16, 16],
        stage_out_channels=[16, 32, 48, 64],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        use_learnable_affine_block=True,
    )
    return hub.HGNetV2Backbone(config)


def levit() -> nn.Module:
    config = hub.LevitConfig(
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    )
    return hub.LevitForImageClassificationWithTeacher(config)


def mobile_vit() -> nn.Module:
    config = hub.MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        expand_ratio=2.0,
        num_hidden_layers=1,
    )
    return hub.MobileViTModel(config)


def pp_lc_net_v3() -> nn.Module:
    blocks = [[[3, 8, 16, 1, False]], [[3, 16, 16, 2, False]], [[5, 16, 16, 1, True]]]
    last = [[[3, 16, 24, 2, False]], [[5, 24, 24, 1, True]]]
    return hub.PPLCNetV3Backbone(
        hub.PPLCNetV3Config(stem_channels=8, block_configs=blocks + last, conv_symmetric_num=2)
    )


def rep_vgg() -> nn.Module:
    config = hub.EfficientLoFTRConfig(
        hidden_size=32,
        num_attention_heads=2,
        stage_num_blocks=[1, 2, 2, 2],
        out_features=[8, 8, 16, 32],
        stage_stride=[2, 1, 2, 2],
    )
    return EfficientLoFTRepVGG(config)


def cvt() -> nn.Module:
    return hub.CvtModel(hub.CvtConfig(embed_dim=[16, 24, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]))


def efficient_net() -> nn.Module:
    return hub.EfficientNetModel(
        hub.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320)
    )


def segformer_head() -> nn.Module:
    return SegformerDecodeHead(
        hub.SegformerConfig(hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=16, num_labels=5)
    )


VISION = [
    Architecture(
        "ResNet, basic",
        lambda: hub.ResNetModel(
            hub.ResNetConfig(**STAGES, depths=[1, 2, 1, 1], layer_type="basic")
        ),
        14,
    ),
    Architecture(
        "ResNet, bottleneck",
        lambda: hub.ResNetModel(hub.ResNetConfig(**STAGES, depths=[1, 2, 1, 1])),
        19,
    ),
    Architecture(
        "RegNet",
        lambda: hub.RegNetModel(hub.RegNetConfig(**STAGES, depths=[1, 1, 2, 1], groups_width=8)),
        20,
    ),
    Architecture(
        "MobileNetV1",
        lambda: hub.MobileNetV1Model(hub.MobileNetV1Config(depth_multiplier=0.125)),
        27,
    ),
    Architecture(
        "MobileNetV2",
        lambda: hub.MobileNetV2Model(
            hub.MobileNetV2Config(depth_multiplier=0.15, finegrained_output=False)
        ),
        52,
    ),
    Architecture("EfficientNet", efficient_net, 22),
    Architecture("LeViT", levit, 28, shape=EVEN),
    Architecture(
        "BiT",
        lambda: hub.BitModel(
            hub.BitConfig(
                embedding_size=8,
                hidden_sizes=[16, 32, 32, 32],
                depths=[1, 1, 1, 1],
                num_groups=4,
                layer_type="bottleneck",
            )
        ),
    ),
    # frozen norms: a multiplication and an addition each, and none may stay
    Architecture("DETR", detr, affines={}, run=masked),
    Architecture("RT-DETR", rt_detr, affines={}, run=masked),
    Architecture(
        "RT-DETR ResNet",
        lambda: hub.RTDetrResNetBackbone(
            hub.RTDetrResNetConfig(
                embedding_size=16,
                hidden_sizes=[16, 24, 32, 40],
                depths=[1, 2, 1, 1],
                layer_type="basic",
            )
        ),
        17,
        run=feature_maps,
    ),
    Architecture("D-FINE", d_fine, 54, shape=(2, 16, 16, 24), run=pyramid),
    Architecture("HGNetV2", hg_net, 28, run=feature_maps),
    Architecture(
        "TextNet",
        lambda: hub.TextNetModel(
            hub.TextNetConfig(
                stem_out_channels=8,
                hidden_sizes=[8, 8, 16, 16, 24],
                conv_layer_kernel_sizes=[
                    [[3, 3], [3, 3]],
                    [[3, 3], [1, 3]],
                    [[3, 3], [3, 1]],
                    [[3, 3], [3, 1]],
                ],
                conv_layer_strides=[[1, 2], [2, 1], [2, 1], [2, 1]],
            )
        ),
        26,
    ),
    Architecture(
        "EfficientLoFTR RepVGG",
        rep_vgg,
        18,
        shape=(2, 1, 65, 63),
        run=lambda model, x: model(x),
    ),
    Architecture(
        "PoolFormer",
        lambda: hub.PoolFormerModel(
            hub.PoolFormerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
        # A LayerScale of `pool(x) - x` stays: x is read twice, and a difference that is scaled is
        # no convolution. In the module form the four behind a convolution stay too: they are
        # computed in the forward of the block. ONNX has no affine GroupNorm at this opset: those
        # before a pool stay as a multiplication and an addition each.
        affines={"module": 4, "graph": 4, "torchscript": 4, "onnx": 12},
    ),
    Architecture(
        "ConvNeXt",
        lambda: hub.ConvNextModel(
            hub.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
        affines={},
    ),
    Architecture("MobileViT", mobile_vit, 32, shape=EVEN),
    Architecture(
        "MobileViTV2",
        lambda: hub.MobileViTV2Model(
            hub.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1, 1, 1])
        ),
        25,
        shape=EVEN,
    ),
    Architecture(
        "SwiftFormer",
        lambda: hub.SwiftFormerModel(
            hub.SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[16, 24, 32, 40], mlp_ratio=2)
        ),
        13,
    ),
    Architecture("CvT", cvt, 18),
    Architecture(
        "PP-LCNet", lambda: hub.PPLCNetBackbone(hub.PPLCNetConfig(scale=0.25)), 27, run=feature_maps
    ),
    Architecture(
        "PP-LCNetV3",
        pp_lc_net_v3,
        32,
        run=feature_maps,
    ),
    Architecture(
        "ViTMatte",
        lambda: VitMatteConvStream(hub.VitMatteConfig(convstream_hidden_sizes=[8, 16, 24])),
        3,
        run=lambda model, x: list(model(x).values()),
    ),
    Architecture("SegFormer", segformer_head, 1, shape=(2, 8, 32, 24), run=pyramid_of_channels),
]
