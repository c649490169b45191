"""Memory-efficient execution of a route, independent of the method."""
