"""map.html shows the photos of a set on a plane. Photos with similar descriptors are close together.

t-SNE (van der Maaten and Hinton, JMLR 2008) places the photos. It keeps neighbours together, but distances between
groups mean nothing. The first two principal components would hold too little of the variance and pile up all
photos in one place. t-SNE takes seconds for `SHOWN` photos.
"""

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.page_photos import PagePhotos
from dim.report.parts import Card

SHOWN = 400  # photos on a map, at most; of a larger set, a random sample
SEED = 0
WIDTH, HEIGHT = 1400, 900  # of the map, in SVG units
_FEW = 8  # the fewest photos that t-SNE places


def sample(count: int) -> np.ndarray:
    """The rows of a set of `count` photos that the map shows, in ascending order: all, or `SHOWN` random ones."""
    if count <= SHOWN:
        return np.arange(count)
    chosen: np.ndarray = np.sort(np.random.default_rng(SEED).choice(count, SHOWN, replace=False))
    return chosen


def layout(vectors: np.ndarray) -> np.ndarray:
    """Returns places (N, 2) in the unit square for descriptors (N, D). The same `vectors` always get the same ones."""
    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < _FEW:
        centred = vectors - vectors.mean(axis=0)
        places = np.zeros((len(vectors), 2))
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        places[:, : len(axes)] = centred @ axes.T
    else:
        from sklearn.manifold import TSNE  # noqa: PLC0415  (slow to import; only maps need it)

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        with threadpool_limits(1):  # threads would mostly wait, as there is little work
            places = TSNE(perplexity=perplexity, random_state=SEED).fit_transform(vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: np.ndarray = (places - low) / np.where(high > low, high - low, 1)
    return scaled


def map_page(job: str, of: str, cards: Sequence[Card], total: int, vectors: np.ndarray) -> Page:
    """Makes the page of the map of the set `of`, which has `total` photos.

    `cards` are the N photos to show. Cards with a note, such as queries, are framed. `vectors` (N, D) are the
    descriptors of `cards`.
    """
    noted = sum(bool(card.note) for card in cards)
    shown = len(cards) - noted
    count = f"{shown:,} photos, drawn at random from the {total:,}" if shown < total else f"the {total:,} photos"
    summary = [count, " of ", user_text(of), f"; framed: {noted}" if noted else None]
    page = Page(job, "Map of the set", summary, scripts=("map.js",))
    side = min(round(0.85 * (WIDTH * HEIGHT / len(cards)) ** 0.5), HEIGHT // 5)
    spots = [_spot(page.photos, card, place, side) for card, place in zip(cards, layout(vectors), strict=True)]
    drawing = element(
        "svg",
        element("g", spots),
        viewBox=f"{-side} {-side} {WIDTH + 2 * side} {HEIGHT + 2 * side}",
        tabindex=0,
        role="group",
        aria_label=f"Map of {len(cards)} photos; arrows move it, + and − zoom, 0 shows all",
    )
    buttons = [
        element("button", sign, type="button", data_zoom=factor, aria_label=action)
        for sign, factor, action in (("+", 1.6, "Zoom in"), ("−", 0.625, "Zoom out"), ("○", 0, "Show all"))
    ]
    field = element("input", type="search", placeholder="Find a label or an id", aria_label="Find a label or an id")
    found = element("output", f"{len(cards)} of {len(cards)}", aria_live="polite")
    tools = element("p", field, element("span", buttons, class_="zoom"), found, class_="tools")
    chosen = element("div", class_="chosen", aria_live="polite", hidden=True)
    frame = element("div", drawing, chosen, class_="frame")
    page.section("Map", element("div", tools, frame, class_="atlas"), note=_NOTE)
    return page


_NOTE = (
    "Photos with similar descriptors lie close together. Distances between groups mean nothing. Drag to move, turn the "
    "wheel or pinch to zoom, and click a photo to see its label and id."
)


def _spot(photos: PagePhotos, card: Card, place: np.ndarray, side: int) -> Html:
    x, y = round(float(place[0]) * WIDTH), round(float(place[1]) * HEIGHT)
    half = side // 2
    parts = (
        element("title", card.description()),
        element("rect", x=-half, y=-half, width=side, height=side, rx=side // 16),
        element("use", href=f"#{photos.symbol(card.photo)}", x=-half, y=-half, width=side, height=side),
    )
    kind = "spot noted" if card.note else "spot"
    words = {"data_label": card.label, "data_id": card.image_id}
    return element("g", parts, class_=kind, role="img", transform=f"translate({x} {y})", data_x=x, data_y=y, **words)
