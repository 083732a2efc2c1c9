"""Search of a database, exactly or through an FAISS index, with query expansion and re-ranking."""
