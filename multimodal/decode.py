"""The bytes of a file to what a model sees and hears: any usual picture to a small square, any usual sound to one channel at its rate.

Pillow knows the pictures (PNG, JPEG, WebP and more), libsndfile the sounds (WAV, AIFF, FLAC, OGG, MP3). What comes from outside may be
broken, hostile or merely huge, so sizes are looked at before anything is unpacked.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction

import numpy as np

from config import MediaModelConfig
from multimodal.samples import Picture, Sound

FORMATS = "PNG JPEG WEBP GIF BMP TIFF AVIF".split()  # and no EPS, for which Pillow would run Ghostscript
MOST_PIXELS = 100_000_000  # of a picture, before it is made small
UNKNOWN = 2**62  # more samples than any sound has: a file that was written to a pipe may not know how many it holds
RATES = 1000, 400_000  # samples a second that a recording may have
MOST_SAMPLES = 100_000_000  # of all channels together
SPARE = 0.1  # seconds over the longest sound that are cut without a word: MP3 adds some silence of its own
GREY = (128, 128, 128)  # beside a picture that is no square


class Unreadable(ValueError):
    """Why these bytes are no picture or no sound for this model, as the end of a sentence that begins with the file's name.

    Attributes:
        kind: the same in short, without what is this file's alone, to count by.
    """

    def __init__(self, told: str, kind: str):
        super().__init__(told)
        self.kind = kind


def read_picture(data: bytes, config: MediaModelConfig) -> Picture:
    """The whole picture, upright, in the middle of the model's square; what is transparent is white.

    Raises:
        Unreadable: for bytes that are no picture, or one of too many pixels.
    """
    from PIL import Image, ImageOps

    side = config.image_size
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                told = f"has {image.width} × {image.height} pixels, more than {MOST_PIXELS // 10**6} million"
                raise Unreadable(told, "too large a picture")
            image.draft("RGB", (4 * side, 4 * side))  # a JPEG is unpacked at an eighth of its size where that is enough
            image.load()
            upright = eight_bits(ImageOps.exif_transpose(image))
            sides = [max(1, round(edge * side / max(upright.size))) for edge in upright.size]  # a line of pixels stays one
            small = upright.resize(sides, Image.Resampling.LANCZOS)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {MOST_PIXELS // 10**6} million pixels", "too large a picture") from None
    except Exception as error:  # Pillow's plugins raise whatever their format made them stumble over
        raise Unreadable(f"is no picture that can be read ({type(error).__name__})", "a broken picture") from error
    square = Image.new("RGB", (side, side), GREY)
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return Picture(np.array(square))


def eight_bits(image):
    """An image of any mode as red, green and blue of eight bits."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: from the darkest to the brightest
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if image.mode.startswith("I;16") or (low >= 0 and high > 255):
            low, high = 0.0, 65535.0
        return Image.fromarray(np.uint8(np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_sound(data: bytes, config: MediaModelConfig) -> Sound:
    """The mean of all channels at the model's rate.

    Raises:
        Unreadable: for bytes that are no sound, an empty one, or one that is longer than the model hears.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, most = file.samplerate, int((config.audio_seconds + SPARE) * file.samplerate)
            if not RATES[0] <= rate <= RATES[1] or min(file.frames, most) * file.channels > MOST_SAMPLES:
                told = f"has {file.channels} channels of {rate} samples a second: that is out of range"
                raise Unreadable(told, "a sound of a strange rate")
            if file.frames > UNKNOWN:
                file.seekable = lambda: False  # else soundfile goes on from an end that is not there
            wave = file.read(min(file.frames, most + 1), dtype="float32", always_2d=True).mean(1)  # (n,)
            if len(wave) > most:
                lasts = f"lasts {file.frames / rate:.1f} s" if file.frames < UNKNOWN else "lasts longer than it says"
                raise Unreadable(f"{lasts}; the model hears {config.audio_seconds:g} s (audio_seconds) at most", "too long a sound")
    except Unreadable:
        raise
    except Exception as error:  # libsndfile's, and those of a header that lies
        raise Unreadable(f"is no sound that can be read ({type(error).__name__})", "a broken sound") from error
    if not len(wave):
        raise Unreadable("has no sound in it", "an empty sound")
    if not np.isfinite(wave).all():
        raise Unreadable("holds samples that are no numbers", "a broken sound")
    return Sound(at_rate(wave, rate, config.audio_rate)[: math.ceil(config.audio_seconds * config.audio_rate)])


def at_rate(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A wave (n,) of one rate at another, float32 within -1 to 1."""
    from scipy.signal import resample_poly

    if rate != wanted:
        ratio = Fraction(wanted, rate).limit_denominator(1000)  # an odd rate would want a filter of millions of taps
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return np.clip(wave, -1, 1).astype(np.float32)
