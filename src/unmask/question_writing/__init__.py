"""Writing batteries with a model: descriptions in, balanced questions out, each with its origin; and checking one."""
