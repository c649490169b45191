"""Inside a transformer block: running it, naming its parts, making narrower ones of its kind."""
