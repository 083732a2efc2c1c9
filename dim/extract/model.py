"""`dim.Model`: descriptors of a few photos, in this process and without Ray. extract.py is for many photos.

The photos take the same way as in extract.py: `dim.data.decode` resizes them, and `dim.extract.embedder` embeds them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias, get_args

import numpy as np
from PIL import Image

from dim.app.config import one_of
from dim.data import isolated
from dim.data.config import Resize
from dim.data.decode import decode_image
from dim.data.limits import DecodeError
from dim.data.photos import read, reason
from dim.errors import UserError, quoted
from dim.extract import embedder, identity
from dim.extract.config import Extraction
from dim.extract.embedding import NetworkEmbedding
from dim.io.storage import parallel_map, retried
from dim.model import devices
from dim.model import whitening as whitenings
from dim.model.devices import Precision

Photo: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

_AHEAD = os.cpu_count() or 1  # files that are decoded at a time
_AT_ONCE = 64  # photos that are held in memory


class Model:
    """A network that makes descriptors of photos.

    The descriptors are those that extract.py makes of the same photos with the same settings:

        import dim

        model = dim.Model("runs/mine/model")  # or the name of an off-the-shelf network, such as "vgg16-gem"
        vectors = model.embed(["a.jpg", "b.jpg"])
        cosines = vectors @ vectors.T

    Args:
        model: A model folder, or the name of an off-the-shelf network, `BACKBONE-POOLING[@LAYER]`.
        image_size: The side of the square, or the longer side, in pixels. By default, the model's.
        resize: "squash" to a square, or "long-side", which keeps the aspect ratio. By default, the model's.
        scales: Image scales to combine, such as (1, 0.7071, 0.5).
        whitening: A whitening file to apply, made by whiten.py.
        precision: "float32", "bfloat16" or "float16". "auto" is bfloat16 if the hardware accelerates it, else float32.

    Attributes:
        name: The `model`, as it was given.
        embedding: The identity of the descriptors. Descriptors may be compared if their identities are equal.
        dimension: The number of values of a descriptor.

    Raises:
        UserError: There is no such model, its weights can't be read, or a setting is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        image_size: int | None = None,
        resize: Resize | None = None,
        scales: Sequence[float] = (1.0,),
        whitening: str | os.PathLike[str] | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.name = os.fspath(model)
        settings = Extraction(image_size=image_size, resize=resize, scales=tuple(scales), precision=precision)
        source = settings.source(self.name)
        self._spec = source.spec
        one_of("precision", precision, list(get_args(Precision)))
        whiten_by = None if whitening is None else whitenings.load(os.fspath(whitening))
        embedder.set_environment(one_shape=self._spec.resize == "squash")
        gpu = devices.share_gpus()
        computed = devices.best_precision(gpu) if precision == "auto" else precision
        recipe = embedder.Recipe(source, computed, settings.scales, settings.scales_mean, whiten_by)
        self.embedding: NetworkEmbedding = identity.embedding_of(recipe)
        self._embedder = embedder.Embedder(recipe, embedder.default_batch_size(self._spec.image_size, gpu))
        self.dimension: int = self._embedder.dimension

    def embed(self, photos: Photo | Iterable[Photo]) -> np.ndarray:
        """Makes the descriptor of each photo.

        Args:
            photos: One or several photos. A photo is a path or URI of a file, a PIL image, or a uint8 array of RGB
                pixels, (H, W, 3). The orientation in EXIF and the colour profile of a file or an image are applied.

        Returns:
            L2-normalised descriptors, float32 (N, D), in the order of the photos.

        Raises:
            UserError: A photo can't be read or decoded.
        """
        pixels = parallel_map(self._decoded, self._resized(_listed(photos)), _AHEAD)
        parts = [self._embedder.embed([])]
        while some := list(islice(pixels, _AT_ONCE)):
            parts.append(self._embedder.embed(some))
        return np.concatenate(parts)

    def _resized(self, photos: Iterable[Photo]) -> Iterator[np.ndarray | str]:
        """Yields the pixels, for the network, of photos in memory, and the paths of files."""
        for number, photo in enumerate(photos):
            if isinstance(photo, str | os.PathLike):
                yield os.fspath(photo)
                continue
            try:
                yield decode_image(_as_image(photo, number), self._spec.image_size, self._spec.resize)
            except DecodeError as error:
                raise UserError(f"photo {number} can't be used: {error}") from error

    def _decoded(self, photo: np.ndarray | str) -> np.ndarray:
        if isinstance(photo, np.ndarray):
            return photo
        try:
            return isolated.decode(retried(read)(photo), self._spec.image_size, self._spec.resize).pixels
        except (DecodeError, OSError) as error:
            raise UserError(f"cannot read the photo {quoted(photo)}: {reason(error)}") from error


def _listed(photos: Photo | Iterable[Photo]) -> Iterable[Photo]:
    single = isinstance(photos, str | os.PathLike | Image.Image) or (isinstance(photos, np.ndarray) and photos.ndim < 4)
    return [photos] if single else photos  # type: ignore[list-item, return-value]


def _as_image(photo: Image.Image | np.ndarray, number: int) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo
    if not isinstance(photo, np.ndarray):
        raise UserError(f"photo {number} is a {type(photo).__name__}; give a path, a PIL image or a uint8 array")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        shape = " × ".join(map(str, photo.shape))
        raise UserError(f"photo {number} is an array of {photo.dtype}, {shape}; give RGB pixels, uint8 (H, W, 3)")
    return Image.fromarray(photo)
