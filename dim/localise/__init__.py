"""Where two photos match: the best region of a photo, the geometry of matching points, and re-ranking by both."""
