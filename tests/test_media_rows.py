"""A person's own pictures and sounds: what their files become, and what becomes of rows that cannot be used."""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from config import MediaModelConfig, TrainConfig, UserError
from multimodal import corpus, decode, rows
from multimodal.decode import Unreadable, read_picture, read_sound
from multimodal.samples import Picture, Sample, Sound, Turn
from tests import test_hub
from tests.test_hub import hub  # noqa: F401, a fixture

MODEL = MediaModelConfig(modalities="image,audio", image_size=16, audio_seconds=1.0)
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def picture(colour=RED, size=(16, 16), mode="RGB", kind="PNG", **how) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind, **how)
    return file.getvalue()


def sound(seconds=0.5, rate=8000, channels=1, kind="WAV", hertz=400.0, **how) -> bytes:
    file = io.BytesIO()
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    soundfile.write(file, np.repeat(wave[:, None], channels, 1), rate, format=kind, **how)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_rows(path: Path, *some: object) -> Path:
    return put(path, "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in some))


def put_parquet(path: Path, columns: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def find(data: object, modalities="image,audio", **values) -> rows.Rows:
    model = MediaModelConfig(modalities=modalities, image_size=16, audio_seconds=1.0)
    return rows.find_rows(str(data), model, TrainConfig(**values))


def told(sample: Sample) -> list:
    """A sample in short: the colour in the middle of each picture, the length of each sound."""

    def short(part):
        if isinstance(part, Picture):
            return tuple(part.pixels[8, 8].tolist())
        return len(part.wave) if isinstance(part, Sound) else part

    return [(turn.role, *map(short, turn.parts)) for turn in sample.turns] or [sample.text]


def read(found: rows.Rows) -> list:
    return [told(sample) for sample in found.train()]


def uri(data: bytes, kind="image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def said(*parts, answer: object = "yes") -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def media(tmp_path, home) -> Path:
    """A folder with a red and a blue picture, and half a second of sound."""
    put(tmp_path / "media" / "red.png", picture(RED))
    put(tmp_path / "media" / "blue.jpg", picture(BLUE, kind="JPEG"))
    put(tmp_path / "media" / "half.wav", sound())
    return tmp_path


# ---- pictures


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        ({"colour": RED}, RED),
        ({"colour": 200, "mode": "L"}, (200, 200, 200)),
        ({"colour": 1, "mode": "1"}, WHITE),
        ({"colour": 40000, "mode": "I;16"}, (155, 155, 155)),
        ({"colour": (0, 0, 255, 0), "mode": "RGBA"}, WHITE),
        ({"colour": (0, 0, 255, 255), "mode": "RGBA"}, BLUE),
        ({"colour": (0, 0), "mode": "LA"}, WHITE),
        ({"colour": (0, 128), "mode": "LA"}, (127, 127, 127)),
        ({"colour": RED, "transparency": RED}, WHITE),
        ({"colour": RED, "kind": "WEBP", "lossless": True}, RED),
        ({"colour": RED, "kind": "BMP"}, RED),
        ({"colour": RED, "kind": "GIF"}, RED),
        ({"colour": (0, 255, 255, 0), "mode": "CMYK", "kind": "TIFF"}, RED),
    ],
)
def test_any_usual_picture_is_red_green_and_blue(made, seen):
    pixels = read_picture(picture(**made), MODEL).pixels
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert np.abs(pixels.astype(int) - seen).max() <= 1


def test_a_palette_and_its_transparency():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, *GREEN])
    for how, seen in (({}, GREEN), ({"transparency": 1}, WHITE)):
        file = io.BytesIO()
        image.save(file, "PNG", **how)
        assert tuple(read_picture(file.getvalue(), MODEL).pixels[8, 8]) == seen


def test_a_photograph_is_turned_as_the_camera_was_held():
    image = Image.new("RGB", (64, 64), RED)
    image.paste(BLUE, (0, 0, 64, 32))  # blue above, and the camera lay on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        image.save(file, kind, exif=exif)
        pixels = read_picture(file.getvalue(), MODEL).pixels.astype(int)
        assert np.abs(pixels[8, 14] - BLUE).max() < 9, kind
        assert np.abs(pixels[8, 1] - RED).max() < 9, kind


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (5000, 1), (1, 1), (7, 9)])
def test_the_whole_picture_is_in_the_middle_of_the_square(size):
    pixels = read_picture(picture(RED, size), MODEL).pixels
    red = (pixels == RED).all(-1)
    wide, high = red.any(0).sum(), red.any(1).sum()
    assert (wide, high) == tuple(max(1, round(16 * side / max(size))) for side in size)
    assert (pixels[~red] == decode.GREY).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_a_picture_is_refused_before_it_is_unpacked():
    for side in (11_000, 20_000):
        data = bytearray(picture())
        data[16:24] = struct.pack(">II", side, side)  # only its head says so
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with pytest.raises(Unreadable, match="more than 100 million") as caught:
            read_picture(bytes(data), MODEL)
        assert caught.value.kind == "too large a picture"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "data", [b"", b"no picture at all", picture()[:45], picture(kind="JPEG")[:300], picture(kind="EPS"), sound()]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(Unreadable, match="no picture that can be read"):
        read_picture(data, MODEL)


def test_postscript_is_never_run(monkeypatch):
    """Pillow hands it to Ghostscript, whose sandbox has been left before."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(Unreadable):
        read_picture(picture(kind="EPS"), MODEL)


# ---- sounds


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 1)])
def test_any_usual_sound_is_one_channel_at_the_models_rate(kind, rate, channels):
    wave = read_sound(sound(0.5, rate, channels, kind), MODEL).wave
    assert wave.dtype == np.float32
    assert abs(len(wave) - 4000) <= (800 if kind == "MP3" else 1)  # MP3 fills whole frames
    spectrum = np.abs(np.fft.rfft(wave[500:3500]))
    assert abs(spectrum.argmax() * 8000 / 3000 - 400) < 5
    assert 0.4 < np.abs(wave[500:3500]).max() < 0.65


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "ULAW"])
def test_wav_of_several_codings(subtype):
    assert abs(np.abs(read_sound(sound(subtype=subtype), MODEL).wave).max() - 0.5) < 0.02


def test_channels_are_averaged():
    file = io.BytesIO()
    soundfile.write(file, np.tile([0.5, -0.1], (800, 1)), 8000, format="WAV")
    assert np.allclose(read_sound(file.getvalue(), MODEL).wave, 0.2, atol=1e-3)


def test_what_is_louder_than_loud_is_clipped():
    file = io.BytesIO()
    soundfile.write(file, np.full(800, 7.0), 8000, format="WAV", subtype="FLOAT")
    assert read_sound(file.getvalue(), MODEL).wave.max() == 1


def test_too_long_a_sound_is_refused_with_its_length():
    assert len(read_sound(sound(1.05), MODEL).wave) == 8000  # MP3's silence is no reason
    with pytest.raises(Unreadable, match=r"lasts 1\.5 s; the model hears 1 s \(audio_seconds\)") as caught:
        read_sound(sound(1.5), MODEL)
    assert caught.value.kind == "too long a sound"


def untold(seconds: float) -> bytes:
    """A FLAC that was written to a pipe: its head does not say how long it is."""
    data = bytearray(sound(seconds, kind="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def test_a_sound_that_does_not_say_its_length_is_read():
    assert len(read_sound(untold(0.5), MODEL).wave) == 4000
    with pytest.raises(Unreadable, match="the model hears 1 s"):
        read_sound(untold(1.5), MODEL)


def test_an_odd_rate_takes_no_time():
    """Its exact ratio wants a filter of eight million taps: 4 s for 21 samples."""
    assert len(read_sound(sound(0.1, 399_989), MODEL).wave) == 800


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no sound that can be read"),
        (b"RIFF no sound", "no sound that can be read"),
        (picture(), "no sound that can be read"),
        (sound(0), "has no sound"),
        (sound(rate=500), "out of range"),
    ],
)
def test_what_is_no_sound_is_refused(data, match):
    with pytest.raises(Unreadable, match=match):
        read_sound(data, MODEL)


def test_a_sound_of_no_numbers_is_refused():
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan] * 99), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(Unreadable, match="no numbers"):
        read_sound(file.getvalue(), MODEL)


# ---- plain rows


def test_plain_rows(media):
    file = put_rows(
        media / "a.jsonl",
        {"image": "media/red.png", "text": "red"},
        {"audio": "media/half.wav", "text": "half a second"},
        {"image": "media/red.png", "audio": "media/half.wav", "text": "both"},
        {"image": "media/red.png", "question": "Which colour?", "text": "Red."},
        {"image": ["media/red.png", str(media / "media" / "blue.jpg")], "text": "two"},
        {"audio": ["media/half.wav"] * 2, "question": "Same?", "text": "yes"},
        {"question": "1 + 1?", "text": "2"},
        {"text": "words alone"},
        {"image": None, "audio": None, "text": "words again"},
        {"audio": "media/half.wav", "text": ""},
    )
    found = find(file)
    assert read(found) == [
        [("user", RED, "describe"), ("assistant", "red")],
        [("user", 4000, "transcribe"), ("assistant", "half a second")],
        [("user", RED, 4000), ("assistant", "both")],
        [("user", RED, "Which colour?"), ("assistant", "Red.")],
        [("user", RED, (0, 0, 254), "describe"), ("assistant", "two")],
        [("user", 4000, 4000, "Same?"), ("assistant", "yes")],
        [("user", "1 + 1?"), ("assistant", "2")],
        ["words alone"],
        ["words again"],
        [("user", 4000, "transcribe"), ("assistant", "")],
    ]
    assert found.skipped.lines() == []
    assert {sample.source for sample in found.train()} == {str(file)}


def test_fields_of_other_names(media):
    file = put_rows(media / "a.jsonl", {"photo": "media/red.png", "caption": "red"})
    found = find(file, image_field="photo", text_field="caption")
    assert read(found) == [[("user", RED, "describe"), ("assistant", "red")]]


# ---- conversations


def test_conversations_keep_every_part_in_its_place(media):
    wav = base64.b64encode(sound()).decode()
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First "},
                    {"type": "image_url", "image_url": {"url": "media/red.png", "detail": "low"}},
                    {"type": "text", "text": " then "},
                    {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
                    {"type": "image_url", "image_url": {"url": uri(picture(GREEN))}},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]},
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": "media/half.wav"},
                    {"type": "image", "image": f"file://{media}/media/red.png"},
                ],
            },
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": [{"type": "image", "image": "gone, and never answered"}]},
        ]
    }
    found = find(put_rows(media / "a.jsonl", row))
    assert read(found) == [
        [
            ("system", "Be brief."),
            ("user", "First ", RED, " then ", 4000, GREEN),
            ("assistant", "one", " two"),
            ("user", 4000, RED),
            ("assistant", "three"),
        ]
    ]


def test_paths_hang_on_the_file_that_holds_the_row(media, monkeypatch):
    put(media / "deep" / "x.png", picture(GREEN))
    put_rows(media / "deep" / "b.jsonl", {"image": "x.png", "text": "green"})
    put_rows(media / "a.jsonl", {"image": "media/red.png", "text": "red"})
    monkeypatch.chdir("/")
    assert [told(sample)[1] for sample in find(media).train()] == [("assistant", "red"), ("assistant", "green")]


# ---- what cannot be used


IMAGE_PART = {"type": "image", "image": "media/red.png"}
BAD = {
    "missing media file": {"image": "gone.png", "text": "x"},
    "too long a sound": {"audio": "long.wav", "text": "x"},
    "broken picture": {"image": "broken.png", "text": "x"},
    "broken sound": {"audio": "media/red.png", "text": "x"},
    "empty media file": {"image": "empty.png", "text": "x"},
    "path that leads to no file": {"image": "media", "text": "x"},
    "leads to no file": {"image": "/dev/zero", "text": "x"},
    "to no file": {"image": "pipe.png", "text": "x"},
    "remote address, which is not fetched": {"image": "https://127.0.0.1:9/x.png", "text": "x"},
    "remote address": said({"type": "image_url", "image_url": {"url": "HTTP://127.0.0.1:9/x.png"}}),
    "cannot be read": {"image": "nul\0.png", "text": "x"},
    "media file that cannot be read": {"image": "x" * 3000, "text": "x"},
    "no base64": said({"type": "input_audio", "input_audio": {"data": "###"}}),
    "data that are no base64": {"image": "data:image/png;base64,é", "text": "x"},
    "data: URI that is not ;base64": {"image": "data:image/svg+xml,<svg/>", "text": "x"},
    "picture of type int": {"image": 7, "text": "x"},
    "sound of type float": {"audio": [0.5, 0.25], "text": "x"},
    "picture of type NoneType": said({"type": "image"}),
    "no 'image_url.url'": said({"type": "image_url", "image_url": "media/red.png"}),
    "no 'text'": {"image": "media/red.png"},
    "'text' of type int": {"image": "media/red.png", "text": 7},
    "'question' of type list": {"image": "media/red.png", "question": ["?"], "text": "x"},
    "empty answer": {"image": "media/red.png", "text": " "},
    "empty text": {"text": ""},
    "none of the fields 'messages', 'image', 'audio', 'question', 'text'": {"other": 1},
    "messages that are no list": {"messages": "hello"},
    "messages that are no list of objects": {"messages": ["hello"]},
    "no answer of the assistant": {"messages": [{"role": "user", "content": "hello"}]},
    "a role that is none of": {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]},
    "role": {"messages": [{"role": ["user"], "content": "x"}, {"role": "assistant", "content": "x"}]},
    "part of content of an unknown type": said({"type": "video", "video": "x.mp4"}),
    "part of content of type str": said("loose"),
    "content of type NoneType": said(IMAGE_PART, answer=None),
    "an empty answer": said(IMAGE_PART, answer=""),
    "picture or a sound in the answer": said(IMAGE_PART, answer=[IMAGE_PART]),
    "no JSON": "{broken",
    "no JSON object": "[1]",
}


@pytest.fixture
def bad_media(media) -> Path:
    put(media / "long.wav", sound(2))
    put(media / "broken.png", picture()[:50])
    put(media / "empty.png", b"")
    os.mkfifo(media / "pipe.png")
    return media


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_counted_or_stops_a_strict_run(bad_media, reason):
    good = {"image": "media/red.png", "text": "red"}
    file = put_rows(bad_media / "a.jsonl", good, "", BAD[reason], good)
    found = find(file)
    assert [each[1] for each in read(found)] == [("assistant", "red")] * 2
    (line,) = found.skipped.lines()
    assert line.startswith("skipped 1 row ")
    assert reason in line
    assert f"{file} row 3" in line
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        list(find(file, strict=True).train())
    assert f"{file} row 3" in str(caught.value)
    assert "--strict" in str(caught.value)


def test_rows_of_one_kind_of_fault_are_counted_together(bad_media):
    put(bad_media / "longer.wav", sound(3))
    good, *others = {"text": "good"}, {"audio": "long.wav", "text": "x"}, {"audio": "longer.wav", "text": "x"}
    found = find(put_rows(bad_media / "a.jsonl", good, *others))
    read(found)
    assert found.skipped.counts == {"row with too long a sound": 2}
    assert "(long.wav lasts 2.0 s; the model hears 1 s" in found.skipped.lines()[0]


def test_what_the_model_does_not_take_is_left_out_unread(media):
    file = put_rows(media / "a.jsonl", {"image": "media/red.png", "text": "red"}, {"audio": "gone.wav", "text": "x"})
    found = find(file, modalities="image")
    assert len(read(found)) == 1
    assert list(found.skipped.counts) == ["row with a sound, which a model of --modalities image does not take"]


def test_a_row_may_be_hostile(media):
    deep = '{"messages": ' + "[" * 100_000
    nested = '{"text": ' + "[" * 300 + "]" * 300 + "}"
    found = find(put(media / "a.jsonl", b'{"text": "\xff"}\n' + f'{deep}\n{nested}\n{{"text": "good"}}\n'.encode()))
    assert read(found) == [["good"]]
    assert found.skipped.counts == {"row that is no JSON": 2, "row with 'text' of type list": 1}


# ---- nothing to be had


def test_no_usable_row_names_the_fields_and_the_reasons(media):
    file = put_rows(media / "a.jsonl", {"image": "media/red.png", "caption": "red"}, {"image": "x", "caption": "y"})
    with pytest.raises(UserError, match="'image', 'caption'") as caught:
        read(find(file))
    assert all(word in str(caught.value) for word in ("--text_field", "skipped 2 row with no 'text'", str(file)))


def test_media_in_a_field_of_another_name_are_not_taken_for_text(media):
    for row in ({"img": "media/red.png", "text": "red"}, {"clip": {"bytes": None, "path": "x"}, "text": "x"}):
        with pytest.raises(UserError, match=f"--image_field {next(iter(row))}"):
            read(find(put_rows(media / "a.jsonl", row)))
    parquet = put_parquet(media / "a.parquet", {"photo": [picture()], "text": ["red"]})
    with pytest.raises(UserError, match="--image_field photo"):
        read(find(parquet))


def test_a_text_that_is_beside_its_source_is_still_text(media):
    some = {"source": "page.png", "text": "words"}, {"image": "media/red.png", "text": "red"}
    assert read(find(put_rows(media / "a.jsonl", *some)))[0] == ["words"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.jsonl", ["nowhere.jsonl", ".parquet", "hf:OWNER/NAME", "by class"]),
        ("*.jsonl", ["*.jsonl"]),
        ("hollow", ["hollow", "neither rows"]),
        ("table.csv", ["'.csv'", ".jsonl"]),
        ("media/red.png", ["red.png", '"image": "red.png"', ".jsonl"]),
        ("media/half.wav", ['"audio": "half.wav"']),
        ("media", ["blue.jpg", "FOLDER/CLASS/FILE", ".jsonl"]),
    ],
)
def test_what_is_not_there_or_no_rows_is_told_with_the_next_step(media, name, words):
    (media / "hollow").mkdir()
    put(media / "table.csv", "a,b")
    with pytest.raises(UserError) as caught:
        find(media / name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- parquet


def test_parquet_in_every_form_of_media(media):
    file = put_parquet(
        media / "a.parquet",
        {
            "image": pyarrow.array(
                [{"bytes": picture(GREEN), "path": "x.png"}, {"bytes": None, "path": "media/red.png"}, None, None],
                pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
            ),
            "audio": pyarrow.array([None, None, sound(0.25), None], pyarrow.binary()),
            "text": ["green", "red", "quarter", None],
            "huge": ["never read"] * 4,
        },
    )
    found = find(file)
    assert [each[0][1] for each in read(found)] == [GREEN, RED, 2000]
    assert found.skipped.first == {"row with none of the fields 'messages', 'image', 'audio', 'question', 'text'": f"{file} row 4"}


def test_parquet_paths_lists_and_conversations(media):
    paths = put_parquet(media / "a.parquet", {"image": [["media/red.png", "media/red.png"]], "text": ["twice"]})
    assert read(find(paths)) == [[("user", RED, RED, "describe"), ("assistant", "twice")]]
    parts = [{"type": "image", "image": "media/red.png", "text": None}, {"type": "text", "text": "?", "image": None}]
    answer = [{"type": "text", "text": "red", "image": None}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    talk = put_parquet(media / "b.parquet", {"messages": [messages]})
    assert read(find(talk)) == [[("user", RED, "?"), ("assistant", "red")]]


def test_parquet_without_the_text_names_the_fields_it_has(media):
    with pytest.raises(UserError, match=r"'image', 'caption'.*--text_field"):
        read(find(put_parquet(media / "a.parquet", {"image": ["media/red.png"], "caption": ["red"]})))


def test_a_damaged_parquet_is_named(media):
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read(find(put(media / "a.parquet", b"noise" * 99)))


# ---- folders, splits, keys


def test_files_named_as_splits_are_taken_as_such(media):
    for split in ("train", "validation", "test"):
        put_rows(media / "set" / f"{split}.jsonl", {"text": split})
    found = find(media / "set")
    assert read(found) == [["train"]]
    assert [sample.text for sample in found.val()] == ["validation"]
    assert find(media / "set" / "train.jsonl").val is None


def test_a_glob_of_rows(media):
    for name in ("a", "b"):
        put_rows(media / f"{name}.jsonl", {"text": name})
    assert read(find(media / "*.jsonl")) == [["a"], ["b"]]


def test_the_key_follows_rows_and_media(media):
    file = put_rows(media / "a.jsonl", said(IMAGE_PART), {"audio": "media/half.wav", "text": "x"})
    before = find(file).key
    assert find(file).key == before
    assert find(file, text_field="answer").key != before
    put(media / "media" / "half.wav", sound(0.3))
    heard = find(file).key
    assert heard != before
    os.utime(media / "media" / "red.png", (1, 1))
    assert find(file).key not in (before, heard)
    parquet = put_parquet(media / "a.parquet", {"image": ["media/red.png"], "text": ["red"]})
    stored = find(parquet).key
    os.utime(media / "media" / "red.png", (2, 2))
    assert find(parquet).key != stored


# ---- folders by class


def by_class(folder: Path, count: int, name="IMG_{n}.png") -> Path:
    for n in range(count):
        put(folder / str(n % 5) / name.format(n=n, label=n % 5), picture((n, 0, 0)))
    return folder


def test_a_folder_by_class(media):
    put(media / "pets" / "cat" / "1.PNG", picture(RED))
    put(media / "pets" / "guinea pig" / "2.wav", sound())
    put(media / "pets" / "cat" / ".hidden.png", b"x")
    put(media / "pets" / "cat" / "notes.txt", "x")
    put(media / "pets" / "loose.png", picture())
    found = find(media / "pets")
    assert read(found) == [
        [("user", RED, "describe"), ("assistant", "cat")],
        [("user", 4000, "transcribe"), ("assistant", "guinea pig")],
    ]
    notes, loose = found.skipped.lines()
    assert notes == f"skipped 1 file that is neither picture nor sound (first: {media}/pets/cat/notes.txt)"
    assert all(word in loose for word in ("FOLDER/CLASS/FILE", "loose.png"))
    with pytest.raises(UserError, match=r"notes\.txt: file that is neither picture nor sound"):
        read(find(media / "pets", strict=True))
    (media / "pets" / "cat" / "notes.txt").unlink()
    put(media / "pets" / "README.md", "above the classes")
    assert find(media / "pets").key != found.key
    with pytest.raises(UserError, match=r"loose\.png"):
        read(find(media / "pets", strict=True))


def test_other_files_of_a_split_are_told_with_it(media):
    for split in ("train", "valid", "test"):
        put(media / "pets" / split / "cat" / "1.png", picture())
        put(media / "pets" / split / "cat" / "2.mov", "x")
    found = find(media / "pets")
    read(found)
    assert found.skipped.counts == {"file that is neither picture nor sound": 1}
    list(found.val())
    assert found.skipped.counts == {"file that is neither picture nor sound": 2}


def test_pictures_and_sounds_with_rarer_endings(media):
    """They are found in folders by class, and seen when they change behind a row."""
    made = {
        "a.avif": picture(kind="AVIF"), "b.jfif": picture(kind="JPEG"), "c.aif": sound(kind="AIFF"), "d.AIFF": sound(kind="AIFF"),
        "e.oga": sound(kind="OGG"), "f.opus": sound(kind="OGG", subtype="OPUS"),
    }  # fmt: skip
    for name, content in made.items():
        put(media / "set" / "cat" / name, content)
    found = find(media / "set")
    shown = [each[0][1] for each in read(found)]
    assert np.abs(np.array(shown[:2]) - RED).max() <= 2 and shown[2:] == [4000] * 4
    assert found.skipped.lines() == []
    for name in made:
        kind = "image" if name < "c" else "audio"
        file = put_rows(media / "rows.jsonl", {kind: f"set/cat/{name}", "text": "x"})
        before = find(file).key
        os.utime(media / "set" / "cat" / name, (1, 1))
        assert find(file).key != before, name


def test_a_folder_by_class_with_splits_leaves_the_test_alone(media):
    for split in ("train", "valid", "test"):
        put(media / "pets" / split / "cat" / f"{split}.png", picture(RED if split == "train" else BLUE))
    found = find(media / "pets")
    assert read(found) == [[("user", RED, "describe"), ("assistant", "cat")]]
    assert [told(sample)[0][1] for sample in found.val()] == [BLUE]
    put(media / "pets" / "valid" / "cat" / "valid.png", b"x" * 99)
    with pytest.raises(UserError, match="no row that can be used"):
        list(found.val())


def test_a_class_may_be_called_train(media):
    for name in ("train", "bus"):
        put(media / "traffic" / name / "1.png", picture())
    assert [each[1][1] for each in read(find(media / "traffic"))] == ["bus", "train"]


def test_a_folder_by_class_has_another_key_when_a_file_changes(media):
    folder = by_class(media / "set", 5)
    before = find(folder).key
    put(folder / "0" / "IMG_0.png", picture(BLUE, (17, 17)))
    assert find(folder).key != before


@pytest.mark.parametrize("name", ["IMG_{n}.png", "{label}_{n}.png", "class {label} no. {n:05}.png"])
def test_what_was_made_together_stays_together(media, name):
    """Five signs in a row by one person: of each the numbers are neighbours, whatever the classes are called."""
    found = find(by_class(media / "set", 200, name), val_fraction=0.2)
    splits = list(corpus.split_rows(found, 0.2))
    order = [int(told(sample)[0][1][0]) for _, sample in splits]
    assert order == list(range(200))
    held = [number for number, (split, _) in enumerate(splits) if split == "val"]
    assert len(held) == 40
    assert sum(number + 1 not in held for number in held) == 4  # blocks
    assert Counter(told(splits[number][1])[1][1] for number in held) == dict.fromkeys("01234", 8)


@pytest.mark.parametrize(("count", "fraction"), [(5, 0.1), (20, 0.1), (100, 0.2), (1000, 0.1), (300, 0.7)])
def test_rows_are_held_back_in_the_share_that_was_asked_for(media, count, fraction):
    found = find(put_rows(media / "a.jsonl", *({"text": f"{n}"} for n in range(count))), val_fraction=fraction)
    splits = [split for split, _ in corpus.split_rows(found, fraction)]
    assert max(1, count * fraction - found.block) <= splits.count("val") <= count * fraction + found.block
    assert splits == [split for split, _ in corpus.split_rows(found, fraction)]


def test_rows_that_come_in_turns_are_all_met(media):
    found = find(put_rows(media / "a.jsonl", *({"text": f"{n % 10}"} for n in range(400))), val_fraction=0.1)
    assert found.block == 1
    assert len({sample.text for split, sample in corpus.split_rows(found, 0.1) if split == "val"}) >= 8


def test_sign_digits(shared_data):
    found = find(shared_data / "sign-digits", modalities="image")
    first = next(found.train())
    assert first.turns[0].parts[1:] == ("describe",)
    assert first.turns[1] == Turn("assistant", ("0",))
    assert found.val is None


# ---- in the corpus


def test_skips_of_several_parts_are_added_up_and_strict_after_all(media, monkeypatch):
    monkeypatch.setattr("multimodal.shards.DATA", media / "data")
    bad = {"image": "gone.png", "text": "x"}
    files = [put_rows(media / f"{n}.jsonl", *({"text": f"{n} {m}"} for m in range(20)), bad) for n in (1, 2)]
    model = MediaModelConfig(modalities="image", image_size=16)
    config = TrainConfig(data=",".join(map(str, files)), tokenizer="byte")
    found = corpus.open_corpus(config, model, 0, None, progress=False)
    assert found.meta["skipped"] == [f"skipped 2 row with a missing media file (first: {files[0]} row 21 ({media}/gone.png))"]
    config.strict = True
    with pytest.raises(UserError, match="gone"):
        corpus.open_corpus(config, model, 0, None, progress=False)


def test_rows_longer_than_the_block_are_told_of_both_splits_and_end_a_strict_run(media, monkeypatch):
    monkeypatch.setattr("multimodal.shards.DATA", media / "data")
    for split, longs in (("train", 1), ("valid", 2)):
        put_rows(media / f"set/{split}.jsonl", *({"text": "short"} for _ in range(5)), *({"text": "long" * 20} for _ in range(longs)))
    model = MediaModelConfig(modalities="image", image_size=16, block_size=32)
    config = TrainConfig(data=str(media / "set"), tokenizer="byte")
    for _ in ("made", "found"):
        found = corpus.open_corpus(config, model, 0, None, progress=False)
        assert found.meta["skipped"] == [f"skipped 3 rows longer than the block_size of 32 (first: 82 tokens in {media / 'set'})"]
    config.strict = True
    with pytest.raises(UserError, match=r"rows longer than the block_size of 32.* --block_size, or leave out --strict"):
        corpus.open_corpus(config, model, 0, None, progress=False)
    put_rows(media / "set/train.jsonl", *({"text": "short"} for _ in range(5)))
    with pytest.raises(UserError, match="skipped 2 rows longer"):  # those to validate on alone
        corpus.open_corpus(config, model, 0, None, progress=False)
    put_rows(media / "set/valid.jsonl", {"text": "short"})
    assert corpus.open_corpus(config, model, 0, None, progress=False).meta["skipped"] == []


def test_a_part_without_rows_to_train_on_is_no_part_of_the_mixture(media, monkeypatch):
    monkeypatch.setattr("multimodal.shards.DATA", media / "data")
    long, short = (put_rows(media / f"{word}.jsonl", *({"text": word * 9} for _ in range(20))) for word in ("longer", "me"))
    model = MediaModelConfig(modalities="image", image_size=16, block_size=32)
    config = TrainConfig(data=f"{long},{short}", tokenizer="byte")
    assert corpus.open_corpus(config, model, 0, None, progress=False).shares == {str(short): 1.0}
    config.mix = f"{short}=0"
    with pytest.raises(UserError, match=re.escape(f"of {long} there is no row to train on that the block_size of 32")) as caught:
        corpus.open_corpus(config, model, 0, None, progress=False)
    assert "--block_size" in str(caught.value) and "--mix" in str(caught.value)


# ---- the Hub


def stored(features: dict, columns: dict) -> bytes:
    """A parquet file as `datasets` writes it: what its columns are is in the head."""
    head = {"huggingface": json.dumps({"info": {"features": features}})}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(head), file)
    return file.getvalue()


def column(*contents: bytes) -> list[dict]:
    return [{"bytes": content, "path": "x"} for content in contents]


STRING, IMAGE, AUDIO = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}, {"_type": "Audio"}
DATASETS = {
    "own/seen": {
        "data/train-00000.parquet": stored(
            {"image": IMAGE, "text": {"names": ["cat", "dog"], "_type": "ClassLabel"}},
            {"image": column(picture(RED), b"broken", picture(GREEN)), "text": [0, 1, 1]},
        ),
        "data/validation-00000.parquet": stored(
            {"image": IMAGE, "text": {"names": ["cat", "dog"], "_type": "ClassLabel"}},
            {"image": column(picture(BLUE)), "text": [1]},
        ),
    },
    "own/heard": {
        "data/train-00000.parquet": stored(
            {"audio": AUDIO, "text": STRING}, {"audio": column(sound(0.25), sound(kind="FLAC")), "text": ["a", "b"]}
        )
    },
    "own/misnamed": {
        "data/train-00000.parquet": stored({"img": IMAGE, "text": STRING}, {"img": column(picture()), "text": ["a"]})
    },
    "own/untold": {"data/train-00000.parquet": stored({"text": STRING}, {"text": [f"{n}" for n in range(400)]})},
    "own/counted": {
        "README.md": b"---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  splits:\n"
        b"  - {name: train, num_bytes: 4000, num_examples: 2000}\n  download_size: 9\n  dataset_size: 4000\n---\n",
        "data/train-00000.parquet": stored({"text": STRING}, {"text": [f"{n}" for n in range(2000)]}),
    },
    "own/folder": {
        "README.md": b"---\nconfigs:\n- config_name: all\n  data_files:\n  - {split: train, path: ['cat/*', 'dog/*']}\n---\n",
        "cat/1.png": picture(RED),
        "dog/2.png": picture(GREEN),
    },
}
QUESTIONS = {
    "seen": {"data": "hf:own/seen"},
    "heard": {"data": "hf:own/heard"},
    "strict": {"data": "hf:own/seen", "strict": True},
    "misnamed": {"data": "hf:own/misnamed"},
    "untold": {"data": "hf:own/heard", "text_field": "caption"},
    "folder": {"data": "hf:own/folder", "text_field": "label"},
    "neighbours, untold": {"data": "hf:own/untold"},
    "neighbours, counted": {"data": "hf:own/counted"},
    "neighbours, a fifth": {"data": "hf:own/counted", "val_fraction": 0.2},
}
ASK = """
import json, sys
from config import MediaModelConfig, TrainConfig, UserError
from multimodal.corpus import split_rows
from multimodal.rows import find_rows
from multimodal.samples import Picture, Sample, Sound

MODEL = MediaModelConfig(modalities="image,audio", image_size=16, audio_seconds=1.0)
""" + inspect.getsource(told) + """
def answer(values):
    try:
        found = find_rows(values["data"], MODEL, TrainConfig(**values))
        train = [told(sample) for sample in found.train()]
        val = found.val and [told(sample) for sample in found.val()]
        skipped = found.skipped.lines()
        splits = [split for split, _ in split_rows(found, values.get("val_fraction", 0.1))]
        return {"train": train, "val": val, "skipped": skipped, "key": found.key, "splits": splits}
    except UserError as error:
        return {"error": str(error)}

print(json.dumps([answer(values) for values in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def answers(hub, tmp_path_factory) -> dict[str, dict]:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_hub, "ASK", ASK)
        for name, files in DATASETS.items():
            patch.setitem(test_hub.DATASETS, name, files)
        found = test_hub.ask(hub, tmp_path_factory.mktemp("home"), *QUESTIONS.values())
    return dict(zip(QUESTIONS, found, strict=True))


def seen(colour: tuple, answer: str) -> list:
    return [["user", list(colour), "describe"], ["assistant", answer]]


def test_pictures_of_the_hub_with_the_names_of_their_classes(answers):
    found = answers["seen"]
    assert found["train"] == [seen(RED, "cat"), seen(GREEN, "dog")]
    assert found["val"] == [seen(BLUE, "dog")]
    assert found["skipped"] == [
        "skipped 1 row with a broken picture (first: own/seen train row 2 (it is no picture that can be read (UnidentifiedImageError)))"
    ]


def test_sounds_of_the_hub_need_no_decoder_of_its_own(answers):
    assert answers["heard"]["train"] == [
        [["user", 2000, "transcribe"], ["assistant", "a"]],
        [["user", 4000, "transcribe"], ["assistant", "b"]],
    ]
    assert answers["heard"]["val"] is None


def test_files_in_a_repository_of_the_hub(answers):
    assert answers["folder"]["train"] == [seen(RED, "cat"), seen(GREEN, "dog")], answers["folder"]


@pytest.mark.parametrize(("question", "block", "held"), [("untold", 20, 40), ("counted", 5, 200), ("a fifth", 10, 400)])
def test_rows_of_the_hub_are_held_out_in_blocks_of_neighbours(answers, question, block, held):
    splits = answers[f"neighbours, {question}"]["splits"]
    assert splits.count("val") == held
    assert all(len(set(splits[start : start + block])) == 1 for start in range(0, len(splits), block))
    assert answers["neighbours, counted"]["key"] != answers["neighbours, a fifth"]["key"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("strict", ["own/seen train row 2", "--strict"]),
        ("misnamed", ["--image_field img"]),
        ("untold", ["'audio', 'text'", "--text_field"]),
    ],
)
def test_what_a_dataset_of_the_hub_does_not_have_is_told(answers, question, words):
    assert all(word in answers[question]["error"] for word in words), answers[question]


def test_a_path_in_a_row_of_the_hub_reads_no_file_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "x.png", picture())
    for path in ("x.png", "https://127.0.0.1:9/?hf://datasets/a", "zip://a::https://127.0.0.1:9/::hf://datasets/a"):
        with pytest.raises(rows.Unusable, match="not in the dataset"):
            rows.from_hub("own/name")(path)
