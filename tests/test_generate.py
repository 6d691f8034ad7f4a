"""`generate.py` as a person uses it: in a process of its own, with prompts, pipes and terminals."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import checkpoint
from inference.dialogue import Chat, Message
from inference.engine import Engine
from inference.request import Request, Settings
from multimodal.decode import read_picture, read_sound
from multimodal.embedded import DESCRIBE, TRANSCRIBE
from tests import sights
from tokenizer import ByteTokenizer

ROOT = Path(__file__).resolve().parent.parent
TOLD = "story run, step 7, validation loss 2.5000"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model) -> Path:
    """A checkpoint of a model that was never trained: what it writes is noise, but the same noise every time."""
    path = tmp_path_factory.mktemp("run") / "best_model.pt"
    provenance = {"run": "story run", "step": 7, "val_loss": 2.5, "documents": True}
    checkpoint.write(path, checkpoint.content_of(tiny_model(), ByteTokenizer(), provenance))
    return path


def generate(*flags: object, prompt: bytes | None = None, **env: str) -> subprocess.CompletedProcess:
    """Runs it; short and greedy unless told otherwise."""
    command = [sys.executable, str(ROOT / "generate.py"), "--device", "cpu", "--max_new_tokens", "20", *map(str, flags)]
    more = {"stdin": subprocess.DEVNULL} if prompt is None else {"input": prompt}
    return subprocess.run(command, capture_output=True, timeout=120, env=environment(**env), **more)


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **env}


def text_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def refusal(done: subprocess.CompletedProcess) -> str:
    """The sentence of a run that was refused."""
    told = done.stderr.decode()
    assert done.returncode == 2, told
    assert "Traceback" not in told
    assert done.stdout == b""
    return told


def test_a_prompt_is_shown_and_continued(saved):
    done = generate("--checkpoint", saved, "--prompt", "Once é")
    text = text_of(done)
    assert text.startswith("Once é")
    assert len(text) > len("Once é") + 5
    assert done.stderr.decode().strip() == TOLD
    assert text_of(generate("--checkpoint", saved.parent, "--prompt", "Once é")) == text  # by its run's folder


def test_a_prompt_from_a_file_and_from_standard_input(saved, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Once é", encoding="utf-8")
    expected = text_of(generate("--checkpoint", saved, "--prompt", "Once é"))
    assert text_of(generate("--checkpoint", saved, "--prompt_file", file)) == expected
    assert text_of(generate("--checkpoint", saved, "--prompt_file", "-", prompt="Once é".encode())) == expected


def test_several_samples_are_numbered_and_differ(saved):
    text = text_of(generate("--checkpoint", saved, "--num_samples", 3, "--prompt", "Once"))
    samples = [part.split("\n", 1)[1] for part in text.split("--- sample ")[1:]]
    assert len(set(samples)) == 3
    assert all(sample.startswith("Once") for sample in samples)


def test_stop_strings_end_the_text(saved):
    whole = text_of(generate("--checkpoint", saved, "--prompt", "Once", "--max_new_tokens", 60))
    told = whole.removeprefix("Once").rstrip("\n")
    stop = next(c for c in told[5:] if c.isprintable() and c != "\ufffd")
    cut = text_of(
        generate("--checkpoint", saved, "--prompt", "Once", "--max_new_tokens", 60, "--stop", stop, "--stop", "@@@")
    )
    assert cut == "Once" + told[: told.index(stop)] + "\n"


def test_fewer_bits_write_too(saved):
    """Whether or not the processor has instructions for them."""
    done = generate("--checkpoint", saved, "--prompt", "Once é", "--dtype", "bfloat16", "--frequency_penalty", 1)
    assert len(text_of(done)) > len("Once é") + 5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prompt", "a", "--prompt_file", "b"], ["--prompt and --prompt_file are both given"]),
        (["--prompt_file", "nowhere.txt"], ["nowhere.txt", "No such file", "--prompt_file"]),
        (["--prompt_file", "."], ["Is a directory"]),
        (["--checkpoint", "nowhere.pt"], ["no checkpoint at nowhere.pt", "train_cli.py"]),
        (["--temperature", "-1"], ["temperature is -1.0", "--temperature"]),
        (["--frequency_penalty", "3"], ["frequency_penalty is 3.0", "from -2 to 2", "--frequency_penalty"]),
        (["--seed", "-1"], ["seed is -1", "--seed"]),
        (["--device", "gpu9"], ["gpu9", "--device cpu"]),
        (["--promt", "x"], ["did you mean --prompt?"]),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(saved, flags, told):
    message = refusal(generate(*(["--checkpoint", saved] if "--checkpoint" not in flags else []), *flags))
    assert all(word in message for word in told), message


def test_a_prompt_file_that_is_no_text(saved, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"ab\xff")
    assert "no UTF-8 text (byte 2)" in refusal(
        generate("--checkpoint", saved, "--prompt_file", tmp_path / "prompt.txt")
    )
    assert "no UTF-8 text" in refusal(generate("--checkpoint", saved, "--prompt_file", "-", prompt=b"\xff"))


def test_a_damaged_checkpoint_is_refused_by_name(saved, tmp_path):
    raw = bytearray(saved.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "broken.pt").write_bytes(raw)
    assert "broken.pt is damaged" in refusal(generate("--checkpoint", tmp_path / "broken.pt"))


@pytest.mark.skipif(os.name == "nt", reason="a Unix pipe")
def test_a_reader_that_goes_away_is_no_error(saved):
    command = f"'{sys.executable}' '{ROOT / 'generate.py'}' --device cpu --checkpoint '{saved}' --max_new_tokens 400"
    done = subprocess.run(
        ["bash", "-c", f"{command} --prompt Once | head -c 1"], capture_output=True, timeout=120, env=environment()
    )
    assert done.stdout == b"O"
    assert done.stderr.decode().strip() in (TOLD, "")


def test_a_terminal_without_unicode_shows_question_marks(saved):
    done = generate("--checkpoint", saved, "--prompt", "é日", PYTHONIOENCODING="ascii")
    assert text_of(done).startswith("??")
    assert done.stdout.isascii()


def test_a_prompt_that_is_no_unicode(saved):
    """The shell hands over any bytes; Python makes them lone surrogates."""
    command = [sys.executable, str(ROOT / "generate.py"), "--device", "cpu", "--max_new_tokens", "5"]
    command = [os.fsencode(part) for part in [*command, "--checkpoint", str(saved)]] + [b"--prompt", b"a\xffb"]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment(), stdin=subprocess.DEVNULL)
    assert text_of(done).startswith("a?b")


# ---- pictures and sounds


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Path:
    """A checkpoint of a model that sees and hears, and files to show it."""
    folder = tmp_path_factory.mktemp("seeing")
    sights.checkpoint(folder)
    for name, data in {
        "red.png": sights.picture("red"), "blue.jpg": sights.picture("blue", kind="JPEG"), "tone.wav": sights.sound(),
        "tone.mp3": sights.sound(kind="MP3"), "long.wav": sights.sound(3), "broken.png": sights.picture()[:50],
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    return folder


def answer(folder: Path, question: str, *files: str) -> str:
    """What the engine answers to files and then a question."""
    model, tokenizer, _ = checkpoint.load_model(folder / "best_model.pt")
    read = {".wav": read_sound, ".mp3": read_sound}
    media = [read.get(Path(name).suffix, read_picture)((folder / name).read_bytes(), model.config) for name in files]
    prompt = Chat(tokenizer, documents=True, places=model.places).prompt([Message("user", (*media, question))], 160, 20)
    written = []
    settings = Settings(max_new_tokens=20, temperature=0, stop=prompt.stop)
    Engine(model, tokenizer, slots=1).run([Request(prompt.ids, settings, written.append, media=prompt.media)])
    return "".join(piece.text for piece in written).lstrip() + "\n"


@pytest.mark.parametrize(("flags", "question", "files"), [
    (["--image", "red.png", "--prompt", "what"], "what", ["red.png"]),
    (["--image", "red.png"], DESCRIBE, ["red.png"]),
    (["--audio", "tone.mp3"], TRANSCRIBE, ["tone.mp3"]),
    (["--audio", "tone.wav", "--image", "red.png", "--image", "blue.jpg"], "", ["red.png", "blue.jpg", "tone.wav"]),
])  # fmt: skip
def test_a_model_answers_about_pictures_and_sounds(seeing, flags, question, files):
    flags = [str(seeing / each) if "." in each else each for each in flags]
    done = generate("--checkpoint", seeing, "--temperature", "0", *flags)
    assert text_of(done) == answer(seeing, question, *files)


def test_without_them_it_writes_text_as_any_other(seeing):
    assert text_of(generate("--checkpoint", seeing, "--prompt", "Once")).startswith("Once")


@pytest.mark.parametrize(("flags", "told"), [
    (["--image", "nowhere.png"], ["nowhere.png", "No such file", "--image"]),
    (["--image", "broken.png"], ["broken.png", "is no picture that can be read", "--image"]),
    (["--audio", "red.png"], ["red.png", "is no sound that can be read", "--audio"]),
    (["--audio", "long.wav"], ["long.wav", "lasts 3.0 s", "the model hears 1 s"]),
    ([part for _ in range(10) for part in ("--image", "red.png")], ["tokens", "the context of this model is 160"]),
])  # fmt: skip
def test_what_cannot_be_shown_is_said_in_a_sentence(seeing, flags, told):
    flags = [str(seeing / each) if "." in each else each for each in flags]
    message = refusal(generate("--checkpoint", seeing, *flags))
    assert all(word in message for word in told), message


def test_a_model_of_text_says_that_it_sees_nothing(saved, seeing):
    message = refusal(generate("--checkpoint", saved, "--image", seeing / "red.png"))
    assert "this model takes text:" in message and "--modalities image" in message


# ---- on a terminal


class Terminal:
    """A pseudo-terminal with generate.py in it."""

    def __init__(self, *flags: object):
        import pty

        self.master, slave = pty.openpty()
        command = [
            sys.executable,
            str(ROOT / "generate.py"),
            "--device",
            "cpu",
            "--max_new_tokens",
            "5",
            *map(str, flags),
        ]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell starts with & ignores Ctrl-C, and hands that on
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> str:
        """What was shown up to and with a text."""
        while text not in self.shown:
            assert self.read(), f"{text!r} never came: {self.shown!r}"
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def read(self) -> bool:
        """Takes in what the program shows; whether there was something."""
        ready, _, _ = select.select([self.master], [], [], 60)
        try:
            raw = os.read(self.master, 4096) if ready else b""
        except OSError:  # the program has ended
            raw = b""
        self.shown += raw.decode(errors="replace")
        return bool(raw)

    def type(self, raw: bytes) -> None:
        os.write(self.master, raw)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was shown last."""
        while self.read():
            pass
        os.close(self.master)
        return self.process.wait(timeout=60), self.shown


@pytest.mark.skipif(os.name == "nt", reason="a Unix terminal")
@pytest.mark.parametrize("goodbye", [b"\n", b"\x04"], ids=["an empty line", "Ctrl-D"])
def test_on_a_terminal_it_asks_for_prompts_until_it_is_told_to_end(saved, goodbye):
    terminal = Terminal("--checkpoint", saved)
    assert TOLD in terminal.wait_for("> ")
    terminal.type("Once é\n".encode())
    assert terminal.wait_for("> ").count("Once é") == 2  # as typed, and before its continuation
    terminal.type(b"not \xff text\n")
    assert "Traceback" not in terminal.wait_for("> ")
    terminal.type(goodbye)
    code, told = terminal.end()
    assert (code, told.strip()) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="a Unix terminal")
def test_ctrl_c_ends_it_without_a_traceback(saved):
    terminal = Terminal("--checkpoint", saved)
    terminal.wait_for("> ")
    time.sleep(1)  # a signal between the question and the reading would wait for the next key
    os.kill(terminal.process.pid, 2)
    code, told = terminal.end()
    assert code == 130
    assert "Traceback" not in told
