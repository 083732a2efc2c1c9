"""HTML pages for people. Each is one file that includes its photos and needs neither a network nor a server.

    page = Page("audit", "Likely label errors", f"{len(found)} of {len(photos)} photos")
    page.section("Headline", parts.figures({"Suspects": ("12", "of 500 photos")}))
    page.section("Strips", [parts.strip(page.photos, cards) for cards in ...], note="Nearest photos of other labels.")
    page.section("Table", parts.table([Column("photo"), Column("score", ".3f")], [Row(["a", 0.9], detail)], "photos"))
    page.write(out.path("report.html"))

Text is escaped; only `page.element` makes markup. A card shows a `PagePhoto`: the path of a photo and perhaps a box in
it. The page reads photos in threads, embeds each once however often it is shown, and shrinks all of them until the file
is below 5 MB. An unreadable photo becomes a placeholder and is named at the end. `parts` has strips, figures and
tables, `charts` curves and bars, `gallery` the queries of an evaluation, `similarity_map` the map of a set. Each other
module is the page of one job. Style and scripts are in `assets`. The page's content security policy allows no others,
and no `style=` attribute.
"""
