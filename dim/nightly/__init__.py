"""The nightly evaluation: extracts new photos, indexes, measures, compares with the last accepted night."""
