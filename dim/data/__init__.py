"""Photos and what is known of them: manifest, ground truth, importers, decoding, splitting."""
