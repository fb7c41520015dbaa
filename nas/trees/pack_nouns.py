"""Makes the shipped file of nouns from a whole WordNet 3.0: ``python -m nas.trees.pack_nouns /usr/share/wordnet``.

In it are all kinds of physical things, all synsets of ImageNet-22k (timm's list; timm comes with the extra `test`), the ten
digits, what the authors' package has for CIFAR-100, and everything above them.
"""

import sys
from importlib.resources import files
from pathlib import Path

from nas.trees.nouns import SHIPPED, WordNet, pack, read_folder

PHYSICAL = "n00001930"  # physical entity
OTHERS = ("n07476495", "n08438533")  # stand in the authors' list for CIFAR-100


def chosen(wordnet: WordNet) -> set[str]:
    """WNIDs of what is shipped, without what is above."""
    listed = (files("timm") / "data" / "_info" / "imagenet22k_synsets.txt").read_text().split()
    kinds = {
        wnid for wnid in wordnet.lemmas if wnid not in wordnet.instances and PHYSICAL in wordnet.above(wnid)
    }  # fmt: skip
    return {*listed, *kinds, *OTHERS, *(wordnet.senses[digit][0][1] for digit in "0123456789")}


def main() -> None:
    """Write the file."""
    wordnet = read_folder(Path(sys.argv[1]))
    SHIPPED.write_bytes(pack(wordnet, chosen(wordnet)))


if __name__ == "__main__":
    main()
