"""Pages for people: one HTML file each that holds all it shows, photos too, and asks nothing of a network or a server.

    page = Page("audit", "Likely label errors", f"{len(found)} of {len(photos)} photos")
    page.section("Headline", parts.figures({"Suspects": ("12", "of 500 photos")}))
    page.section("Strips", [parts.strip(page.photos, cards) for cards in ...], note="Nearest photos of other labels.")
    page.section("Table", parts.table([Column("photo"), Column("score", ".3f")], [Row(["a", 0.9], detail)], "photos"))
    page.write(out.path("report.html"))

Whatever is passed in as text is shown as text: only `html.element` makes markup. A `Photo` names where a photo lies (as
`Manifest.paths` and `.boxes` do); the page reads it by threads, embeds it once however often it is shown, and shrinks
all photos until the file stays below 5 MB. One that can't be read becomes a placeholder and is named at the end.
`parts` has what pages are made of, `charts` curves and bars, `atlas` the map of a set.
Style and scripts are in `assets`; the policy in the page's head allows no others, and no `style=` attribute.
"""
