"""Search: exact, by an index, and what is done with a ranked list afterwards."""
