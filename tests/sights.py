"""Pictures, sounds, and a tiny model that takes them, for the tests of what sees and hears."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from config import MediaModelConfig
from multimodal.fusion import MultimodalGPT
from tests.live import save

RATE = 8000


def model(modalities: str = "image,audio", **shape) -> MultimodalGPT:
    """One that was never trained; what it sees and hears changes what it writes."""
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 160, "vocab_size": 257, "audio_seconds": 1.0}
    made = MultimodalGPT(MediaModelConfig(architecture="modern", modalities=modalities, **{**sizes, **shape}))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made.eval()


def checkpoint(folder: Path, modalities: str = "image,audio", **shape) -> Path:
    return save(folder / "best_model.pt", model(modalities, **shape))


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """The file of a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def sound(seconds: float = 0.2, pitch: float = 440, kind: str = "WAV") -> bytes:
    """The file of a tone."""
    file = io.BytesIO()
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)
    soundfile.write(file, wave, RATE, format=kind)
    return file.getvalue()


def lay_out(folder: Path) -> None:
    """The files that the documents speak of: a picture, a sound, rows of both, photographs, pictures and sounds by class."""
    (folder / "cat.png").write_bytes(picture())
    (folder / "question.wav").write_bytes(sound())
    for number in range(10):
        for animal, colour in (("cat", "grey"), ("dog", "brown")):
            for file in (folder / f"photos/{animal}_{number}.png", folder / f"animals/{animal}/{number}.png"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(colour))
        for digit, pitch in (("six", 300), ("seven", 700)):
            file = folder / f"digits/{digit}/{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound(pitch=pitch))
    rows = [{"image": "cat.png", "text": "a cat"}, {"audio": "question.wav", "text": "what is it"}] * 10
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def image_url(file: bytes, mime: str = "image/png") -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(file).decode()}"}}


def input_audio(file: bytes, form: str = "wav") -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file).decode(), "format": form}}
