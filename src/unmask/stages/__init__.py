"""One file per stage: its frozen config, and the function that runs it."""
