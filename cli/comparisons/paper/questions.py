"""Questions about scenes and their answers, of the three kinds that LLaVA's data have."""

import pictures
from scenes import PLACES

ZERO = len(pictures.CLOTHES)
NUMBERS = pictures.NUMBERS + "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen".split()
NUMBERS += "nineteen twenty".split() + [f"twenty-{number}" for number in pictures.NUMBERS[1:]] + ["thirty"]
GROUPS = {"shoe": ["sandal", "sneaker", "boot"], "digit": pictures.NUMBERS, "bag": ["bag"]}
WARM = ["pullover", "coat", "boot"]


def noun(kind):
    name = pictures.NAMES[kind]
    article = {"trousers": "", "eight": "an "}.get(name, "a ")
    return article + name


def sentence(text):
    return text[0].upper() + text[1:] + "."


def group(kind):
    return next((group for group, names in GROUPS.items() if pictures.NAMES[kind] in names), "garment")


def what(scene, chance):
    place = chance.randrange(4)
    return f"What is at the {PLACES[place]}?", sentence(noun(scene.kinds[place]))


def where(scene, chance):
    place = chance.randrange(4)
    return f"Where is the {pictures.NAMES[scene.kinds[place]]}?", sentence(PLACES[place])


def how_many(scene, _):
    return "How many digits are there?", sentence(NUMBERS[sum(kind >= ZERO for kind in scene.kinds)])


def same(scene, chance):
    one, two = chance.sample(range(4), 2)
    alike = group(scene.kinds[one]) == group(scene.kinds[two])
    return f"Are the {PLACES[one]} and the {PLACES[two]} alike?", "Yes." if alike else "No."


def total(scene, _):
    return "What is the sum of the digits?", sentence(NUMBERS[sum(kind - ZERO for kind in scene.kinds if kind >= ZERO)])


def warm(scene, _):
    there = any(pictures.NAMES[kind] in WARM for kind in scene.kinds)
    return "Is something for winter there?", "Yes." if there else "No."


def describe(scene, _):
    one, two, three, four = map(noun, scene.kinds)
    return "Describe the picture.", sentence(f"{one} and {two} are above {three} and {four}")


# The turns of one row of each kind of data.
KINDS = {"conversation": [what, where, how_many], "detail": [describe], "reasoning": [same, total, warm]}
ASKED = KINDS["conversation"] + KINDS["reasoning"]


def turns(kind, scene, chance):
    """The row of a scene: [(question, answer), …]."""
    makers = list(KINDS[kind])
    chance.shuffle(makers)
    return [maker(scene, chance) for maker in makers]
