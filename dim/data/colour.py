"""Colour management: converts photos by their ICC profiles to sRGB, because the networks were trained on sRGB.

A profile is ignored if it is broken, too large, or for another colour space than the photo has. This module also
ignores PNG's chunks gAMA and cHRM, and the code points (cICP) of PNG and AVIF, as most viewers and libvips do.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

LARGEST = 2**23  # bytes; a larger profile is ignored; profiles of printers have up to 3 MB
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode → the name of its colour space in a profile
# A profile counts as sRGB and is not applied if it changes no colour of `_CUBE` by more than `_NEAR` (of 255).
_NEAR = 3
_CUBE = np.stack(np.meshgrid(*3 * [np.linspace(0, 255, 9)]), axis=2).astype(np.uint8).reshape(27, 27, 3)


def as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts `image` (mode L, RGB, CMYK or LAB) to sRGB (mode RGB), as its `profile` says.

    Without a profile, grey and RGB count as sRGB, and CMYK as ideal inks. Lab is always relative to daylight (D50).
    """
    transform = None
    if image.mode == "LAB":
        transform = _from_lab()
    elif profile and len(profile) <= LARGEST:
        transform = _transform(profile, image.mode)
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an image that is RGB already


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from `profile` to sRGB, or None if the profile is sRGB, broken or not for `mode`."""
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
    # Most viewers use the perceptual intent, too. If a profile lacks it, LittleCMS uses relative colorimetric.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.ImageCmsTransform(profile, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
