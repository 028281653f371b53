"""The native forms of a model: one folder each, and what they have in common."""
