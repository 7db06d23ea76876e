"""Numbers in, frozen results out: no files, no models, no progress."""
