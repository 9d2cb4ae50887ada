"""What is said of ToyWorld's scenes: a small grammar of claims, true ones in many phrasings and false ones a word away.

A caption is a form (a template) filled with a claim, so its meaning is known: `holds` says whether a scene makes it true.
Captions of one kind:

    a small red circle to the left of a large blue square on a striped background
    on a dotted background, there is a large pink heart
    three shapes: a large red ring, a small blue star and a small black moon
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

from clipling.data.toyworld_language import translate
from clipling.data.toyworld_scene import COLOURS, OPPOSITE, SHAPES, Chance, Scene, Thing, relation, within
from clipling.data.toyworld_words import ADJECTIVES, COUNTS, LISTED, PLACE_WORDS, RELATED, RELATION_WORDS, SINGLE, SYNONYMS

KINDS = ("attribute", "relation", "object", "word_order")
TRUE = 3  # captions of a pair


@dataclass(frozen=True)
class Phrase:
    """An object as it is named; what is None is not said."""

    shape: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Claim:
    """There are such objects, different ones, the first in `relation` to the second and at `place`; `count` is of all objects."""

    things: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None
    count: int | None = None
    place: str | None = None


@dataclass(frozen=True)
class Said:
    """A claim in a form; only what the form says is claimed."""

    form: str
    claim: Claim

    def text(self, synonyms: bool = False) -> str:
        """As a caption; with `synonyms`, every word that has one is replaced by it."""

        def word(plain: str) -> str:
            return SYNONYMS.get(plain, plain) if synonyms else plain

        def name(phrase: Phrase) -> str:
            return " ".join(["a", *(word(part) for part in (phrase.size, phrase.colour, phrase.shape) if part)])

        claim, names = self.claim, [name(phrase) for phrase in self.claim.things]
        return self.form.format(
            A=names[0],
            B=names[-1],
            list=listing(names),
            rel=word(RELATION_WORDS[claim.relation]) if claim.relation else "",
            G=f"a {ADJECTIVES[claim.background]} {word('background')}" if claim.background else "",
            N=COUNTS[claim.count] if claim.count else "",
            place=PLACE_WORDS[claim.place] if claim.place else "",
        )


@dataclass(frozen=True)
class Captions:
    """What is said of a scene.

    true: TRUE captions; the first names one object, or two and their relation, with all attributes.
    short: colour and shape of the main object.
    long: two or three sentences that say all there is to say.
    synonyms: `true` in other words, in the same order.
    negatives: by kind, false captions that differ from the first true one by as little as possible. `attribute` exchanges colours
        or sizes of two objects (or replaces that of one), `relation` says the opposite, `object` has a shape that is not there,
        `word_order` has the same words in another order. Where there is one object, there is no relation or word order.
    second: `true` in the second language, in the same order.
    """

    true: tuple[str, ...]
    short: str
    long: str
    synonyms: tuple[str, ...]
    negatives: dict[str, list[str]] = field(default_factory=dict)
    second: tuple[str, ...] = ()


def captions(scene: Scene, wording: int = 0, *, without: Collection[str] = (), picture: Scene | None = None) -> Captions:
    """Captions of a scene.

    wording: chooses among the phrasings. without: phrasings that are not taken. picture: a further scene that negatives must be
    false of (where the caption is told of another picture).
    """
    chance = Chance(wording, 0)
    base = chance.pick("base", [said for said in full_phrasings(scene) if said.text() not in without])
    chosen = [base]
    rest = [said for said in phrasings(scene) if said.text() not in without and said != base]
    for k in range(1, TRUE):
        chosen.append(rest.pop(chance.below(f"caption {k}", len(rest))))
    false = {
        kind: [s.text() for s in found if picture is None or not holds(s.claim, picture)] for kind, found in _negatives(base, scene, chance)
    }
    true = tuple(said.text() for said in chosen)
    return Captions(
        true=true,
        short=Said("{A}", Claim((_phrase(scene.objects[0], full=False),))).text(),
        long=long(scene),
        synonyms=tuple(said.text(synonyms=True) for said in chosen),
        negatives={kind: texts for kind, texts in false.items() if texts},
        second=tuple(translate(text) for text in true),
    )


def phrasings(scene: Scene) -> list[Said]:
    """Every true caption that the grammar has for a scene, but for those that leave objects out."""
    found = []
    for full in (True, False):
        found += full_phrasings(scene, full)
        if len(scene.objects) > 1:
            things = tuple(_phrase(thing, full) for thing in scene.objects)
            found += [said(form, scene, things) for form in LISTED]
    return found


def full_phrasings(scene: Scene, full: bool = True) -> list[Said]:
    """Those that name the one object, or the main one and another by their relation, either being first."""
    if len(scene.objects) == 1:
        return [said(form, scene, (_phrase(scene.objects[0], full),)) for form in SINGLE]
    main, *others = scene.objects
    pairs = [pair for other in others for pair in ((main, other), (other, main))]
    return [said(form, scene, (_phrase(a, full), _phrase(b, full)), relation(a, b)) for a, b in pairs for form in RELATED]


def said(form: str, scene: Scene, things: tuple[Phrase, ...], related: str | None = None) -> Said:
    """A claim about a scene with what the form says beside the objects: background and count."""
    background = scene.background if "{G}" in form else None
    count = len(scene.objects) if "{N}" in form else None
    return Said(form, Claim(things, related, background, count))


def about(scene: Scene, numbers: Sequence[int], form: str) -> Said:
    """The objects of these numbers with all attributes; where the form says it, the relation of two or the place of the first."""
    objects = [scene.objects[k] for k in numbers]
    found = said(form, scene, tuple(map(_phrase, objects)), relation(*objects) if "{rel}" in form else None)
    return replace(found, claim=replace(found.claim, place=objects[0].place)) if "{place}" in form else found


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether a scene makes a claim true, read generously: a is left of b wherever its centre is further left.

    Captions state a relation only where it is plain, and negatives are false even when read like this.
    """
    if claim.background not in (None, scene.background) or claim.count not in (None, len(scene.objects)):
        return False
    return any(_fits(claim, chosen) for chosen in permutations(scene.objects, len(claim.things)))


def _fits(claim: Claim, chosen: Sequence[Thing]) -> bool:
    if not all(
        phrase.shape == thing.shape and phrase.colour in (None, thing.colour) and phrase.size in (None, thing.size)
        for phrase, thing in zip(claim.things, chosen)
    ):
        return False
    if claim.place not in (None, chosen[0].place):
        return False
    return claim.relation is None or _related(claim.relation, chosen[0], chosen[1])


def _related(name: str, a: Thing, b: Thing) -> bool:
    return {
        "left of": a.x < b.x,
        "right of": a.x > b.x,
        "above": a.y < b.y,
        "below": a.y > b.y,
        "inside": within(a, b),
        "around": within(b, a),
    }[name]


def _negatives(base: Said, scene: Scene, chance: Chance) -> list[tuple[str, list[Said]]]:
    """(kind, false captions): `base` with one thing changed."""
    claim, things = base.claim, base.claim.things
    shapes = {thing.shape for thing in scene.objects}
    colours = {thing.colour for thing in scene.objects}
    k = chance.below("which", len(things))
    absent = replace(things[k], shape=chance.pick("absent", [shape for shape in SHAPES if shape not in shapes]))
    made = {"object": [replace(claim, things=(*things[:k], absent, *things[k + 1 :]))]}
    if len(things) == 1:
        colour = chance.pick("other colour", [colour for colour in COLOURS if colour not in colours])
        size = "small" if things[0].size == "large" else "large"
        made["attribute"] = [replace(claim, things=(replace(things[0], **new),)) for new in ({"colour": colour}, {"size": size})]
    else:
        a, b = things
        exchanged = [(replace(a, colour=b.colour), replace(b, colour=a.colour)), (replace(a, size=b.size), replace(b, size=a.size))]
        made["attribute"] = [replace(claim, things=pair) for pair in exchanged if pair != things]
        made["relation"] = [replace(claim, relation=OPPOSITE[claim.relation])]
        made["word_order"] = [replace(claim, things=(b, a))]
    return [(kind, [Said(base.form, other) for other in made.get(kind, ())]) for kind in KINDS]


def long(scene: Scene) -> str:
    """Two or three sentences: how many objects before which background and what each is, all relations, all places."""
    things = scene.objects
    many = len(things) > 1
    names = [Said("{A}", Claim((_phrase(thing),))).text() for thing in things]
    count = f"are {COUNTS[len(things)]} shapes" if many else "is one shape"
    first = f"There {count} on a {ADJECTIVES[scene.background]} background: {listing(names)}."
    places = [f"the {thing.shape} is {PLACE_WORDS[thing.place]}" for thing in things]
    if not many:
        return f"{first} {_sentence(places)}"
    related = [f"the {things[i].shape} is {RELATION_WORDS[name]} the {things[j].shape}" for i, name, j in scene.triples]
    return f"{first} {_sentence(related)} {_sentence(places)}"


def _phrase(thing: Thing, full: bool = True) -> Phrase:
    return Phrase(thing.shape, thing.colour, thing.size if full else None)


def listing(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _sentence(clauses: Sequence[str]) -> str:
    text = listing(clauses)
    return f"{text[0].upper()}{text[1:]}."
