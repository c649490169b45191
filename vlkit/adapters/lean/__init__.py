"""How a route runs in little memory. Knows no method."""
