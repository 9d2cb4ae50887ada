"""Words of captions with others that say the same of a picture, and where they do not.

See rewrite.py; its VERSION counts changes of this file too.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OTHER_WORDS = {
    "picture": "image", "photo": "photograph", "man": "guy", "woman": "lady", "child": "kid", "children": "kids",
    "boy": "lad", "girl": "lass", "people": "persons", "dog": "canine", "dogs": "canines", "puppy": "pup",
    "bike": "bicycle", "bicycle": "bike", "street": "road", "road": "street", "ocean": "sea", "big": "large", "large": "big",
    "little": "small", "small": "little", "running": "racing", "runs": "races", "jumping": "leaping", "jumps": "leaps",
    "walking": "strolling", "walks": "strolls", "holding": "carrying", "holds": "carries", "looking": "gazing", "looks": "gazes",
    "near": "close to", "beside": "next to", "grass": "lawn", "rock": "stone", "rocks": "stones", "shirt": "top",
    "wearing": "dressed in", "wears": "has on", "watching": "observing", "crowd": "group of people", "several": "a few",
    "standing": "posing", "forest": "woods", "woods": "forest", "car": "automobile", "boat": "vessel",
    "climbing": "scaling", "climbs": "scales", "playing": "having fun", "plays": "has fun", "smiling": "grinning",
    "smiles": "grins", "outside": "outdoors", "outdoors": "outside", "two": "a pair of", "snowy": "snow-covered",
}  # fmt: skip
# Where a place or a companion follows, a verb stands alone: `plays in the snow`, not `plays guitar`.
_PLACES = _words("in on at with near by under beside behind along through across together and while as outside outdoors")
_ARTICLES = _words("a an the some")
_THINGS = _ARTICLES | _words("his her their two")
# The word is replaced before these words, or where none follows at once.
ONLY_BEFORE = {
    "playing": _PLACES,
    "plays": _PLACES,
    "climbing": _ARTICLES,
    "climbs": _ARTICLES,
    "outside": _PLACES - {"by"},
    "outdoors": _PLACES,
    "looking": _words("at into out"),
    "looks": _words("at into out"),
    "watching": _ARTICLES,
    "holding": _THINGS,
    "holds": _THINGS,
}
# The word is kept before these: `a crowd of people`, `rock climbing`, `running water`, `and two are smiling`.
NOT_BEFORE = {
    "crowd": _words("of surfing"),
    "rock": _words("climbing climber climbers band concert music star"),
    "running": _words("water shoes shorts track race gear"),
    "walking": _words("stick path dog dogs"),
    "jumping": _words("rope"),
    "runs": _words("races"),
    "street": _words("sign vendor performer light band"),
    "picture": _words("frame book"),
    "photo": _words("booth shoot"),
    "two": _words(
        "of hundred thousand are is were have has and or who which with in on at by from other others look sit stand run play walk"
    ),
    "several": _words("of"),
    "little": _words("bit league"),
    "grass": _words("skirt"),
    "dog": _words("sled food house"),
    "car": _words("seat wash"),
    "boy": _words("scout scouts"),
    "girl": _words("scout scouts"),
}
# These bring an article of their own, and want a word behind them.
AFTER_DETERMINERS = _words("two several")
DETERMINERS = _words(
    "a an the these those this that his her their its my our your all any some no each every other first last next only another "
    "one two three four five six seven eight nine ten twenty thirty forty fifty hundred number page"
)
