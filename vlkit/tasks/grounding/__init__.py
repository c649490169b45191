"""Visual grounding: find the box of an image that a text describes."""
