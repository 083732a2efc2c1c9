"""Colour management: a photo's ICC profile says how its colours become sRGB, on which the networks were trained.

A profile is ignored if it is broken or belongs to another colour space than the photo's. Like most viewers and libvips,
this module also ignores PNG's gAMA and cHRM, and the code points (cICP) of PNG and AVIF.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

LARGEST = 2**23  # bytes of a profile; printers' profiles have up to 3 MB
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# A profile that changes none of these 9 × 9 × 9 colours by more than `_NEAR` counts as sRGB and is not applied.
_NEAR = 3
_CUBE = np.stack(np.meshgrid(*3 * [np.linspace(0, 255, 9)]), axis=2).astype(np.uint8).reshape(27, 27, 3)


def as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts `image` (mode L, RGB, CMYK or LAB) from the colours of its `profile` to sRGB (mode RGB).

    Without a profile, grey and RGB count as sRGB, CMYK as ideal inks, and Lab as relative to daylight (D50).
    """
    transform = None
    if image.mode == "LAB":
        transform = _from_lab()
    elif profile and len(profile) <= LARGEST:
        transform = _transform(profile, image.mode)
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from `profile` to sRGB; None if it would change nothing or the profile does not fit `mode`."""
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if known.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = _to_srgb(known, mode)
        cube = Image.fromarray(_CUBE).convert(mode)
        before, after = (np.asarray(image, np.int16) for image in (cube.convert("RGB"), transform.apply(cube)))
    except Exception:  # a broken profile does not spoil the photo
        return None
    return None if np.abs(after - before).max() <= _NEAR else transform


@lru_cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    return _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    # The perceptual intent, as in most viewers. If a profile lacks it, LittleCMS takes relative colorimetric.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.ImageCmsTransform(profile, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
