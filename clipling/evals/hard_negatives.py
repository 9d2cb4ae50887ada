"""Captions made false by rules, for the question whether a model reads more than a bag of words.

Four kinds, after Yuksekgonul et al. 2023 (ARO, arXiv 2210.01936: word order, attribution, relation) and Hsieh et al. 2023 (SugarCrepe,
arXiv 2306.14610: objects). There the words are tagged by a parser or written by a language model; here they are found by word lists and by
where they stand, so that any English captions will do, and a caption that no rule fits for certain is left alone. What is made is a
function of the caption and of what is true of its picture, and of nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, combinations
from typing import Literal

import numpy as np

from clipling.data.pairs import normalise_caption
from clipling.evals import hard_negatives_words as words

Kind = Literal["word_order", "attribute", "relation", "object"]
KINDS: tuple[Kind, ...] = ("word_order", "attribute", "relation", "object")
TRIES = 24  # orders of the words that are tried before a caption is left alone
SHORTEST = 5  # words: what is shorter may be true in another order ("a man windsurfing")

Made = Iterator[tuple[str, str]]  # (rule, negative)


@dataclass(frozen=True)
class Negative:
    """A caption, and one that differs from it in what `kind` says and is false of the picture, made by `rule`."""

    caption: str
    negative: str
    kind: Kind
    rule: str


@dataclass(frozen=True)
class Nouns:
    """The nouns of a dataset's captions, in lower case.

    counts: of each, the pictures in whose captions it heads a noun phrase.
    counted: those that stand behind "a" or "an" often enough to do so anywhere ("a dog", but not "a water").
    """

    counts: dict[str, int]
    counted: frozenset[str]

    def __contains__(self, word: str) -> bool:
        return word in self.counts

    @cached_property
    def alike(self) -> dict[tuple[bool, bool], list[str]]:
        """The nouns in groups whose members stand in for each other: (plural, animate) -> words."""
        found: dict[tuple[bool, bool], list[str]] = {}
        for word in sorted(self.counts):
            found.setdefault(self.group(word), []).append(word)
        return found

    @staticmethod
    def group(word: str) -> tuple[bool, bool]:
        return words.looks_plural(word), bool(words.kin(word) & words.ANIMATE)


@dataclass(frozen=True)
class Truth:
    """What is true of a picture: the captions of it and of every picture of its group."""

    captions: frozenset[str]  # normalised
    readings: frozenset[tuple[str, ...]]  # see `_reading`
    words: frozenset[str]

    @classmethod
    def of(cls, captions: Iterable[str]) -> Truth:
        texts = [_Text(caption) for caption in captions]
        return cls(
            frozenset(normalise_caption(text.caption) for text in texts),
            frozenset(_reading(text) for text in texts),
            frozenset(word for text in texts for word in text.low),
        )

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(map(words.stem, self.words))

    @cached_property
    def kin(self) -> frozenset[int]:
        return frozenset(number for word in self.words for number in words.kin(word))


def negatives(captions: Sequence[str], kind: Kind, nouns: Nouns, truth: Truth | None = None) -> list[Negative | None]:
    """A hard negative for each of the English `captions` of one picture, None for a caption that no rule of this kind fits.

    `truth`: of these captions, and of those of further pictures that show the same, where there are any. A negative is none of them,
    also not but for case, punctuation, or the order of what "and" or another symmetric relation joins.
    """
    truth = truth or Truth.of(captions)
    return [_first(caption, kind, nouns, truth) for caption in captions]


def frequent_nouns(captions_by_picture: Iterable[Sequence[str]], least: int = 2, most: int = 1000, share: float = 0.2) -> Nouns:
    """The words that stand behind a determiner, and known attributes, at the end of their noun phrase.

    Args:
        captions_by_picture: the captions of each picture.
        least: pictures in whose captions a word must be seen to be a noun.
        most: nouns that are kept, the most frequent.
        share: of the pictures with the word, those where it is seen to be a noun; below it the word is mostly something else.
    """
    heads: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    behind_a: Counter[str] = Counter()
    for captions in captions_by_picture:
        texts = [_Text(caption) for caption in captions]
        found = {(text.low[i], article) for text in texts for i, article in _plain_heads(text)}
        seen.update({word for text in texts for word in text.low})
        heads.update({word for word, _ in found})
        behind_a.update({word for word, article in found if article})
    kept = [(count, word) for word, count in heads.items() if count >= least and count >= share * seen[word] and _nameable(word)]
    kept = sorted(kept, key=lambda item: (-item[0], item[1]))[:most]
    return Nouns({word: count for count, word in kept}, frozenset(word for count, word in kept if behind_a[word] >= 0.1 * count))


class _Text:
    """A caption as words and what stands between them: `gaps[i]` before word i, the last one behind all."""

    def __init__(self, caption: str) -> None:
        found = list(words.WORD.finditer(caption))
        self.caption = caption
        self.words = [match[0] for match in found]
        ends, starts = [0, *(m.end() for m in found)], [*(m.start() for m in found), len(caption)]
        self.gaps = [caption[a:b] for a, b in zip(ends, starts)]
        # A capital that only opens the sentence stays at its beginning when words change places.
        self.capital = bool(found) and self.words[0][:1].isupper() and self.words[0][1:].islower() | (len(self.words[0]) == 1)
        if self.capital:
            self.words[0] = self.words[0].lower()
        self.low = [word.casefold() for word in self.words]

    def __len__(self) -> int:
        return len(self.words)

    def breaks(self, i: int) -> bool:
        """Whether punctuation, or the end of the caption, stands before word i."""
        return i <= 0 or i >= len(self) or bool(self.gaps[i].strip())

    def phrase(self, start: int, most: int = 4) -> int:
        """Where the content words from `start` on end: at a function word, a participle, punctuation, or after `most`."""
        end = start
        while end < min(len(self), start + most) and words.content(self.low[end]) and (end == start or not self.breaks(end)):
            end += 1
        return end

    def span(self, start: int, end: int) -> str:
        """The words [start, end) with what stands between them."""
        return "".join(self.words[i] + (self.gaps[i + 1] if i < end - 1 else "") for i in range(start, end))

    def edited(self, edits: dict[tuple[int, int], str]) -> str:
        """The caption with the words [start, end) replaced; an article before a replaced word follows its sound."""
        by_start = {start: (end, new) for (start, end), new in edits.items()}
        parts, i = [self.gaps[0]], 0
        while i < len(self):
            end, new = by_start.get(i, (i + 1, self.words[i]))
            if i not in by_start and i + 1 in by_start and self.low[i] in ("a", "an"):
                new = words.article(by_start[i + 1][1])
            parts += [new, self.gaps[end]]
            i = end
        return self.opened("".join(parts))

    def opened(self, caption: str) -> str:
        """With a capital in front where this caption has one."""
        at = len(self.gaps[0])
        return caption[:at] + caption[at : at + 1].upper() + caption[at + 1 :] if self.capital else caption


def _reading(text: _Text) -> tuple[str, ...]:
    """The parts that symmetric relations and punctuation join, sorted: equal for "a dog and a cat" and "a cat and a dog"."""
    parts: list[list[str]] = [[]]
    for i, word in enumerate(text.low):
        if (i and text.breaks(i)) or word in words.SYMMETRIC:
            parts.append([])
        if word not in words.SYMMETRIC:
            parts[-1].append("a" if word == "an" else word)
    joins = sorted(word for word in text.low if word in words.SYMMETRIC)
    return (*sorted(" ".join(part) for part in parts if part), "|", *joins)


def _first(caption: str, kind: Kind, nouns: Nouns, truth: Truth) -> Negative | None:
    made = {"word_order": _word_order, "attribute": _attribute, "relation": _relation, "object": _object}[kind]
    text = _Text(caption)
    own = _reading(text)
    for rule, negative in made(text, nouns, truth):
        reading = _reading(_Text(negative))
        if reading != own and reading not in truth.readings and normalise_caption(negative) not in truth.captions:
            return Negative(caption, negative, kind, rule)
    return None


def _number(*parts: object) -> int:
    """64 bits that depend on nothing but the parts."""
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _drawn(options: Iterable, text: _Text) -> list:
    """In an order that depends on the caption."""
    return sorted(options, key=lambda option: _number(text.caption, option))


def _word_order(text: _Text, nouns: Nouns, truth: Truth) -> Made:
    """ARO's shuffles that need no tagger: of groups of two or three words, and within groups of three."""
    if len(text) < SHORTEST:
        return
    rng = np.random.default_rng(_number("word_order", text.caption))
    for n in range(TRIES):
        rule, size, within = (("trigrams", 3, False), ("within_trigrams", 3, True), ("bigrams", 2, False))[(n + _number(text.caption)) % 3]
        groups = [text.words[i : i + size] for i in range(0, len(text), size)]
        groups = [[g[j] for j in rng.permutation(len(g))] for g in groups] if within else [groups[j] for j in rng.permutation(len(groups))]
        mixed = [word for group in groups for word in group]
        yield rule, text.opened(text.gaps[0] + "".join(word + gap for word, gap in zip(mixed, text.gaps[1:])))


def _attribute(text: _Text, nouns: Nouns, truth: Truth) -> Made:
    """The attributes of one family of two nouns change places; else one gives way to another of its family."""
    runs = _runs(text)
    for first, second in _drawn(combinations(runs, 2), text):
        a, b = text.low[slice(*first)], text.low[slice(*second)]
        one, two = _phrase_nouns(text, first[1]), _phrase_nouns(text, second[1])
        if words.FAMILIES[a[0]] == words.FAMILIES[b[0]] and one and two and not one & two and set(a) != set(b):
            yield f"swap {words.FAMILIES[a[0]]}s", text.edited({first: text.span(*second), second: text.span(*first)})
    places = [i for start, end in runs for i in range(start, end) if text.low[i] in words.FAMILIES]
    others = [(place, other) for place in places for other in words.other_attributes(text.low[place])]
    for i, other in _drawn(others, text):
        if other not in truth.words:
            yield f"replace {words.FAMILIES[text.low[i]]}", text.edited({(i, i + 1): other})


def _runs(text: _Text) -> list[tuple[int, int]]:
    """[start, end) of attributes of one family that say something of a noun: "black and white" is one."""
    found, i = [], 0
    while i < len(text):
        end, family = i + 1, words.FAMILIES.get(text.low[i])
        while family and end < len(text):
            step = 2 if text.low[end] == "and" else 1
            if text.low[end : end + step][-1:] and end + step <= len(text) and words.FAMILIES.get(text.low[end + step - 1]) == family:
                end += step
            else:
                break
        if family and _is_attribute(text, i, end, family):
            found.append((i, end))
        i = end if family else i + 1
    return found


def _is_attribute(text: _Text, start: int, end: int, family: str) -> bool:
    before, phrase = text.low[start - 1] if start else "", text.low[end : text.phrase(end)] if not text.breaks(end) else []
    if family == "colour" and not phrase:
        return before not in words.DETERMINERS  # "a man in red", but not "an orange"
    if not phrase or before.startswith("year") or phrase[0].startswith("year") or (phrase[0], text.low[start]) == ("dog", "hot"):
        return False
    return family != "number" or any(map(words.looks_plural, phrase))  # "two dogs", but not "a four wheeler"


def _phrase_nouns(text: _Text, start: int) -> set[str]:
    return {words.stem(w) for w in text.low[start : text.phrase(start)] if w not in words.FAMILIES} if not text.breaks(start) else set()


def _relation(text: _Text, nouns: Nouns, truth: Truth) -> Made:
    """A relation gives way to its opposite, or the noun phrases around a one-way relation change places."""
    yield from _drawn([*_opposites(text, truth), *_exchanged(text, nouns)], text)


def _opposites(text: _Text, truth: Truth) -> Made:
    i = 0
    while i < len(text):
        size = next((n for n in (3, 2, 1) if tuple(text.low[i : i + n]) in words.OPPOSITES and i + n <= len(text)), 0)
        if size and _spatial(text, i, i + size):
            for other in words.OPPOSITES[tuple(text.low[i : i + size])]:
                yield "opposite", text.edited({(i, i + size): other})
        action = words.ACTIONS.get(text.low[i])
        if action and not any(word.startswith(action[:4]) for word in truth.words):
            yield "opposite action", text.edited({(i, i + 1): action})
        i += max(size, 1)


def _spatial(text: _Text, start: int, end: int) -> bool:
    """Whether the words [start, end) say where something is, as far as their neighbours tell."""
    word = text.low[start]
    before, after = text.low[start - 1] if start else "", text.low[end] if end < len(text) else ""
    if word in ("left", "right"):
        return before in words.BEFORE_SIDE or after == "of"
    if end - start == 1 and (before in words.NOT_AFTER.get(word, ()) or after in words.NOT_BEFORE.get(word, ())):
        return False
    if word in ("on", "off", "over", "with", "without", "behind", "under") and end - start == 1:
        return bool(after) and after not in words.PREPOSITIONS and not words.TIMES & set(text.low[end : end + 4]) and not after.isdigit()
    return True


def _exchanged(text: _Text, nouns: Nouns) -> Made:
    for i, word in enumerate(text.low):
        end = i + 3 if text.low[i : i + 3] == ["in", "front", "of"] else i + 1
        if word not in words.ONE_WAY | words.FINITE and end == i + 1:
            continue
        helped = i > 0 and text.low[i - 1] in words.AUXILIARIES
        left, right = _phrase_before(text, i - helped, nouns), _phrase_after(text, end, nouns)
        if left is None or right is None:
            continue
        heads = [text.low[left[1] - 1], text.low[right[1] - 1]]
        agree = words.looks_plural(heads[0]) == words.looks_plural(heads[1]) or not (helped or word in words.FINITE)
        if agree and words.stem(heads[0]) != words.stem(heads[1]):
            yield "swap noun phrases", text.edited({left: text.span(*right), right: text.span(*left)})


def _phrase_before(text: _Text, end: int, nouns: Nouns) -> tuple[int, int] | None:
    """[start, end) of the noun phrase, from its determiner to its noun, that ends before word `end`."""
    if text.breaks(end) or text.low[end - 1] not in nouns:
        return None
    for start in range(end - 1, max(-1, end - 5), -1):
        if text.low[start] in words.DETERMINERS:
            return (start, end) if start < end - 1 else None
        if not words.content(text.low[start]) or text.breaks(start):
            return None
    return None


def _phrase_after(text: _Text, start: int, nouns: Nouns) -> tuple[int, int] | None:
    if text.breaks(start) or text.low[start] not in words.DETERMINERS or text.breaks(start + 1):
        return None
    end = text.phrase(start + 1)
    return (start, end) if end > start + 1 and text.low[end - 1] in nouns else None


def _object(text: _Text, nouns: Nouns, truth: Truth) -> Made:
    """A noun gives way to another, drawn by frequency from those of its number and animacy that nothing true of the picture names."""
    places = [i for i in range(len(text)) if text.low[i] in nouns and _whole_noun(text, i, nouns)]
    for i in _drawn(places, text):
        others = [w for w in nouns.alike[nouns.group(text.low[i])] if words.stem(w) not in truth.stems and not words.kin(w) & truth.kin]
        if _behind_a(text, i):
            others = [word for word in others if word in nouns.counted]
        sums = list(accumulate(nouns.counts[word] for word in others))
        for n in range(3 if others else 0):
            yield "replace noun", text.edited({(i, i + 1): others[bisect_right(sums, _number(text.caption, i, n) % sums[-1])]})


def _whole_noun(text: _Text, i: int, nouns: Nouns) -> bool:
    """Whether word i, a noun by the dataset, is one here and no part of a longer name or of an amount ("a crowd of")."""
    before = "" if text.breaks(i) else text.low[i - 1]
    if before and words.content(before) and before not in words.FAMILIES:
        return False
    after = "" if text.breaks(i + 1) else text.low[i + 1]
    finite = after.endswith("s") or words.looks_plural(text.low[i])  # "a dog runs", "two dogs run": a verb, not a longer name
    return not after or (after != "of" and (not words.content(after) or (finite and after not in nouns)))


def _behind_a(text: _Text, i: int) -> bool:
    """Whether noun i stands behind "a" or "an", with or without known attributes between."""
    while i > 0 and not text.breaks(i) and text.low[i - 1] in words.FAMILIES:
        i -= 1
    return not text.breaks(i) and text.low[i - 1] in ("a", "an")


def _plain_heads(text: _Text) -> Iterator[tuple[int, bool]]:
    """Where a determiner (or, without any, the caption's beginning), known attributes and a single other word make a noun phrase.

    With each place, whether the determiner is "a" or "an".
    """
    starts = [i + 1 for i, word in enumerate(text.low) if word in words.DETERMINERS]
    for start in starts or [0]:
        end = start if start and text.breaks(start) else text.phrase(start)
        named = end + 1 < len(text) and words.past(text.low[end]) and words.content(text.low[end + 1])  # "a bare chested man"
        if end > start and not named and all(word in words.FAMILIES for word in text.low[start : end - 1]):
            yield end - 1, start > 0 and text.low[start - 1] in ("a", "an")


def _nameable(word: str) -> bool:
    """Whether a word that heads a noun phrase can be drawn: letters, no attribute, and no part of the picture itself."""
    return word.isalpha() and word not in words.FAMILIES and word not in words.NO_NOUNS and words.stem(word) not in words.NO_NOUNS
