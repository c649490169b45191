"""Visual grounding: a text about an image to its box."""
