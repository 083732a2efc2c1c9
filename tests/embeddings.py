"""The identity of the descriptors that tests make by hand."""

from dim.extract.embedding import NetworkEmbedding


def embedding(**changes):
    fields = {
        "backbone": "vgg16",
        "layer": "block5_conv3",
        "pooling": "gem",
        "weights": "0" * 64,
        "preprocessing": "caffe",
        "image_size": 224,
        "resize": "squash",
        "scales": (1.0,),
        "scales_mean": None,
        "whitening": None,
        "precision": "float32",
    }
    return NetworkEmbedding(**(fields | changes))
