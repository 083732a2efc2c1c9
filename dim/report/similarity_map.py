"""The map of a set: its photos laid out in a plane so that what looks alike to the network lies together.

The plane is t-SNE's (van der Maaten and Hinton 2008). The first two principal components of a descriptor hold a small
part of its variance and put all photos on one heap; t-SNE keeps neighbours together, which is what one looks for here.
Distances between groups mean nothing. It takes seconds for the `SHOWN` photos that a map has at most.
"""

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dim.report.page import Html, Page, PagePhotos, element, name
from dim.report.parts import Card

SHOWN = 400  # photos on a map; drawn by `SEED` where there are more
SEED = 0
WIDTH, HEIGHT = 1400, 900
_FEW = 8  # too few to have neighbourhoods


def drawn(count: int) -> np.ndarray:
    """Which of `count` photos are on the map: all, or `SHOWN` drawn at random, ascending."""
    if count <= SHOWN:
        return np.arange(count)
    chosen: np.ndarray = np.sort(np.random.default_rng(SEED).choice(count, SHOWN, replace=False))
    return chosen


def projected(vectors: np.ndarray) -> np.ndarray:
    """Places (N, 2) from 0 to 1 of the descriptors `vectors` (N, D), the same for the same descriptors."""
    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < _FEW:
        centred = vectors - vectors.mean(axis=0)
        places = np.zeros((len(vectors), 2))
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        places[:, : len(axes)] = centred @ axes.T
    else:
        from sklearn.manifold import TSNE  # noqa: PLC0415  (only maps need it)

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        with threadpool_limits(1):  # the work is too little to share: its threads would mostly wait, and spin
            places = TSNE(perplexity=perplexity, random_state=SEED).fit_transform(vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: np.ndarray = (places - low) / np.where(high > low, high - low, 1)
    return scaled


def page(job: str, of: str, cards: Sequence[Card], whole: int, vectors: np.ndarray) -> Page:
    """The map of `cards`, drawn from the `whole` number of photos of the set `of`, by their descriptors (N, D).

    Those that have a note are framed.
    """
    noted = sum(bool(card.note) for card in cards)
    shown = len(cards) - noted
    count = f"{shown:,} photos, drawn at random from the {whole:,}" if shown < whole else f"the {whole:,} photos"
    summary = [count, " of ", name(of), f"; framed: {noted}" if noted else None]
    made = Page(job, "Map of the set", summary, scripts=("atlas.js",))
    side = round(0.85 * (WIDTH * HEIGHT / len(cards)) ** 0.5)
    side = min(side, HEIGHT // 5)
    spots = [_spot(made.photos, card, place, side) for card, place in zip(cards, projected(vectors), strict=True)]
    drawing = element(
        "svg",
        element("g", spots),
        viewBox=f"{-side} {-side} {WIDTH + 2 * side} {HEIGHT + 2 * side}",
        tabindex=0,
        role="group",
        aria_label=f"Map of {len(cards)} photos; arrows move it, + and − zoom, 0 shows all",
    )
    buttons = [
        element("button", sign, type="button", data_zoom=factor, aria_label=what)
        for sign, factor, what in (("+", 1.6, "Zoom in"), ("−", 0.625, "Zoom out"), ("○", 0, "Show all"))
    ]
    field = element("input", type="search", placeholder="Find a label or an id", aria_label="Find a label or an id")
    count = element("output", f"{len(cards)} of {len(cards)}", aria_live="polite")
    tools = element("p", field, element("span", buttons, class_="zoom"), count, class_="tools")
    chosen = element("div", class_="chosen", aria_live="polite", hidden=True)
    made.section(
        "Map", element("div", tools, element("div", drawing, chosen, class_="frame"), class_="atlas"), note=_NOTE
    )
    return made


_NOTE = (
    "Photos that look alike to the network lie together. The distance between groups means nothing. Drag to move, turn "
    "the wheel or pinch to zoom, choose a photo to see what it is."
)


def _spot(photos: PagePhotos, card: Card, place: np.ndarray, side: int) -> Html:
    x, y = round(float(place[0]) * WIDTH), round(float(place[1]) * HEIGHT)
    half = side // 2
    parts = (
        element("title", card.described()),
        element("rect", x=-half, y=-half, width=side, height=side, rx=side // 16),
        element("use", href=f"#{photos.symbol(card.photo)}", x=-half, y=-half, width=side, height=side),
    )
    kind = "spot noted" if card.note else "spot"
    words = {"data_label": card.label, "data_id": card.image_id}
    return element("g", parts, class_=kind, role="img", transform=f"translate({x} {y})", data_x=x, data_y=y, **words)
