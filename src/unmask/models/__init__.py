"""Everything that touches torch or transformers."""
