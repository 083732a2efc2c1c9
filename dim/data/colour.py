"""Colour profiles (ICC): colours as sRGB shows them, which is what the networks were trained on.

A profile that is broken, or is of another kind of picture than the one it comes with, is ignored: the photo is still a
photo. So are PNG's gAMA and cHRM and the code points (cICP) of PNG and AVIF, as most viewers and libvips do.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

LARGEST = 2**23  # bytes of a profile; those of printers have up to 3 MB
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# A profile that changes no colour by more than this is sRGB under another name: its photos are left as they are.
_NEAR = 3
_CUBE = np.stack(np.meshgrid(*3 * [np.linspace(0, 255, 9)]), axis=2).astype(np.uint8).reshape(27, 27, 3)


def as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image`, of the mode L, RGB, CMYK or LAB, in the colours of `profile` → RGB in those of sRGB.

    Without a profile, grey and RGB are taken for sRGB, CMYK for inks that take away all of their colour, and Lab for
    that of daylight (D50).
    """
    transform = None
    if image.mode == "LAB":
        transform = _from_lab()
    elif profile and len(profile) <= LARGEST:
        transform = _transform(profile, image.mode)
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Turns the colours of `profile` into sRGB; None where there is nothing to do, or the profile doesn't fit."""
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if known.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = _to_srgb(known, mode)
        cube = Image.fromarray(_CUBE).convert(mode)
        before, after = (np.asarray(image, np.int16) for image in (cube.convert("RGB"), transform.apply(cube)))
    except Exception:  # a photo with a broken profile is still a photo
        return None
    return None if np.abs(after - before).max() <= _NEAR else transform


@lru_cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    return _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    # Perceptual, as most viewers; what a profile without such a table gives is relative colorimetric.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.ImageCmsTransform(profile, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
