"""Labelled text of optional Debian packages: sayings by topic, and pieces of manual pages by section."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.corpora.debian import fortunes, manual_pages
from bench.corpora.pairs import Split

RUDE = {"ethnic", "men-women"}
HELD_OUT_OF = 3  # one text in so many is held out
SECTIONS = ("1", "5", "7", "8")


class LabelledText(NamedTuple):
    """A text and its class."""

    text: str
    label: str


def fortune_topics(topics: int = 12, per_topic: int = 300) -> Split[LabelledText]:
    """Sayings with their topic: those with the most sayings, as many of each at most, no text twice.

    Which texts are held out, and their order, depends on the texts alone.
    """
    found = {name: items for name, items in fortunes().items() if name not in RUDE and "-off" not in name}
    largest = sorted(found, key=lambda name: (-len(found[name]), name))[:topics]
    seen: set[str] = set()
    texts = []
    for topic in sorted(largest):
        distinct = sorted({item for item in found[topic] if item not in seen}, key=_chance)
        seen.update(distinct)
        texts += [LabelledText(item, topic) for item in distinct[:per_topic]]
    return _split(texts, [text.text for text in texts])


def manual_sections(
    locale: str, translation: str, *, characters: int = 300, per_page: int = 4
) -> Split[LabelledText]:
    """Pieces of manual pages with the section that the page belongs to, of those that have a translation.

    A page and its translations are all held out or all not, so that nothing held out was seen in another language.
    """
    texts, pages = [], []
    both = manual_pages(translation).keys()
    for name, text in manual_pages(locale).items():
        section = name.rpartition(".")[2][:1]
        if name in both and section in SECTIONS:
            for piece in list(_pieces(text, characters))[:per_page]:
                texts.append(LabelledText(piece, section))
                pages.append(name)
    return _split(texts, pages)


def _pieces(text: str, characters: int) -> Iterator[str]:
    """Parts of a text after its heading, which names the section; the last one, if short, is left out."""
    body = " ".join(text.split())
    start = min(len(body), characters // 2)
    for at in range(start, len(body) - characters + 1, characters):
        yield body[at : at + characters]


def _split(texts: Sequence[LabelledText], keys: Sequence[str]) -> Split[LabelledText]:
    order = sorted(range(len(texts)), key=lambda at: _chance(keys[at] + texts[at].text))
    held_out = [at for at in order if _chance(keys[at]) % HELD_OUT_OF == 0]
    train = [at for at in order if _chance(keys[at]) % HELD_OUT_OF != 0]
    return Split(tuple(texts[at] for at in train), tuple(texts[at] for at in held_out))


def _chance(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
