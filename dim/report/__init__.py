"""HTML pages for people. Each is one file that includes its photos and needs neither a network nor a server.

    page = Page("audit", "Likely label errors", f"{len(found)} of {len(photos)} photos")
    page.section("Headline", parts.figures({"Suspects": ("12", "of 500 photos")}))
    page.section("Strips", [parts.strip(page.photos, cards) for cards in ...], note="Nearest photos of other labels.")
    page.section("Table", parts.table([Column("photo"), Column("score", ".3f")], [Row(["a", 0.9], detail)], "photos"))
    page.write(out.path("report.html"))

Text is escaped; only `page.element` makes markup. A card shows a `PagePhoto`: the path of a photo and perhaps a box in
the photo. The page reads photos in threads, embeds each photo once, even if it is shown several times, and shrinks all
photos to keep the file below 5 MB. An unreadable photo becomes a placeholder and is named at the end. `parts` draws
strips, figures and tables, `charts` curves and bars, `gallery` the queries of an evaluation, and `photo_map` the map of
a set. Each other module makes the pages of one job. Style and scripts are in `assets`. The page's content security
policy allows no other style or script, and no `style=` attribute.
"""
