"""Writes docs/commands_reference.md from what the programs themselves say: `python docs/generate_reference.py`.

The flags and defaults come from the parsers, the presets from config.py, the targets from the Makefile, the exit codes
from the docstrings of train.py and serve.py. The table of the server's variables in docs/SERVING.md is written as well, from
ServeConfig. A test compares the files with what this makes, so that they cannot drift apart.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import generate  # noqa: E402
import serve  # noqa: E402
import train_cli  # noqa: E402
from config import PRESETS, GenerateConfig, MediaModelConfig, Parser, ServeConfig, TrainConfig, variable  # noqa: E402
from training import verbs  # noqa: E402

FILE = ROOT / "docs" / "commands_reference.md"
GUIDE = ROOT / "docs" / "SERVING.md"
VARIABLES = re.compile(r"(?<=<!-- variables -->\n).*?(?=<!-- end of variables -->)", re.S)

HEAD = """# Every command and every flag

This page is generated: `python docs/generate_reference.py` writes it from the programs themselves, and a test checks
that it is current. `--help` shows the same on your screen.

A flag carries the name of its setting, and dashes do as well as underscores: `--n_layer 8` and `--n-layer 8`. A preset
fills in some settings, and flags win over the preset. Yes-or-no flags come in pairs, such as `--resume` and
`--no-resume`. Paths that you type are taken from the folder you stand in. A misspelt flag is refused, with the name of
the one that you probably meant.
"""

ENVIRONMENT = """## Environment variables

| variable | what it does |
| --- | --- |
| `LLM_DATA_DIR` | in place of `data/`: token shards, this machine's measurements, local copies such as `wikitext-2/` |
| `TIKTOKEN_CACHE_DIR` | folder with GPT-2's vocabulary files, for machines without a network |
| `HF_ENDPOINT` | a mirror of the Hugging Face Hub, in place of `https://huggingface.co` |
| `HF_HUB_OFFLINE=1` | do not ask the Hub, use what is cached |
| `HF_HOME`, `HF_DATASETS_CACHE`, `HF_HUB_CACHE` | where the Hub's downloads are kept |
| `OMP_NUM_THREADS` | CPU threads, where `--threads` does not say |
| `PYTHON`, `TORCH_INDEX_URL` | for set-up: which Python, and where torch comes from; see [INSTALL.md](INSTALL.md) |

The server's own: [serving](SERVING.md#every-variable).
"""


class Caught(Exception):
    """Carries a parser out of the function that made it."""


class Catcher(Parser):
    def parse_args(self, *_unused: Any) -> argparse.Namespace:  # type: ignore[override]
        raise Caught(self)


def parsers() -> dict[str, Parser]:
    """The parser of every command, by what one types: `train_cli.py evaluate`, `generate.py`, `serve.py`."""
    doors = {f"train_cli.py {verb}": lambda verb=verb: train_cli.VERBS[verb]([]) for verb in train_cli.VERBS}
    doors["generate.py"] = lambda: generate.main([])
    doors["serve.py"] = lambda: serve.settings([])
    found = {}
    with contextlib.ExitStack() as patches:
        for module in (train_cli, verbs, generate, serve):
            patches.enter_context(patch.object(module, "Parser", Catcher))
        for name, enter in doors.items():
            try:
                enter()
            except Caught as caught:
                parser = caught.args[0]
                parser.__class__ = Parser
                found[name.removesuffix(" train")] = parser
    return found


def sections(config: type) -> dict[str, str]:
    """The comment that a field of a dataclass stands under, by the field's name; inherited fields come first."""
    found, heading = {}, ""
    classes = reversed([each for each in config.__mro__ if dataclasses.is_dataclass(each)])
    for line in "".join(map(inspect.getsource, classes)).splitlines():
        if match := re.fullmatch(r"    # (.+)", line):
            heading = match[1]
        elif match := re.match(r"    (\w+): .*= (?:setting|secret)\(", line):
            found[match[1]] = heading
    return found


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def row(action: argparse.Action) -> str:
    """A flag as a line of a table: name, default, what it does."""
    names = [name for name in action.option_strings if "-" not in name.removeprefix("--")] or [action.dest]
    if isinstance(action, argparse.BooleanOptionalAction):
        names = [names[0], names[0].replace("--", "--no-", 1)]
    text = (action.help or "").replace("%%", "%")
    shown = re.search(r" \[([^][]*)\]$", text)
    default = shown[1] if shown else ""
    if shown:
        text = text[: shown.start()]
    if action.choices and not all(choice in text for choice in action.choices):
        text += f" ({', '.join(action.choices)})"
    if action.required and action.option_strings:
        default = "required"
    flag = ", ".join(f"`{name}`" for name in names)
    return f"| {flag} | {f'`{default}`' if default and default != 'required' else default} | {cell(text)} |"


def table(actions: list[argparse.Action]) -> list[str]:
    return [
        "| flag | default | what it does |",
        "| --- | --- | --- |",
        *(row(a) for a in actions if a.dest != "help"),
        "",
    ]


def by_section(parser: Parser, config: type) -> list[str]:
    """The flags of a dataclass, in tables under the headings that its source has."""
    headings, actions = sections(config), {action.dest: action for action in parser._actions}
    lines: list[str] = []
    for heading in dict.fromkeys(headings.values()):
        if heading:
            lines += [f"### {heading[0].upper()}{heading[1:]}", ""]
        lines += table([actions[name] for name, under in headings.items() if under == heading])
    return lines


def presets() -> list[str]:
    lines = ["| preset | what it sets |", "| --- | --- |"]
    for name, values in PRESETS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{key} {value}`' for key, value in values.items())} |")
    return [*lines, ""]


def targets() -> list[str]:
    """What `make help` lists."""
    lines: list[str] = []
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"##@ (.+)", line):
            lines += ["", f"**{match[1]}**", "", "| target | what it does |", "| --- | --- |"]
        elif match := re.match(r"([a-z-]+):.*## (.+)", line):
            lines.append(f"| `make {match[1]}` | {cell(match[2])} |")
    return [*lines[1:], ""]


def variables() -> str:
    """The server's variables as a table, under the headings that `ServeConfig` has."""
    lines, before = ["", "| variable | default | what it does |", "| --- | --- | --- |"], ""
    fields = {item.name: item for item in dataclasses.fields(ServeConfig)}
    for name, heading in sections(ServeConfig).items():
        if heading and heading != before:
            lines.append(f"| **{heading}** | | |")
            before = heading
        if heading:  # host and port are flags
            lines.append(variable_row(fields[name]))
    return "\n".join([*lines, "", ""])


def variable_row(item: dataclasses.Field) -> str:
    """A variable as a line of the table."""
    text = item.metadata["help"]
    if choices := [choice for choice in item.metadata["choices"] if choice and choice not in text]:
        text += f" ({', '.join(choices)})"
    default = ("no", "yes")[item.default] if isinstance(item.default, bool) else item.default
    shown = f"{default:g}" if isinstance(default, float) else str(default) if default != () else ""
    return f"| `{variable(item.name)}` | {f'`{shown}`' if shown else ''} | {cell(text)} |"


def guide() -> str:
    """The guide to serving, with its table of variables as it should be."""
    return VARIABLES.sub(lambda _: variables(), GUIDE.read_text(encoding="utf-8"))


def exit_codes(file: str) -> str:
    """The paragraph of a file's docstring that tells them."""
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return next(part for part in text.split("\n\n") if "exit code" in part.lower())


def reference() -> str:
    """The whole page."""
    known = parsers()
    train = known["train_cli.py"]
    lines = [
        HEAD,
        "## make",
        "",
        *targets(),
        '`ARGS="..."` passes flags on: `make train ARGS="--preset small --time 10m"`.',
        "",
    ]
    lines += ["## python train_cli.py", "", "Trains. `python train.py` is the same.", ""]
    lines += by_section(train, TrainConfig)
    lines += ["### The model", "", *by_section(train, MediaModelConfig)]
    lines += ["### The rest", "", *table([action for action in train._actions if action.dest == "list_presets"])]
    lines += ["### What the presets set", "", *presets()]
    lines += ["### How it ends", "", exit_codes("train.py"), ""]
    for name, parser in known.items():
        if name in ("train_cli.py", "generate.py", "serve.py"):
            continue
        lines += [f"## python {name}", ""]
        if name.endswith(" plan"):
            told = "Shows what a run would take, and trains nothing. It has all the flags of training, and `--measure`: it also compiles the model, "
            lines += [told + "to tell what that is worth here.", ""]
            continue
        lines += [parser.description or "", "", *table(parser._actions)]
    lines += ["## python generate.py", "", known["generate.py"].description or "", ""]
    lines += by_section(known["generate.py"], GenerateConfig)
    lines += ["## python serve.py", "", known["serve.py"].description or "", "", *table(known["serve.py"]._actions)]
    lines += [exit_codes("serve.py"), ""]
    return "\n".join([*lines, ENVIRONMENT])


if __name__ == "__main__":
    for file, text in ((FILE, reference()), (GUIDE, guide())):
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")
