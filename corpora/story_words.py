"""The words of the stories, by what they can do.

A class is the unit of meaning here: anything in `toy` can be played with, anything in `wear` can
be put on, and a sentence asks for a class, never for a word. Inside a class all words are equally
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
        active alert brave busy caring cheerful curious dreamy earnest fearless funny good handy
        hopeful joyful lively loyal merry modest noble patient proud sensible sharp sincere
        strict sweet tidy tricky witty
    """,
    "hair": "black blond brown curly dark frizzy golden long messy red short straight wavy wild",
    "kin": """
        aunt brother cousin father grandfather grandmother mother neighbor nephew niece sister
        teacher uncle
    """,
    "job": """
        artist baker builder captain cook diver driver firefighter florist judge magician
        merchant musician painter plumber potter scientist shopkeeper soldier weaver
    """,
    "hobby": """
        acting baking climbing cooking dancing drawing fishing hiking juggling jumping painting
        riding rowing sailing singing skating sledding swimming whistling wrestling
    """,
    "body": "ankle arm back chin elbow finger foot hand heel hip knee leg shoulder thumb toe wrist",
    "how": """
        boldly briefly calmly coolly fast gaily happily keenly lightly loudly merrily politely
        quietly rudely silently slowly solemnly sternly tenderly wearily
    """,
    "glad": """
        brave calm cheery content glad great happy jolly lucky pleased proud relieved safe well
    """,
    "wow": "Aha Gosh Great Hey Hooray Look Oh Wow Yes Yippee",
    "alas": "Alas Bother Help Ouch Oops Ugh",
    "game": """
        badminton baseball basketball bingo bowling cards charades chess cricket croquet
        dominoes football golf hockey leapfrog marbles soccer softball tag tennis
    """,
    "topic": """
        comets dragons fairies fire friends glaciers heroes ice jungles magic money mummies
        pirates quests robots school sleep spies storms time unicorns war
    """,
    "country": """
        Africa Alaska Argentina Belgium Canada China Denmark England France Greece India Italy
        Kenya Morocco Norway Poland Russia Spain Thailand Vietnam
    """,
    # ---------------------------------------------------------------- time, sky and numbers
    "few": "two three four five six seven eight nine",
    "start": "five six seven eight",
    "step": "two three four",
    "bite": "two three",
    "weekday": "Friday Monday Saturday Sunday Thursday Tuesday Wednesday",
    "warm_month": "April August July June May September",
    "cold_month": "December February January November",
    "hour": "five six seven eight nine ten",
    "fair": "beautiful bright clear cloudless fine glorious lovely mild pleasant sunny warm",
    "foul": "chilly cold cool dark dreary drizzly dull gray rainy soggy stormy wet",
    "frosty": "bitter crisp freezing frosty icy snowy white wintry",
    "day": "afternoon day evening morning",
    "sort": """
        busy fine funny glad grand happy jolly long lovely lucky merry odd perfect special
        splendid strange sunny sweet tiring wild
    """,
    # ---------------------------------------------------------------- looks
    "color": """
        amber beige black blue brown cream crimson gray green indigo maroon mauve orange pink
        red scarlet silver turquoise violet white
    """,
    "quality": """
        ancient bent bold broad charming clean costly crisp dainty dark dim dry elegant faded
        fancy flat funny glossy greasy handy jagged leaky long low massive mighty narrow nice
        odd padded posh puny ragged rich round rusty shiny simple slim smooth sparkly spiral
        stained striped superb thin tough unique warm wide
    """,
    "material": """
        bamboo brass canvas clay copper felt glass gold ivory leather marble metal paper rubber
        silk stone straw tin wax wood
    """,
    "mood": """
        angry bashful bossy busy clever cute fat fussy giant grumpy hungry jumpy lean lost mean
        muddy nimble perky quick sad shy skinny slow spotted striped tame thin vain wet wild
    """,
    "taste": """
        baked bland burnt chilled cold creamy crunchy fine fried greasy grilled juicy minced
        moist pickled rich roast sliced sour steamed stuffed tangy tasty toasted
    """,
    # ---------------------------------------------------------------- living things
    "beast": """
        alpaca bat buffalo cat chipmunk deer elephant fox goat hare horse jaguar kitten lemur
        llama mole mouse ox pig porcupine rabbit rat sheep sloth walrus wombat
    """,
    "bird": """
        blackbird canary cockatoo cuckoo duck falcon goose hawk heron kingfisher nightingale owl
        peacock penguin pigeon robin sparrow swallow toucan vulture
    """,
    "bug": """
        ant bee beetle bumblebee butterfly centipede cricket dragonfly firefly fly hornet
        ladybug locust mantis mosquito slug snail spider termite wasp
    """,
    "swimmer": """
        carp clam crab dolphin frog jellyfish lobster minnow octopus oyster salmon seahorse
        shark shrimp squid starfish toad trout tuna turtle
    """,
    "pal": "cat dog donkey duck goat goose hen horse kitten lamb pig pony puppy rabbit sheep",
    "flower": """
        begonia bluebell buttercup crocus daffodil dandelion geranium hyacinth jasmine lavender
        lily lotus marigold pansy peony poppy primrose rose sunflower tulip
    """,
    "tree": """
        alder ash aspen beech cedar chestnut cypress elm hawthorn hazel holly juniper oak palm
        pine poplar spruce sycamore walnut willow
    """,
    "cry": """
        bee_buzzed bull_bellowed cat_meowed chick_cheeped cricket_chirped crow_cawed dog_barked
        dove_cooed duck_quacked frog_croaked hen_clucked horse_neighed lion_roared
        mouse_squeaked pig_grunted puppy_yapped rooster_crowed snake_hissed sparrow_tweeted
        turkey_gobbled
    """,
    # ---------------------------------------------------------------- food
    "fruit": """
        apple apricot banana blackberry cherry cranberry date grape grapefruit kiwi lime mango
        nectarine olive papaya pear pineapple pomegranate raisin strawberry
    """,
    "vegetable": """
        artichoke bean beet cabbage carrot cauliflower cucumber eggplant leek lentil onion
        parsnip pea pepper potato pumpkin radish tomato turnip yam
    """,
    "dish": """
        bacon bread broth casserole cheese chili corn custard fudge ham jelly macaroni oatmeal
        pie popcorn pudding rice sausage spaghetti stew
    """,
    "snack": """
        bagel biscuit bun burger cookie cracker cupcake donut egg lollipop nugget omelet pastry
        peanut pretzel roll scone taco toffee waffle
    """,
    "drink": """
        cider cocoa coffee cola juice lemonade milk mint_tea nectar punch soda syrup tea water
    """,
    # ---------------------------------------------------------------- things
    "toy": """
        abacus balloon boomerang doll drum football hoop kaleidoscope marble model_train
        music_box parachute puppet racket robot sailboat skateboard sled spinning_top
        stuffed_bear telescope tricycle unicycle whistle
    """,
    "wear": """
        apron bandanna belt blouse bow_tie cap cardigan coat costume gown helmet jacket kimono
        kilt necktie overcoat raincoat robe scarf shirt sombrero sweater turban veil
    """,
    "gem": """
        acorn badge bell button compass diamond feather fossil horseshoe key magnet medal nugget
        pearl pendant ruby scroll stamp ticket trinket
    """,
    "house": """
        armchair bathtub blanket bowl bucket carpet chest cradle cupboard desk fork hammock jug
        ladle mattress napkin piano plate radio shelf sponge suitcase teapot toaster trunk vase
    """,
    "tool": """
        anchor barrel chain crowbar flashlight hoe hose lever needle paintbrush pitchfork pump
        rope saw shovel spade tent toolbox trowel wheelbarrow
    """,
    "instrument": """
        accordion banjo bassoon bugle clarinet cymbal fiddle gong harmonica harp lute mandolin
        organ recorder saxophone triangle tuba ukulele viola violin
    """,
    "vehicle": """
        airplane ambulance balloon cab canoe cart ferry helicopter kayak limousine motorcycle
        raft rowboat sleigh speedboat tractor train tram truck van
    """,
    "ride": "bicycle bus cab carriage scooter sleigh taxi train tram trolley van wagon",
    "find": """
        bone branch brick cone leaf log nest nut pine_cone puddle rock root shell shrub stem
        stick stump thorn twig vine
    """,
    # ---------------------------------------------------------------- places
    "wild": """
        bog canyon cave clearing cliff desert forest glade gorge grove hilltop jungle meadow
        moor mountain prairie ridge valley volcano wilderness
    """,
    "water": """
        bay beach brook canal creek dock fountain harbor lagoon lake lighthouse marina pond pool
        reservoir river seashore spring stream swamp
    """,
    "town": """
        airport bakery bookshop castle chapel cinema factory grocery hospital library monastery
        palace pharmacy playground school square station temple town_hall university
    """,
    "farm": """
        barn barnyard beehive chicken_coop cornfield dairy farm farmyard field garden haystack
        mill orchard paddock pasture plantation ranch stable vineyard wheat_field
    """,
    "home": """
        attic basement bathroom bedroom cellar den dining_room garage hallway kitchen laundry
        library living_room nursery pantry parlor playroom porch study workshop
    """,
    "dwelling": """
        apartment bungalow cabin castle chalet cottage farmhouse flat hut igloo mansion
        shack tent tower treehouse villa
    """,
    "spot": """
        arch bench bridge bush ditch fence footpath gate hole lamppost mound path post ramp shed
        signpost swing tree tunnel wall
    """,
    "by": "behind beside by close_to in_front_of near next_to under",
}

# Classes made of classes: what can be looked at is wider than what can be played with.
UNIONS = {
    "look": "color quality",
    "animal": "beast bird bug swimmer",
    "object": "toy wear gem house tool instrument",
    "food": "fruit snack vegetable",
}


def word_classes() -> dict[str, tuple[str, ...]]:
    """Every class by name, each word once and in a fixed order."""
    classes = {name: _class(words) for name, words in CLASSES.items()}
    for name, parts in UNIONS.items():
        members = [word for part in parts.split() for word in classes[part]]
        classes[name] = tuple(dict.fromkeys(members))
    return classes


IRREGULAR_PLURALS = {
    "bison": "bison", "deer": "deer", "elk": "elk", "foot": "feet", "goose": "geese",
    "jellyfish": "jellyfish", "knife": "knives", "leaf": "leaves", "moose": "moose",
    "mouse": "mice", "ox": "oxen", "salmon": "salmon", "scarf": "scarves", "sheep": "sheep",
    "shelf": "shelves", "shrimp": "shrimp", "squid": "squid", "starfish": "starfish",
    "trout": "trout", "tuna": "tuna", "wolf": "wolves",
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
