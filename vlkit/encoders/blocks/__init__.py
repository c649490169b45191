"""Inside a transformer block: name its parts, let queries attend to it, build narrower blocks of its kind."""
