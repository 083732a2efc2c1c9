"""Groups of photos that show the same thing, and copies of one photo, found without labels."""
