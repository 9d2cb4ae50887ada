"""English word lists for rule-made hard negatives, and the small questions that the rules ask of a word.

The lists are what frequent caption words need, not a dictionary: a word that is in none of them is taken for a noun or a verb by where it
stands, and a rule that is not sure leaves the caption alone.
"""

from __future__ import annotations

import re
from functools import cache

WORD = re.compile(r"\w+(?:[-'’]\w+)*")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES = _set("a an the")
POSSESSIVES = _set("his her its their my our your")
PLURAL_COUNTS = _set("two three four five six seven eight nine ten several many some few these those both")
DETERMINERS = ARTICLES | POSSESSIVES | PLURAL_COUNTS | _set("one another this that each every")
PREPOSITIONS = _set(
    "on in at of with without by near beside besides under underneath beneath below above over behind inside outside into onto off from to "
    "toward towards through across along around between among against up down upon past out while during before after beyond within about "
    "like as for next front alongside atop amid"
)
OTHER_FUNCTION = _set(
    "and or but that which who whose where when while whilst than then so is are was were be been being am has have had do does did will "
    "would can could he she it they them him himself herself itself themselves someone something there here not no very all also other "
    "others s t together away back ahead apart left right"
)
FUNCTION = DETERMINERS | PREPOSITIONS | OTHER_FUNCTION
AUXILIARIES = _set("is are was were")

# Words of a symmetric relation: what stands left and right of them can change places and the caption stays true.
SYMMETRIC = _set("and or near beside with next to by alongside while")

ING_NOUNS = _set("building wedding ring king string swing wing railing ceiling painting clothing morning evening thing spring sling awning")
ED_NOUNS = _set("bed shed sled weed seed speed feed moped")
# What heads noun phrases and names a part, a place in the picture, an amount or the picture itself, or is mostly no noun: never drawn or
# replaced.
NO_NOUNS = _set(
    "front back top bottom side middle center centre edge end background foreground distance corner group couple bunch pair lot number "
    "row line series variety piece kind type set air camera picture photo photograph image view scene day night time way head hand face "
    "hair arm mouth eye leg foot feet body tongue neck shoulder tail tooth teeth stomach paw left right up jump run walk ride swim look "
    "trick play bite year young sun shade light dark blond blonde bare same urban rural steep first second third last whole male female "
    "asian item part area says looks overlooks match pose sunny snowy sandy grassy rocky muddy well show"
)

COLOURS = _set("red orange yellow green blue purple pink brown black white grey gray")
NEAR_COLOURS = (
    _set("grey gray silver white"),
    _set("grey gray black"),
    _set("red orange pink maroon crimson"),
    _set("orange yellow gold golden blond blonde tan brown beige"),
    _set("blue purple violet turquoise teal navy"),
    _set("pink purple violet lavender"),
    _set("green teal turquoise olive"),
    _set("black dark"),
    _set("white cream light"),
)
MATERIALS = _set("wooden metal plastic glass stone brick leather paper rubber concrete steel woollen cotton")
NEAR_MATERIALS = (_set("stone brick concrete rock cement"), _set("metal steel iron"), _set("plastic rubber"), _set("woollen cotton wool"))
COUNTED = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = frozenset(COUNTED)

_SMALL, _LARGE = ("small", "tiny", "little"), ("large", "big", "huge")
OPPOSITE_SIZES = dict.fromkeys(("big", "large", "huge", "giant", "enormous"), _SMALL)
OPPOSITE_SIZES |= dict.fromkeys(("small", "little", "tiny"), _LARGE)
OPPOSITE_SIZES |= {"tall": ("short",), "short": ("tall", "long"), "long": ("short",), "wide": ("narrow",), "narrow": ("wide",)}
OPPOSITE_SIZES |= {"thick": ("thin",), "thin": ("thick",), "deep": ("shallow",), "shallow": ("deep",), "fat": ("thin",)}
OPPOSITE_AGES = {"young": ("old", "elderly"), "old": ("young",), "elderly": ("young",), "older": ("younger",), "younger": ("older",)}
OPPOSITE_STATES = {"dark": ("light",), "wet": ("dry",), "dry": ("wet",), "open": ("closed",), "closed": ("open",), "empty": ("full",)}
OPPOSITE_STATES |= {"full": ("empty",), "clean": ("dirty",), "dirty": ("clean",), "happy": ("sad",), "sad": ("happy",)}

FAMILIES: dict[str, str] = dict.fromkeys(COLOURS, "colour")
FAMILIES |= dict.fromkeys(MATERIALS, "material") | dict.fromkeys(NUMBERS, "number")
FAMILIES |= dict.fromkeys(OPPOSITE_SIZES, "size") | dict.fromkeys(OPPOSITE_AGES, "age") | dict.fromkeys(OPPOSITE_STATES, "state")

# Relation words -> what takes their place; the longest that fits is taken.
OPPOSITES: dict[tuple[str, ...], tuple[str, ...]] = {
    tuple(key.split()): value
    for key, value in {
        "left": ("right",),
        "right": ("left",),
        "in front of": ("behind",),
        "behind": ("in front of",),
        "on top of": ("underneath", "below"),
        "on": ("under", "beneath"),
        "under": ("on", "over", "above"),
        "underneath": ("on top of", "above"),
        "beneath": ("on top of", "above"),
        "above": ("below", "under"),
        "below": ("above", "over"),
        "over": ("under", "below"),
        "inside": ("outside",),
        "inside of": ("outside of",),
        "outside": ("inside",),
        "outside of": ("inside of",),
        "indoors": ("outdoors",),
        "outdoors": ("indoors",),
        "into": ("out of",),
        "out of": ("into",),
        "onto": ("off",),
        "off": ("onto",),
        "off of": ("onto",),
        "up": ("down",),
        "down": ("up",),
        "upwards": ("downwards",),
        "downwards": ("upwards",),
        "leftwards": ("rightwards",),
        "rightwards": ("leftwards",),
        "toward": ("away from",),
        "towards": ("away from",),
        "away from": ("towards",),
        "with": ("without",),
        "without": ("with",),
        "near": ("far from",),
        "next to": ("far from",),
        "beside": ("far from",),
        "far from": ("near", "next to"),
    }.items()
}
ACTIONS: dict[str, str] = {
    "sitting": "standing",
    "standing": "sitting",
    "sits": "stands",
    "stands": "sits",
    "pushing": "pulling",
    "pulling": "pushing",
    "pushes": "pulls",
    "pulls": "pushes",
    "throwing": "catching",
    "catching": "throwing",
    "throws": "catches",
    "catches": "throws",
    "opening": "closing",
    "closing": "opening",
    "entering": "leaving",
    "leaving": "entering",
    "enters": "leaves",
    "laughing": "crying",
    "smiling": "frowning",
    "crying": "laughing",
    "sleeping": "running",
}
BEFORE_SIDE = _set("the on to his her its their my far upper lower facing pointing turning")  # "on the left", not "a man left the house"
# Verbs with a particle, and fixed phrases, whose preposition says nothing of where a thing is.
NOT_AFTER = {
    "up": _set("close dressed made set lined picks picking picked dress dresses warming hold holds holding"),
    "down": _set("upside"),
    "over": _set("all look looks looking leaning"),
    "on": _set("puts put putting going hold holding holds trying tries turn turns turning based try from has have had chew chews chewing"),
    "with": _set("playing plays play filled covered along wrapped decorated dressed surrounded lined adorned painted together loaded up"),
}
NOT_BEFORE = {
    "up": _set("close in to for with on"),
    "down": _set("in to on with"),
    "on": _set("top fire either both purpose each one all"),
    "over": _set("there to here"),
    "off": _set("road roading"),
    "near": _set("by"),
    "inside": _set("out"),
}
TIMES = _set("day days morning afternoon evening night sunday saturday weekend vacation holiday trip walk way phone cellphone")

# Relations that do not hold the other way round.
ONE_WAY = _set("on in inside under underneath beneath below above over behind into onto through atop")
ONE_WAY |= _set("riding wearing holding carrying eating chasing pushing pulling watching throwing catching kicking hitting feeding")
ONE_WAY |= _set("climbing biting licking following leading driving drinking reading")
FINITE = _set("rides wears holds carries eats chases pushes pulls watches throws catches kicks hits feeds climbs bites licks follows leads")
FINITE |= _set("drives drinks reads")

_PERSON = (
    "person people child kid adult baby toddler infant teen teenager player skater rider biker cyclist bicyclist motorcyclist surfer skier "
    "climber runner dancer athlete family crowd friend team figure worker performer snowboarder skateboarder wakeboarder swimmer hiker "
    "passenger musician singer spectator student officer policeman fireman fisherman cowboy goalie boxer wrestler opponent driver someone "
    "somebody they"
)
_ANIMAL = "animal pet creature"
# Nouns of one family may name one thing, or be seen together unsaid: they never stand in for each other. A person without a known sex is in
# the first two. Pronouns are there for what they tell of a picture.
KIN: tuple[frozenset[str], ...] = tuple(
    map(
        _set,
        (
            f"man guy gentleman boy father dad son brother king groom he him his himself {_PERSON}",
            f"woman lady girl mother mom daughter sister queen bride she her herself {_PERSON}",
            f"dog puppy pup hound greyhound terrier poodle retriever labrador collie beagle shepherd bulldog dalmatian mutt {_ANIMAL}",
            f"cat kitten {_ANIMAL}",
            f"horse pony donkey {_ANIMAL}",
            f"cow bull calf sheep goat {_ANIMAL}",
            f"bird seagull duck goose pigeon chicken {_ANIMAL}",
            "water ocean sea lake river pond pool wave beach shore stream puddle fountain surf creek waterfall boat seashore tide",
            "field grass lawn yard park meadow ground dirt garden hill hay backyard path floor pasture sport hillside",
            "beach sand shore ocean sea coast desert seashore",
            "street road sidewalk path pavement city trail track lane car town building ground",
            "mountain hill cliff rock peak slope snow ice boulder stone wall sky hillside mountaintop",
            "forest wood woods tree branch log leaf bush stick plant",
            "ball football basketball baseball toy game tennis soccer volleyball frisbee disc",
            "game match race competition event sport ball",
            "shirt t-shirt tshirt top jersey sweater jacket coat vest uniform suit outfit clothes clothing dress costume gear hoodie robe "
            "swimsuit bikini wetsuit",
            "shorts pant jean trouser trunks clothes clothing outfit skirt uniform costume",
            "hat cap helmet visor bonnet hood headband gear hardhat",
            "glasses sunglasses goggles",
            "bike bicycle motorcycle motorbike vehicle cycle dirtbike scooter atv",
            "car truck vehicle van taxi bus jeep automobile",
            "boat canoe kayak ship raft vessel sailboat rowboat",
            "chair bench seat couch sofa stool table",
            "building house wall home store shop structure city room",
            "ramp pipe rail railing skateboard board park handrail",
            "stick branch pole bat racket",
            "food meal pizza cake sandwich ice fruit snack drink",
            "drink cup glass bottle beer",
            "sign graffiti poster mural painting wall",
        ),
    )
)
ANIMATE = frozenset(range(7))  # families whose members act
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "wolves": "wolf",
    "leaves": "leaf",
    "teeth": "tooth",
}
_IRREGULAR |= {"knives": "knife", "buses": "bus", "sheep": "sheep", "says": "says", "overlooks": "overlooks", "his": "his", "lens": "lens"}
_SILENT_H = re.compile(r"hour|honest|hono|heir")
_CONSONANT_SOUND = re.compile(r"uni(?![dmn])|us[eau]|uk|ut[ie]|eu|ewe|one(?![a-z])|once|u-|ubi")
_VOWEL_LETTERS = re.compile(r"x-|suv|mp3|8|1[18](?!\d)")


@cache
def stem(word: str) -> str:
    """The singular of a lower-case word, near enough to tell that two words are one noun."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("men") and looks_plural(word):
        return word[:-3] + "man"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if looks_plural(word) else word


@cache
def looks_plural(word: str) -> bool:
    """Whether a lower-case noun has the form of a plural."""
    if word in _IRREGULAR:
        return _IRREGULAR[word] != word
    if word.endswith("men"):
        return word not in ("omen", "specimen", "abdomen", "regimen")
    return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as"))


@cache
def kin(word: str) -> frozenset[int]:
    """The numbers of the families that a lower-case noun is in."""
    one = stem(word)
    return frozenset(n for n, family in enumerate(KIN) if word in family or one in family)


def article(word: str) -> str:
    """`a` or `an`, by the sound that a word begins with, as far as its letters tell."""
    low = word.casefold()
    if _SILENT_H.match(low) or _VOWEL_LETTERS.match(low):
        return "an"
    return "an" if low[:1] in tuple("aeiou") and not _CONSONANT_SOUND.match(low) else "a"


def past(word: str) -> bool:
    """Whether a lower-case word has the form of a past participle."""
    return word.endswith("ed") and len(word) > 3 and word not in ED_NOUNS


def verbal(word: str) -> bool:
    """Whether a lower-case word has the form of a participle."""
    return past(word) or (word.endswith("ing") and len(word) > 4 and word not in ING_NOUNS)


def content(word: str) -> bool:
    """Whether a lower-case word can belong to a noun phrase behind its determiner."""
    return word not in FUNCTION and not verbal(word)


def other_attributes(word: str) -> tuple[str, ...]:
    """What can take the place of an attribute and makes another claim: of its own family, its opposite where it has one."""
    for opposites in (OPPOSITE_SIZES, OPPOSITE_AGES, OPPOSITE_STATES):
        if word in opposites:
            return opposites[word]
    if word in NUMBERS:
        at = COUNTED.index(word)  # a number near by: "ten dogs" for two would be told by its oddity alone
        return (*COUNTED[max(0, at - 2) : at], *COUNTED[at + 1 : at + 3])
    words, near = (COLOURS, NEAR_COLOURS) if word in COLOURS else (MATERIALS, NEAR_MATERIALS)
    alike = {word}.union(*(few for few in near if word in few))
    return tuple(sorted(words - alike - {"gray"}))
