"""Published networks by name."""

from search_spaces.zoo.loader import ALIASES, Entry, Published, find, load, load_networks, names, published

__all__ = ["ALIASES", "Entry", "Published", "find", "load", "load_networks", "names", "published"]
