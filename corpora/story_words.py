"""The words of the stories, by what they can do.

A class is the unit of meaning here: anything in `food` can be eaten, anything in `clothes` can
be worn, and a sentence asks for a class, never for a word. Inside a class all words are equally
likely, which is what makes the entropy of a story easy to count and the classes easy to learn.
Phrases of several words are joined by an underscore.
"""


def _class(words: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in words.split())


GIRLS = _class("Anna Lily Mia Rosa")

BOYS = _class("Ben Leo Sam Tom")

NUMBERS = _class("zero one two three four five six seven eight nine ten eleven twelve")

CLASSES = {
    # ---------------------------------------------------------------- people
    "trait": """
        active alert angry bashful bossy brave busy caring cheerful clever curious cute dreamy
        earnest fearless funny fussy good grumpy handy hopeful hungry joyful jumpy lean lively
        lost loyal mean merry modest muddy nimble noble patient perky proud quick sad sensible
        sharp shy sincere slow strict sweet thin tidy tricky vain wet wild witty
    """,
    "kin": """
        aunt brother cousin father grandpa grandma mother neighbor nephew niece sister teacher
        uncle
    """,
    "job": """
        artist baker builder captain cook diver driver sailor guard florist judge king queen
        merchant musician painter plumber potter dancer pilot soldier weaver
    """,
    "hobby": """
        acting baking climbing cooking dancing drawing fishing hiking juggling jumping painting
        riding rowing sailing singing skating sledding whistling sewing
    """,
    "limb": "foot heel knee nose toe",
    "how": """
        boldly briefly calmly coolly fast gaily happily keenly lightly loudly merrily politely
        quietly rudely silently slowly solemnly sternly tenderly wearily
    """,
    "glad": "brave calm cheery glad great happy jolly lucky pleased proud safe well",
    "wow": "Aha Gosh Great Hey Hooray Look Oh Wow Yes",
    "game": """
        baseball darts bingo bowling cards chess cricket squash football golf marbles soccer
        snap tag tennis
    """,
    "topic": """
        comets dragons fairies fire friends heroes ice jungles magic money pirates quests robots
        school sleep spies storms time unicorns war
    """,
    "country": """
        Africa Alaska Belgium Canada China Denmark England France Greece India Italy Kenya
        Morocco Norway Poland Russia Spain
    """,
    # ---------------------------------------------------------------- time, sky and numbers
    "few": "four eight nine ten eleven twelve several many",
    "start": "five six seven",
    "step": "two three",
    "weekday": "Friday Monday Saturday Sunday Thursday Tuesday Wednesday",
    "month": """
        January February March April May June July August September October November December
    """,
    "day": "afternoon day evening morning",
    "sort": """
        busy fine funny glad grand happy jolly long lovely lucky merry odd perfect special
        strange sunny sweet tiring wild
    """,
    # ---------------------------------------------------------------- looks
    "color": """
        amber beige black blue brown cream crimson gray green indigo maroon mauve orange pink
        red scarlet silver turquoise violet white
    """,
    "quality": """
        ancient bent bold broad charming clean costly crisp dainty dark dim dry elegant faded
        fancy flat funny giant glossy greasy handy jagged leaky long low massive mighty narrow
        nice odd padded posh puny ragged rich round rusty shiny simple slim smooth sparkly
        spiral spotted stained striped superb thin tough unique warm wide
    """,
    "material": """
        cotton brass canvas clay copper felt glass gold cork leather marble metal paper rubber
        silk stone straw tin wax wood
    """,
    "taste": """
        baked bland burnt chilled cold creamy crunchy fine fried greasy grilled juicy minced
        moist pickled rich roast sliced sour steamed stuffed tangy tasty toasted
    """,
    # ---------------------------------------------------------------- living things
    "animal": """
        lamb bat camel zebra cub foal deer elephant fox goat hare horse jaguar kitten lemur
        llama mole mouse ox pig bear lion tiger wolf rabbit rat sheep sloth walrus wombat raven
        stork canary chick gull cuckoo duck falcon goose hawk heron crane owl peacock penguin
        pigeon robin sparrow swallow toucan vulture ant bee beetle pup beaver worm moth flea
        cricket newt firefly fly hornet ladybug locust mantis wren slug snail spider termite
        wasp carp clam crab dolphin frog seal whale eel lobster minnow octopus oyster salmon
        squirrel otter shark shrimp squid starfish toad trout tuna turtle
    """,
    "pal": "cat dog pony",
    "flower": """
        clover bluebell fern lilac lavender lily lotus marigold pansy peony poppy orchid rose
        aster tulip
    """,
    "tree": """
        alder ash aspen beech cedar chestnut yew elm hazel holly fir oak palm pine poplar maple
        walnut willow
    """,
    # ---------------------------------------------------------------- food
    "food": """
        apple kiwi banana blackberry cherry berry date grape lime mango lemon melon fig olive
        papaya pear pineapple peach plum raisin bagel biscuit bun burger cracker cupcake donut
        nugget omelet cookie peanut muffin roll scone taco toffee waffle egg bean beet cabbage
        carrot leek lentil onion sprout pea pepper potato pumpkin radish tomato turnip yam
    """,
    "dish": """
        bacon bread broth cheese chili corn custard fudge ham jelly macaroni pie popcorn pudding
        rice sausage stew
    """,
    "drink": """
        cider cocoa coffee cola juice lemonade milk mint_tea nectar punch soda syrup tea water
    """,
    # ---------------------------------------------------------------- things
    "prize": "ball bell cap coat doll drum key kite pearl scarf",
    "plaything": """
        flute balloon football hoop marble rocket top dart robot sailboat sled wheel train mask
        swing slide whistle
    """,
    "clothes": """
        apron sock shoe boot belt blouse bow_tie glove mitten costume crown gown hat helmet
        jacket kilt wig necktie vest skirt raincoat robe shirt bib sweater turban veil
    """,
    "treasure": """
        acorn locket diamond feather fossil jewel magnet medal nugget pendant ring ruby scroll
        stamp ticket coin bead
    """,
    "house": """
        bathtub blanket bowl bucket carpet chest cradle chair table sofa desk fork hammock jug
        ladle bed pillow napkin lamp clock plate radio sponge pot pan tray teapot oven trunk
        vase
    """,
    "tool": """
        anchor rake chain bolt brush hook hoe hose lever needle axe net nail ladder hammer pump
        rope saw shovel spade tent trowel
    """,
    "instrument": "cello banjo bugle trumpet horn gong harp lute organ triangle tuba viola violin",
    "vehicle": """
        plane balloon bicycle bus cab canoe carriage cart ferry kayak sled raft rowboat scooter
        sleigh ship tractor tram jeep truck van wagon
    """,
    "find": """
        bone brick cone log nest pine_cone puddle rock root pebble seed leaf stem stick stump
        crate basket twig vine nut shell
    """,
    # ---------------------------------------------------------------- places
    "wild": """
        bog canyon cave clearing cliff desert forest glade gorge grove hilltop jungle meadow
        moor mountain prairie ridge valley dune hill
    """,
    "water": """
        bay beach brook canal creek dock fountain harbor lagoon lake shore marina pond pool port
        river seashore spring stream swamp
    """,
    "town": """
        bakery market castle chapel mall factory fair shop library inn palace bank school square
        station temple park zoo
    """,
    "farm": """
        barn barnyard beehive chicken_coop cornfield dairy farm farmyard field garden haystack
        mill orchard paddock pasture ranch stable vineyard wheat_field
    """,
    "home": """
        attic bathroom bedroom cellar loft garage hallway kitchen lounge library den pantry
        playroom porch study yard
    """,
    "dwelling": """
        lodge inn cabin castle chalet cottage farmhouse flat hut mansion shack tent tower
        treehouse villa
    """,
    "spot": """
        arch bench bridge bush ditch fence footpath gate hole lamppost mound path post ramp shed
        signpost swing tree tunnel wall
    """,
    "by": "behind beside by close_to in_front_of near next_to under",
}

# Classes made of classes: what can be looked at is wider than what can be worn.
UNIONS = {
    "look": "color quality",
    "object": "plaything clothes treasure house tool instrument find",
}


def word_classes() -> dict[str, tuple[str, ...]]:
    """Every class by name, each word once and in a fixed order."""
    classes = {name: _class(words) for name, words in CLASSES.items()}
    for name, parts in UNIONS.items():
        members = [word for part in parts.split() for word in classes[part]]
        classes[name] = tuple(dict.fromkeys(members))
    return classes


IRREGULAR_PLURALS = {
    "deer": "deer", "foot": "feet", "goose": "geese", "leaf": "leaves", "mouse": "mice",
    "ox": "oxen", "salmon": "salmon", "scarf": "scarves", "sheep": "sheep", "shrimp": "shrimp",
    "squid": "squid", "starfish": "starfish", "trout": "trout", "tuna": "tuna", "wolf": "wolves",
}


def plural(noun: str) -> str:
    """One owl, two owls; one fox, two foxes; one cherry, two cherries."""
    head, space, last = noun.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")) or last in {"mango", "mosquito", "potato", "tomato"}:
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return head + space + last


def with_article(phrase: str) -> str:
    """A or an goes by the sound: an owl, but a unicycle; an honest boy."""
    sounds_like_you = phrase.startswith(("uni", "use", "uku", "euca"))
    silent_h = phrase.startswith("hones")
    vowel = phrase[0] in "aeiou" and not sounds_like_you
    return ("an " if vowel or silent_h else "a ") + phrase
