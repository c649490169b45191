"""A library's towers as staged encoders, one module a kind of tower."""
