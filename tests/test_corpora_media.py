"""The drawn shapes and the synthetic speech: the same for ever, true to their words, and held out where they say so."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest

from corpora import shapes, speech


def all_scenes(held_out: bool) -> list[shapes.Scene]:
    return [scene for things in (1, 2) for scene in shapes.scenes(300, 5, things, held_out)]


@pytest.mark.parametrize("held_out", [False, True])
def test_pairs_of_colour_and_shape_are_on_one_side(held_out):
    pairs = {(thing.colour, thing.shape) for scene in all_scenes(held_out) for thing in scene.things}
    assert all((pair in shapes.HELD_OUT) == held_out for pair in pairs)
    assert {shape for _, shape in pairs} == set(shapes.SHAPES)


def test_a_seed_draws_the_same_pictures():
    one, again, other = ([shapes.draw(scene) for scene in shapes.scenes(20, seed, 2)] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_a_thing_has_its_colour_where_it_stands(side):
    for scene in shapes.scenes(100, 3):
        [thing] = scene.things
        picture = shapes.draw(scene, side)
        at = picture[int(thing.y * side), int(thing.x * side)].astype(int)
        nearest = min(shapes.COLOURS, key=lambda name: np.abs(np.array(shapes.COLOURS[name]) - at).sum())
        assert nearest == thing.colour, shapes.caption(scene)


def test_places_and_relations_are_those_of_the_picture():
    for scene in shapes.scenes(200, 4):
        [thing] = scene.things
        rows = {"top": thing.y < 1 / 3, "bottom": thing.y > 2 / 3}
        columns = {"left": thing.x < 1 / 3, "right": thing.x > 2 / 3}
        assert all((word in thing.place.split()) == there for word, there in (rows | columns).items())
        assert shapes.caption(scene).endswith(thing.place)
    for scene in shapes.scenes(200, 4, 2):
        first, second = scene.things
        apart = second.x - first.x if scene.relation == "left of" else second.y - first.y
        assert apart > 0.4
        assert first.colour != second.colour and first.shape != second.shape


def test_sizes_do_not_overlap():
    radii = {size: [t.radius for s in all_scenes(False) for t in s.things if t.size == size] for size in shapes.SIZES}
    assert max(radii["small"]) < min(radii["large"])


def test_every_question_can_be_spoken_and_answered():
    for scene in all_scenes(False):
        for question, answer in shapes.questions(scene):
            assert set(question.split()) <= set(speech.WORDS), question
            assert answer


def test_an_edge_is_smooth():
    """A circle that moves by a fraction of a pixel changes its rim a little, and nothing else."""
    thing = shapes.Thing("white", "circle", "large", 0.5, 0.5, 0.2, 0.0)
    moved = shapes.Thing("white", "circle", "large", 0.505, 0.5, 0.2, 0.0)
    one, two = (shapes.draw(shapes.Scene((each,), "", 1)).astype(int) for each in (thing, moved))
    changed = np.abs(one - two).max(-1)
    assert 0 < changed.max() < 60


# ---- speech


def test_held_out_pairs_and_voices_never_train():
    ordinary = [words for words, _ in islice(speech.utterances(60, 1), 60)]
    assert all(speech.HELD_OUT.isdisjoint(pairwise(words)) for words in ordinary)
    held = [words for words, _ in speech.utterances(20, 1, held_out=True)]
    assert all(not speech.HELD_OUT.isdisjoint(pairwise(words)) for words in held)
    assert not {speech.voice(n) for n in range(200)} & {speech.voice(n, held_out=True) for n in range(200)}


def test_questions_about_pictures_hold_no_held_out_pair():
    for scene in all_scenes(False):
        for question, _ in shapes.questions(scene):
            assert speech.HELD_OUT.isdisjoint(pairwise(question.split())), question


def test_the_same_words_by_the_same_voice_are_the_same_samples():
    voice = speech.voice(3)
    assert np.array_equal(speech.speak(["red", "star"], voice, 7), speech.speak(["red", "star"], voice, 7))
    assert not np.array_equal(speech.speak(["red", "star"], voice, 7), speech.speak(["red", "star"], voice, 8))


@pytest.mark.parametrize("word", speech.WORDS)
def test_every_word_is_a_sound(word):
    wave = speech.speak([word], speech.voice(1), 1)
    assert wave.dtype == np.float32 and np.isfinite(wave).all() and np.abs(wave).max() <= 1
    assert 0.05 < len(wave) / speech.RATE < 1.5
    assert wave.std() > 0.005


def test_more_words_take_longer_and_none_too_long():
    for words, wave in speech.utterances(40, 2):
        assert 1 <= len(words) <= 4 and len(wave) <= speech.LONGEST * speech.RATE
    voice = speech.voice(5)
    assert len(speech.speak(["one", "two"], voice, 1)) > len(speech.speak(["one"], voice, 1))


def test_silence_is_quiet():
    loud = np.median([wave.std() for _, wave in speech.utterances(20, 3)])
    quiet = np.median([speech.silence(seed).std() for seed in range(20)])
    assert quiet < loud / 5


def test_a_high_voice_is_higher():
    """The strongest period of a vowel follows the pitch that the voice has."""
    import dataclasses

    def pitch(hertz: float) -> float:
        voice = dataclasses.replace(speech.voice(1), pitch=hertz, melody=0.0, fall=0.0, noise=40.0, rough=0.003)
        wave = speech.speak(["star"], voice, 1)
        middle = wave[len(wave) // 2 : len(wave) // 2 + 800]
        correlated = np.correlate(middle, middle, "full")[len(middle) :]
        shortest = speech.RATE // 400
        return speech.RATE / (shortest + 1 + np.argmax(correlated[shortest : speech.RATE // 60]))

    assert pitch(100) == pytest.approx(100, rel=0.15) and pitch(220) == pytest.approx(220, rel=0.15)
