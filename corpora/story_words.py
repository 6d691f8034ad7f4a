"""The words of the stories, by what they can do.

A class is the unit of meaning here: anything in `toy` can be played with, anything in `wear` can
be put on, and a sentence asks for a class, never for a word. Inside a class all words are equally
likely, which is what makes the entropy of a story easy to count and the classes easy to learn.
Phrases of several words are joined by an underscore.
"""


def _class(words: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in words.split())


GIRLS = _class("""
    Ada Alice Amy Anna Bella Beth Clara Cora Diana Dora Ella Elsa Emma Eva Fiona Flora Freya Gina
    Grace Hana Heidi Helen Ida Irene Jane Jenny Judy Julia Kate Kira Lara Lena Linda Lola Lucy Luna
    Mara Maya Mia Mila Molly Nancy Nina Nora Olga Paula Pia Polly Rita Rosa Ruth Sally Sara Sofia
    Stella Susan Tara Tess Tina Vera Wendy Yara Zelda Zoe
""")

BOYS = _class("""
    Aaron Adam Alan Albert Amir Arlo Ben Boris Bruno Carl Carlos Colin Dan David Dylan Eli Emil Eric
    Ethan Felix Finn Frank Fred George Gus Hank Harry Henry Hugo Ian Igor Isaac Ivan Jack Jacob
    James Joel John Jonas Kevin Leo Liam Louis Luke Marco Matt Max Milo Nick Noah Omar Oscar Otto
    Owen Paul Peter Ravi Rex Sam Simon Theo Tim Tom Victor
""")

NUMBERS = _class("zero one two three four five six seven eight nine ten eleven twelve")

CLASSES = {
    # ---------------------------------------------------------------- people
    "trait": """
        active agile alert artistic bold brave bright brisk busy calm careful caring charming
        cheeky cheerful clever clumsy curious cute daring dreamy eager earnest fair famous
        fearless fine friendly funny generous gentle good graceful grumpy handy happy honest
        hopeful humble jolly joyful keen kind lively loud loyal lucky mature merry messy mild
        modest nice nimble noble noisy odd patient playful polite proud quick quiet sensible
        serious sharp shy silly sincere smart spry strict strong stubborn sweet tall tender tidy
        timid tough tricky wild wise witty young zany
    """,
    "hair": "black blond brown curly dark frizzy golden long messy red short straight wavy wild",
    "kin": """
        aunt brother cousin father grandfather grandmother mother neighbor nephew niece sister
        teacher uncle
    """,
    "job": """
        artist astronaut baker barber blacksmith builder butcher captain carpenter clown cook
        dancer dentist diver doctor driver explorer farmer firefighter fisherman florist gardener
        inventor judge knight librarian magician mayor merchant miller miner musician nurse
        painter pilot pirate plumber poet postman potter sailor scientist
        sculptor shepherd shopkeeper singer soldier tailor waiter weaver wizard writer
    """,
    "hobby": """
        acting baking camping climbing cooking cycling dancing diving drawing fishing gardening
        hiking jogging juggling jumping knitting painting reading riding rowing running sailing
        sewing singing skating skiing sledding storytelling swimming whistling woodwork wrestling
        writing
    """,
    "body": "ankle arm back chin elbow finger foot hand heel hip knee leg shoulder thumb toe wrist",
    "how": """
        boldly bravely briefly brightly briskly calmly cheerily coolly dreamily
        eagerly fast fondly gaily gladly grandly happily hastily keenly kindly lazily lightly long
        loudly madly meekly merrily nicely politely proudly quickly quietly rapidly rudely
        sadly shyly silently sleepily slowly smartly softly solemnly steadily sternly sweetly
        swiftly tenderly warmly wearily wildly wisely
    """,
    "glad": """
        brave calm cheery content glad great happy jolly lucky pleased proud relieved safe well
    """,
    "sad": "blue cross gloomy lost low sad sorry upset worried",
    "wow": "Aha Gosh Great Hey Hooray Look Oh Wow Yes Yippee",
    "alas": "Alas Bother Help Ouch Oops Ugh",
    "game": """
        badminton baseball basketball bingo bowling cards charades checkers chess cricket croquet
        dominoes football golf hockey hopscotch leapfrog marbles soccer softball tag tennis
        volleyball
    """,
    "topic": """
        comets deserts dragons dreams elves fairies fame fate fire food friends ghosts giants
        glaciers gold gravity heroes history holidays ice islands jungles love luck magic magnets
        mermaids money monsters mummies music oceans pirates planets poems quests rain riddles
        robots rockets school secrets ships sleep snow space spies sports stars storms sun time
        treasure trolls unicorns vampires volcanoes war wishes work
    """,
    "country": """
        Africa Alaska America Argentina Austria Belgium Brazil Canada Chile China Cuba Denmark Egypt
        England Finland France Germany Greece Iceland India Ireland Italy Japan Kenya Mexico Morocco
        Nepal Norway Peru Poland Portugal Russia Scotland Spain Sweden Thailand Turkey Vietnam Wales
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
        splendid strange sunny sweet tiring wild wonderful
    """,
    # ---------------------------------------------------------------- looks
    "color": """
        amber beige black blue bronze brown cream crimson golden gray green indigo lilac maroon
        mauve orange pink purple red scarlet silver tan turquoise violet white yellow
    """,
    "quality": """
        ancient antique awful bent big blunt bold brand-new bright broad bulky bumpy charming
        cheap chunky clean coarse common costly cozy cracked crisp crude curved cute dainty damp
        dandy dark deep dented dim dotted drab dry dull dusty elegant empty fabled faded fake
        famous fancy fine firm flashy flat flimsy fragile funny fuzzy giant glossy good grand
        greasy grimy grubby handy heavy huge jagged jolly large leaky light little lofty long
        loose lovely low lucky magic massive mended messy mighty misty modern narrow neat new nice
        nifty noble odd oily old oval padded pale plain posh pretty proper puny quaint queer
        ragged rare regal rich rigid rough round royal rugged rusty sacred secret shabby shiny
        short silly simple sleek slick slim small smart smooth soft solid sparkly special speckled
        spiral spooky square stained stiff stout strange striped strong sturdy superb tall thick
        thin tidy tiny tough twisted ugly unique useful vast warm weird wet wide wobbly worn
        zigzag
    """,
    "material": """
        bamboo brass canvas cardboard clay copper cotton felt glass gold iron ivory leather linen
        marble metal paper plastic rubber silk steel stone straw tin velvet wax wood wool
    """,
    "mood": """
        angry baby bashful black bold bossy brave brown busy calm chubby clever clumsy cross cute
        dizzy fat fierce fluffy fussy fuzzy gentle giant gray greedy grumpy hairy happy hungry
        jolly jumpy lame lazy lean lively lone lost loud mad mean mighty moody muddy nervous
        nimble noisy old perky plump proud quick quiet rude sad scruffy shaggy shy silly skinny
        sleek sleepy slow sly small spotted spry stout striped strong swift tame tense thin tiny
        tired vain wary weary wet white wicked wild wise young
    """,
    "taste": """
        baked bitter bland boiled burnt cheesy chewy chilled chopped cold cool creamy crisp
        crumbly crunchy dried fine fresh fried frozen good greasy green grilled hot juicy mashed
        mild minced minty moist nutty pickled plain raw rich ripe roast salty sliced smoked soft
        sour spicy steamed sticky stuffed sugary sweet tangy tart tasty tender toasted warm yummy
    """,
    # ---------------------------------------------------------------- living things
    "beast": """
        alpaca badger bat beaver bison buffalo bull camel cat cheetah chipmunk cow coyote deer
        dog donkey elephant elk ferret fox giraffe goat gorilla hamster hare hedgehog hippo horse
        hyena jackal jaguar kangaroo kitten koala lamb lemur leopard lion llama lynx mole monkey
        moose mouse mule otter ox panda panther pig pony porcupine possum puppy rabbit raccoon ram
        rat reindeer rhino sheep skunk sloth squirrel tiger walrus weasel wolf wombat yak zebra
    """,
    "bird": """
        blackbird bluebird canary chicken cockatoo crane crow cuckoo dove duck eagle falcon finch
        flamingo goose gull hawk hen heron hummingbird jay kingfisher magpie nightingale ostrich
        owl parrot partridge peacock pelican penguin pheasant pigeon puffin raven robin rooster
        sparrow stork swallow swan thrush toucan turkey vulture woodpecker wren
    """,
    "bug": """
        ant bee beetle bumblebee butterfly caterpillar centipede cricket dragonfly firefly fly
        grasshopper hornet ladybug locust mantis mosquito moth slug snail spider termite wasp worm
    """,
    "swimmer": """
        carp clam crab dolphin eel frog jellyfish lobster minnow newt octopus oyster salmon
        seahorse seal shark shrimp squid starfish stingray toad trout tuna turtle whale
    """,
    "pal": "cat dog donkey duck goat goose hen horse kitten lamb pig pony puppy rabbit sheep",
    "flower": """
        begonia bluebell buttercup carnation crocus daffodil daisy dandelion geranium hyacinth iris
        jasmine lavender lilac lily lotus marigold orchid pansy peony petunia poppy primrose rose
        snowdrop sunflower tulip violet
    """,
    "tree": """
        alder ash aspen beech birch cedar chestnut cypress elm fir hawthorn hazel holly juniper
        maple oak palm pine poplar redwood spruce sycamore walnut willow yew
    """,
    "cry": """
        bee_buzzed bull_bellowed cat_meowed chick_cheeped cow_mooed cricket_chirped crow_cawed
        dog_barked donkey_brayed dove_cooed duck_quacked frog_croaked goose_honked hen_clucked
        horse_neighed lion_roared mouse_squeaked owl_hooted pig_grunted puppy_yapped
        rooster_crowed sheep_bleated snake_hissed sparrow_tweeted turkey_gobbled wolf_howled
    """,
    # ---------------------------------------------------------------- food
    "fruit": """
        apple apricot avocado banana blackberry blueberry cherry coconut cranberry date fig grape
        grapefruit guava kiwi lemon lime mango melon nectarine olive orange papaya peach pear
        pineapple plum pomegranate raisin raspberry strawberry tangerine
    """,
    "vegetable": """
        artichoke bean beet cabbage carrot cauliflower cucumber eggplant leek lentil mushroom onion
        parsnip pea pepper potato pumpkin radish tomato turnip yam zucchini
    """,
    "dish": """
        bacon beef bread broccoli broth cake casserole cereal cheese chicken chili chowder corn
        curry custard fish fudge gravy ham honey jam jelly lasagna macaroni noodles oatmeal
        pasta pie pizza popcorn porridge pudding ravioli rice salad sausage soup spaghetti spinach
        stew toast yogurt
    """,
    "snack": """
        bagel biscuit brownie bun burger candy cookie cracker croissant cupcake donut dumpling egg
        lollipop muffin nugget omelet pancake pastry peanut pickle pretzel roll sandwich scone taco
        tart toffee waffle walnut
    """,
    "drink": """
        cider cocoa coffee cola juice lemonade milk mint_tea nectar punch soda syrup tea water
    """,
    # ---------------------------------------------------------------- things
    "toy": """
        abacus ball balloon bicycle boomerang catapult doll domino drum dollhouse football frisbee
        glider hoop jigsaw kaleidoscope kite marble microscope model_train mask music_box paintbox
        parachute pinwheel pogo_stick puppet puzzle racket rattle robot rocking_horse sailboat
        scooter skateboard slingshot sled slinky snow_globe spinning_top stopwatch stuffed_bear
        tambourine telescope trampoline tricycle trumpet unicycle wagon whistle xylophone yo-yo
    """,
    "wear": """
        apron bandanna bathrobe belt beret blouse bonnet bow_tie bracelet cap cape cardigan cloak
        coat collar costume dress gown hat helmet hood jacket jersey kimono kilt necklace necktie
        nightgown overcoat poncho raincoat ribbon robe sash scarf shawl shirt skirt sombrero suit
        sweater tunic turban uniform veil vest
    """,
    "gem": """
        acorn arrowhead badge bead bell brooch button coin compass crown crystal diamond emerald
        feather flute fossil gemstone horseshoe jewel key lantern locket magnet map medal mirror
        nugget opal pearl pebble pendant postcard ring ruby sapphire scroll seashell stamp statue
        ticket token trinket trophy wand
    """,
    "house": """
        armchair basin basket bathtub bed bench blanket bookcase bottle bowl broom brush bucket
        cabinet candle carpet chair chandelier chest clock comb cradle crate cup cupboard curtain
        cushion desk dish dresser fork fridge frying_pan hammock iron jar jug kettle knife ladle
        lamp mat mattress mop mug napkin oven pan piano picture pillow plate pot quilt radio rug
        saucer shelf sofa spoon sponge stool stove suitcase table tablecloth teapot telephone
        thimble
        toaster towel tray trunk typewriter umbrella vase wardrobe whisk
    """,
    "tool": """
        anchor axe barrel camera chain chisel crowbar drill flashlight hammer hoe hook hose ladder
        lever mallet needle notebook paintbrush pencil pitchfork pulley pump rake rope ruler saw
        screwdriver shovel sickle spade stapler tent thermometer toolbox toothbrush trowel wheel
        wheelbarrow wrench
    """,
    "instrument": """
        accordion banjo bassoon bugle cello clarinet cymbal fiddle gong guitar harmonica harp lute
        mandolin oboe organ recorder saxophone triangle trombone tuba ukulele viola violin zither
    """,
    "vehicle": """
        airplane ambulance balloon bus cab canoe carriage cart ferry helicopter jeep kayak limousine
        minibus motorcycle raft rowboat ship sleigh speedboat taxi tractor train tram trolley truck
        van yacht
    """,
    "ride": "bicycle bus cab carriage scooter sleigh taxi train tram trolley van wagon",
    "find": """
        bone branch brick cone fern leaf log nest nut petal pine_cone puddle rock root seed shell
        shrub stem stick stone stump thorn twig vine weed
    """,
    # ---------------------------------------------------------------- places
    "wild": """
        bog canyon cave clearing cliff desert forest glade gorge grove hill hilltop jungle meadow
        moor mountain prairie ridge valley volcano wilderness wood
    """,
    "water": """
        bay beach brook canal cove creek dock fountain harbor island lagoon lake lighthouse marina
        pier pond pool reservoir river riverbank seashore spring stream swamp waterfall
    """,
    "town": """
        airport arcade bakery bank bookshop cafe castle cathedral chapel church cinema circus
        factory fair gallery grocery gym hospital hotel library market monastery museum palace park
        pharmacy plaza playground post_office restaurant school shop square stadium station
        supermarket temple theater town_hall toyshop university village zoo
    """,
    "farm": """
        barn barnyard beehive chicken_coop cornfield cowshed dairy farm farmyard field garden
        greenhouse haystack mill orchard paddock pasture pigsty plantation ranch stable vineyard
        wheat_field windmill
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
        arch bench boulder bridge bush cart ditch fence flagpole footpath gate hedge
        hole lamppost mailbox mound path pile post ramp scarecrow shed signpost stable swing
        tree trail tunnel wall well
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
