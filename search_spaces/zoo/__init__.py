"""Published networks by name."""

from search_spaces.zoo.loader import ALIASES, Published, load, load_networks, names, published

__all__ = ["ALIASES", "Published", "load", "load_networks", "names", "published"]
