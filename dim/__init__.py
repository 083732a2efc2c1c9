"""dim, deep image matching: finds the photographs that show the same object or place.

    import dim

    model = dim.Model("runs/mine/model")           # or an off-the-shelf network, such as "vgg16-gem"
    vectors = model.embed(["a.jpg", "b.jpg"])      # paths, PIL images or arrays → float32 (2, D), L2-normalised
    index = dim.Index("runs/index", model)         # made by index.py, or descriptors made by extract.py
    ids, scores = index.search(vectors, 10)        # both (2, 10)

Importing `dim` is fast: TensorFlow and FAISS are imported when `Model` and `Index` are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Index", "Model"]

if TYPE_CHECKING:
    from dim.extract.model import Model
    from dim.search.index import Index
else:
    _MODULES = {"Index": "dim.search.index", "Model": "dim.extract.model"}

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(importlib.import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
