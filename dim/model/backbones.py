"""Describes the supported backbones, which are all from keras.applications. This module does not import Keras."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """A convolutional network of keras.applications.

    Args:
        constructor: The function of keras.applications that builds the network.
        layers: The layers that may be pooled, each with its number of channels. The first layer is the default.
        tail: The last layer before the last block. By default, fine-tuning trains only the layers after it.
        preprocessing: The preprocessing that the ImageNet weights expect, a key of `dim.model.layers.PREPROCESSINGS`.
        imagenet: The file in which keras.applications distributes the ImageNet weights.
    """

    constructor: str
    layers: dict[str, int]
    tail: str
    preprocessing: str
    imagenet: str


BACKBONES = {
    "vgg16": Backbone(
        "VGG16",
        {"block5_conv3": 512, "block5_pool": 512, "block4_conv3": 512, "block4_pool": 512},
        tail="block4_pool",
        preprocessing="caffe",
        imagenet="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "vgg19": Backbone(
        "VGG19",
        {"block5_conv4": 512, "block5_pool": 512, "block4_conv4": 512, "block4_pool": 512},
        tail="block4_pool",
        preprocessing="caffe",
        imagenet="vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "resnet50": Backbone(
        "ResNet50",
        {"conv5_block3_out": 2048, "conv4_block6_out": 1024},
        tail="conv4_block6_out",
        preprocessing="caffe",
        imagenet="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "resnet101": Backbone(
        "ResNet101",
        {"conv5_block3_out": 2048, "conv4_block23_out": 1024},
        tail="conv4_block23_out",
        preprocessing="caffe",
        imagenet="resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetv2b0": Backbone(
        "EfficientNetV2B0",
        {"top_activation": 1280, "block5e_add": 112},
        tail="block5e_add",
        preprocessing="torch",
        imagenet="efficientnetv2-b0_notop.h5",
    ),
    "efficientnetv2s": Backbone(
        "EfficientNetV2S",
        {"top_activation": 1280, "block5i_add": 160},
        tail="block5i_add",
        preprocessing="symmetric",
        imagenet="efficientnetv2-s_notop.h5",
    ),
    "convnexttiny": Backbone(
        "ConvNeXtTiny",
        {"layer_normalization": 768},
        tail="convnext_tiny_downsampling_block_2",
        preprocessing="torch",
        imagenet="convnext_tiny_notop.h5",
    ),
}
