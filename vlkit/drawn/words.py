"""Names of things and colours: basic names (pre-training domain) and other names (demo domain)."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 40, 40),
    "orange": (245, 138, 20),
    "yellow": (250, 216, 40),
    "green": (42, 160, 60),
    "blue": (40, 90, 220),
    "purple": (132, 52, 178),
    "pink": (250, 130, 185),
    "brown": (132, 80, 40),
    "black": (34, 34, 38),
    "white": (250, 250, 250),
    "gray": (136, 140, 146),
    "turquoise": (40, 196, 190),
}
"""Basic colours as RGB."""

SHADES: dict[str, dict[str, tuple[str, ...]]] = {
    "red": {"mid": ("scarlet", "ruby"), "dark": ("crimson", "maroon")},
    "orange": {"mid": ("tangerine", "amber")},
    "yellow": {"mid": ("golden", "lemon"), "light": ("pale yellow", "cream")},
    "green": {"mid": ("emerald",), "dark": ("dark green", "forest green"), "light": ("lime", "pale green")},
    "blue": {"mid": ("cobalt", "royal blue"), "dark": ("navy", "dark blue"), "light": ("azure", "sky blue")},
    "purple": {"mid": ("violet",), "dark": ("plum", "dark purple"), "light": ("lavender", "lilac")},
    "pink": {"mid": ("rosy", "bubblegum pink")},
    "brown": {"mid": ("chocolate",), "light": ("tan", "light brown")},
    "black": {"mid": ("ebony", "jet black")},
    "white": {"mid": ("snowy", "ivory")},
    "gray": {"mid": ("ash gray", "grey"), "dark": ("charcoal", "dark gray"), "light": ("silver", "light gray")},
    "turquoise": {"mid": ("cyan",), "dark": ("teal",), "light": ("aqua",)},
}
"""Names of the versions a colour comes in, used by the demo domain only; the basic name fits every version."""

PLURALS = {
    "fungus": "fungi",
    "trout": "trout",
    "fish": "fish",
    "leaf": "leaves",
    "cactus": "cacti",
    "snowman": "snowmen",
}

FAMILIAR: dict[str, tuple[str, ...]] = {
    "circle": ("disc",),
    "house": ("cottage",),
    "car": ("vehicle",),
    "boat": ("ship",),
    "cat": ("kitten",),
    "apple": ("fruit",),
    "ball": ("toy ball",),
    "lamp": ("light",),
    "chair": ("seat",),
    "flower": ("daisy",),
}
"""Other names of a kind, which rarely appear in pre-training captions too."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("round spot", "dot"),
    "square": ("block", "four-sided shape"),
    "triangle": ("pyramid",),
    "star": ("pentagram",),
    "heart": ("valentine",),
    "ring": ("hoop",),
    "cross": ("plus sign",),
    "diamond": ("rhombus",),
    "arrow": ("pointer",),
    "house": ("home", "hut"),
    "car": ("automobile", "motorcar"),
    "boat": ("sailboat", "yacht"),
    "rocket": ("spaceship", "spacecraft"),
    "tree": ("oak", "leafy plant"),
    "flower": ("blossom", "bloom"),
    "mushroom": ("toadstool", "fungus"),
    "cactus": ("desert plant",),
    "leaf": ("frond",),
    "fish": ("trout", "sea animal"),
    "bird": ("sparrow", "songbird"),
    "cat": ("kitty", "feline"),
    "moon": ("crescent", "new moon"),
    "sun": ("sunburst",),
    "chair": ("dining chair",),
    "table": ("desk",),
    "lamp": ("desk lamp", "lampshade"),
    "clock": ("timepiece",),
    "cup": ("mug", "teacup"),
    "key": ("latchkey",),
    "bell": ("chime",),
    "book": ("novel", "open book"),
    "bottle": ("flask",),
    "candle": ("wax candle",),
    "umbrella": ("parasol", "brolly"),
    "hat": ("top hat",),
    "apple": ("orchard fruit",),
    "ball": ("beach ball",),
    "balloon": ("party balloon",),
    "kite": ("toy kite",),
    "snowman": ("snow figure",),
}
"""Names of a kind that only the demo domain uses."""


def plural(name: str) -> str:
    """Plural of a name from this file: ``car`` -> ``cars``, ``top hat`` -> ``top hats``, ``leaf`` -> ``leaves``."""
    first, _, last = name.rpartition(" ")
    lead = f"{first} " if first else ""
    if last in PLURALS:
        return lead + PLURALS[last]
    if last.endswith("fish"):
        return name
    if last.endswith("y") and last[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    if last.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name}s"


def with_article(phrase: str) -> str:
    """``car`` -> ``a car``, ``umbrella`` -> ``an umbrella``."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
