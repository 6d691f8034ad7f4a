"""The documents say what the code does: links lead somewhere, commands parse, marked ones run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

import checkpoint
import train_cli
from config import PRESETS, ServeConfig, take, variable
from server.errors import DOCUMENTED
from server.schemas import GenerateRequest
from tests import sights
from tests.live import load, serving, wait_until
from training.plan import count_parameters

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```", re.M | re.S)
DOORS = ("train.py", "train_cli.py", "generate.py", "serve.py")
INDEX = ROOT / "docs" / "README_DOCS.md"
# What is laid over a documented training command, so that it takes a second.
SMALL, SHALLOW = shlex.split("--n_layer 1 --n_head 2 --n_embd 32"), shlex.split("--depth 1")
TINY = shlex.split(
    "--block_size 160 --batch_size 4 --max_iters 8 --eval_interval 4 --time= "
    "--tokenizer byte --n_stories 40 --sample_tokens 4 --no-progress --device cpu --dtype float32 --compile off"
)

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_current(generator):
    assert read(generator.FILE) == generator.reference(), "run python docs/generate_reference.py"
    assert read(generator.GUIDE) == generator.guide(), "run python docs/generate_reference.py"


# ---- links


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(path)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    """What a page links to, but for the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(path)))
    return [target for target in found if not re.match(r"https?://", target)]


def leads_somewhere(target: str, page: Path) -> bool:
    name, _, anchor = target.partition("#")
    file = page.parent / name if name else page
    return file.exists() and (not anchor or anchor in anchors(file))


@page
def test_links_lead_somewhere(page):
    for target in links(page):
        assert leads_somewhere(target, page), f"{page.name} links to {target}"


@page
def test_files_that_are_named_exist(page):
    """`training/optim.py` in the text is a file here."""
    for name in re.findall(r"`([\w/]+\.(?:py|sh|toml))`", read(page)):
        assert any((folder / name).exists() for folder in (ROOT, *ROOT.glob("[a-z]*/"))), f"{page.name} names {name}"


@pytest.fixture(scope="module")
def ours() -> dict[str, object]:
    """Our modules and the classes in them, by name."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("training/*.py"), *ROOT.glob("inference/*.py"), *ROOT.glob("multimodal/*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__init__"]
    modules = [importlib.import_module(name) for name in names]
    classes = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    return classes | {module.__name__.rpartition(".")[2]: module for module in modules}


@page
def test_names_of_the_code_exist(page, ours):
    """`data.splitter` and `Trainer.spike` in the text are things here."""
    for owner, name in re.findall(r"`(\w+)\.(\w+)(?:\(.*?\))?`", FENCE.sub("", read(page))):
        if owner in ours and name not in ("py", "md", "pt", "gguf", "safetensors", "yaml", "sbatch", "jsonl", "parquet"):  # files
            held = ours[owner]
            known = hasattr(held, name) or name in getattr(held, "__annotations__", {})
            assert known or f".{name} = " in inspect.getsource(held), f"{page.name} names {owner}.{name}"


def test_the_index_names_every_page_once():
    named = Counter(re.findall(r"^\| \[.*?\]\(([\w./-]+\.md)\) \|", read(INDEX), re.M))
    wanted = {path.name for path in (ROOT / "docs").glob("*.md")} - {INDEX.name}
    assert set(named) == wanted | {"../README.md", "../README.zh-CN.md"}
    assert set(named.values()) == {1}


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead += {
            (page.parent / target.partition("#")[0]).resolve()
            for target in links(page)
            if target.partition("#")[0].endswith(".md")
        } - reached
    assert reached == set(PAGES)


# ---- commands


def commands(path: Path) -> list[list[str]]:
    """The commands of a page, in fences and between backticks, as words; without variables set before them."""
    text = read(path)
    lines = [line for _, kind, body in FENCE.findall(text) if kind == "sh" for line in body.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in lines:
        if not re.match(r"(\w+=\S+ )*(\S*python|make|torchrun) ", line):
            continue
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words:
                found.append(words)
    return found


def door(words: list[str]) -> tuple[str, list[str]] | None:
    """The front door that a command opens, and what it is told: (`train_cli.py evaluate`, its flags)."""
    if words[0] == "torchrun":
        words = ["python", *words[words.index("--") + 1 :]]
    if words[0] == "make":
        flags = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), None)
        verbs = {"train": "train_cli.py", "info": "train_cli.py plan", "generate": "generate.py", "serve": "serve.py"}
        verbs |= {"watch": "train_cli.py watch", "train-multimodal": "train_cli.py"}
        name = verbs.get(words[1])
        return (name, shlex.split(flags)) if flags is not None and name and "..." not in flags else None
    if len(words) < 2 or words[1] not in DOORS:
        return None
    name, flags = words[1].replace("train.py", "train_cli.py"), words[2:]
    if name == "train_cli.py" and flags and flags[0] in train_cli.VERBS:
        return f"{name} {flags[0]}", flags[1:]
    return name, flags


@page
def test_commands_parse(page, generator, capsys):
    known = generator.parsers()
    for words in commands(page):
        if entered := door(words):
            try:
                given = vars(known[entered[0]].parse_args(entered[1]))
            except SystemExit:
                pytest.fail(f"{page.name}: {' '.join(words)}: {capsys.readouterr().err}")
            assert given.get("preset", "quick") in PRESETS, f"{page.name}: {' '.join(words)}"


@page
def test_flags_that_are_named_exist(page, generator):
    """`--patience 5` in the text is a flag of ours, or of a tool that the page names."""
    known = {
        name for parser in generator.parsers().values() for action in parser._actions for name in action.option_strings
    }
    theirs = {"--extra-index-url", "--break-system-packages", "--install", "--index-url", "--version", "--"}
    theirs |= {"--cpus", "--env-file", "--gpus", "--stop-timeout", "--user"}  # Docker's
    theirs |= {"--run-path", "--run_path"}  # torchrun's
    theirs |= {"--nodes", "--signal", "--requeue", "--kill-on-bad-exit", "--wait", "--open-mode"}  # SLURM's
    for words in re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page))):
        bench = re.match(r"python -m (benchmarks\.\w+)", words)
        allowed = flags_of(bench[1]) if bench else known | theirs
        for flag in re.findall(r"(?<!\S)--[\w-]*", words):
            assert flag in allowed, f"{page.name} names {flag}"


def flags_of(bench):
    """What a benchmark declares, read from its source: `benchmarks.step` -> {"--runs", "--nanogpt", ...}."""
    source = read(ROOT / f"{bench.replace('.', '/')}.py")
    return set(re.findall(r'add_argument\(\s*"(--\w+)"', source))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on this machine")
def test_make_targets_exist():
    named = {(words[1], page.name) for page in PAGES for words in commands(page) if words[0] == "make"}
    wanted = dict(item for item in sorted(named) if re.fullmatch(r"[a-z-]+", item[0]))
    assert {"train", "test", "generate", "serve"} <= set(wanted)
    done = subprocess.run(["make", "-n", *wanted], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{wanted}: {done.stderr}"


@page
def test_python_is_python(page):
    """What is shown, and what stands behind `python -c` and `python -m`."""
    for body in [body for _, kind, body in FENCE.findall(read(page)) if kind == "python"]:
        compile(body, page.name, "exec")
    for _, flag, what, *_ in [words for words in commands(page) if words[1:2] in (["-c"], ["-m"])]:
        if flag == "-c":
            compile(what, page.name, "exec")
        elif what.startswith("benchmarks."):
            assert (ROOT / what.replace(".", "/")).with_suffix(".py").exists(), f"{page.name} names {what}"


# ---- every command is run, here or where EXCUSED says; snippets of Python where they are marked with <!-- run -->

TEXT = "Once upon a time a small model read a book. It read it again, and then it knew how the next line began.\n" * 60
FIRST = "python train_cli.py --data mybook.txt --run mybook"  # the run that the pages speak of
OURS = {"train": "train_cli.py --preset quick", "info": "train_cli.py plan --preset quick", "generate": "generate.py"}
OURS |= {"train-multimodal": "train_cli.py --preset multimodal"}
OURS |= {"serve": "serve.py", "serve-dev": "serve.py --dev", "watch": "train_cli.py watch"}  # what make opens
EXCUSED = {  # the beginning of a command, and why no test of this file runs it
    "make (setup|setup-all|install|install-force|init|check-deps|clean)( |$)": "changes venv/: tests/test_setup.py plays it with stand-ins",
    "make (test|quick-test|test-slow|test-gpu|test-browser|lint)( |$)": "runs these very tests",
    r"(make bench|python -m benchmarks\.\w+)$": "takes minutes, and measures: its module is there",
    "make (image|image-push|image-digest|image-sbom|obs-up|obs-down|verify-deploy)( |$)": "wants Docker: make verify-deploy runs it",
    "docker ": "wants Docker: make verify-deploy builds, starts and stops the image",
    "kubectl ": "wants a cluster: tests/test_clusters.py holds what it applies against Kubernetes' schemas",
    "sbatch ": "wants SLURM: tests/test_clusters.py plays it",
    "gh ": "wants GitHub, and an image that was pushed there",
    "vllm ": "wants a GPU: tests/test_export.py loads the export with transformers",
    "(llama-cli|ollama) ": "are not here: tests/test_gguf.py asks llama.cpp where it is installed",
    "(sudo|pip|python3? -m venv|\\. venv/bin/activate)( |$)": "changes the machine or an environment: the workflow goes this way",
    "tail -f|tensorboard ": "never ends: what it reads is read by test_fields_of_the_log_are_documented",
    r"python train_cli\.py (export checkpoints/big|consolidate) ": "wants a run of several ranks: test_launched_commands_run makes one",
    r"python train_cli\.py .*hf:OWNER/NAME": "stands for a name: tests/test_hub.py has a Hub of its own",
    r"(set -a|set \+a|\. \./\.env|cp \.env\.example .*)$": "is for a file of one's own: tests/test_server_config.py reads the example",
}
DRIVER = """
import contextlib, getpass, io, json, os, shutil, sys, traceback
import checkpoint, generate, pathlib, train_cli

getpass.getpass = lambda: "a password"
failed = []
for folder, words in json.load(open(sys.argv[1])):
    os.chdir(folder)
    checkpoint.ROOT = train_cli.ROOT = pathlib.Path(folder)  # where the default folders are
    again = {"--resume", "--verify_resume"} & set(words)
    for flag, places in {"--run": () if again else ("checkpoints", "logs"), "--out": (".",)}.items():
        for place in places if flag in words else ():  # a page may go two ways to one place
            shutil.rmtree(os.path.join(place, words[words.index(flag) + 1]), ignore_errors=True)
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if words[0] == "-c":
                exec(words[1], {})
            else:
                (generate if words[0] == "generate.py" else train_cli).main(words[1:])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
    if code:
        failed.append(f"{folder}: {words}\\n{said.getvalue()}")
if failed:
    sys.exit("\\n".join(failed))
"""


def simple(body: str) -> list[list[str]]:
    """The commands of a fence, one by one, as words. What curl is part of stays a whole line."""
    found = []
    body = re.sub(r"<<(\w+)\n.*?^\1$", "", body, flags=re.M | re.S)  # what a command is given to read is no command
    for line in re.sub(r"\\\n\s*", "", body).splitlines():
        if "curl " in line:
            found.append([line])
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in (";", "&&", "|"):
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


def opened(words: list[str]) -> list[str]:
    """What a command hands to Python: the words behind `python`, or what make puts there; nothing where it is another program's."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["make"] and len(words) > 1 and words[1] in OURS:
        given = dict(word.split("=", 1) for word in words[2:])
        place = [word for name in ("HOST", "PORT") if name in given for word in (f"--{name.lower()}", given[name])]
        verb = OURS[words[1]].split()
        own = shlex.split(given["ARGS"]) if "ARGS" in given else []
        return [*verb[: 1 if own and words[1] == "train" else 2 if own and words[1] == "info" else None], *place, *own]
    python = bool(words) and re.fullmatch(r"\S*python", words[0])
    return words[1:] if python and (words[1] in DOORS or words[1] == "-c") else []


def way(words: list[str]) -> str:
    """How a command is run here: played, served, launched, asked or set; empty where it has to be excused."""
    if len(words) == 1 and "curl " in words[0]:
        return "asked"
    if any(re.match(pattern, " ".join(words)) for pattern in EXCUSED):
        return ""
    if words[0] == "export" or all(re.fullmatch(r"\w+=.*", word) for word in words):
        return "set"
    if "torchrun" in words:
        return "launched"
    if python := opened(words):
        return "served" if python[0] == "serve.py" or python[:2] == ["train_cli.py", "watch"] else "played"
    return ""


def shells(path: Path) -> list[list[str]]:
    """The commands of a page's fences."""
    return [words for _, kind, body in FENCE.findall(read(path)) if kind == "sh" for words in simple(body)]


@page
def test_every_command_is_run_or_excused(page):
    for words in shells(page):
        line = " ".join(words)
        bare = re.sub(r"^(\w+=\S* )+", "", line)
        assert way(words) or any(re.match(pattern, bare) for pattern in EXCUSED), f"{page.name}: who runs {line!r}?"


def test_every_excuse_is_needed():
    lines = [re.sub(r"^(\w+=\S* )+", "", " ".join(words)) for page in PAGES for words in shells(page)]
    for pattern in EXCUSED:
        assert any(re.match(pattern, line) for line in lines), f"nothing begins like {pattern!r} any more"


def small(words: list[str]) -> list[str]:
    """A documented command, made to take a second."""
    name, _ = door(["python", *words]) or ("", [])
    if name == "generate.py":
        return [*words, "--max_new_tokens", "4"]
    if name != "train_cli.py" or "--list_presets" in words:
        return words
    while "--time" in words:
        at = words.index("--time")
        words = words[:at] + words[at + 2 :]
    again = {"--resume", "--verify_resume"} & set(words)
    every = ["--save_interval", "4"] if "--save_interval" in words else []
    vocabulary = ["--tokenizer", "bpe", "--vocab_size", "300"] if "--vocab_size" in words else []
    own = ["--data", "rows.jsonl"] if "multimodal" in words and "--data" not in words else []  # the embedded take minutes to make
    own += ["--data", "digits"] if "--data speech" in " ".join(words) else []  # the last one counts
    tiny = [*(SHALLOW if "--depth" in words else SMALL), *TINY]
    return [*words, *own, *(["--max_iters", "12", "--no-progress"] if again else tiny), *every, *vocabulary]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    """A folder in which the commands of every page were run, each page in a folder of its own."""
    home, jobs = tmp_path_factory.mktemp("docs"), []
    for page in PAGES:
        if page.name == "README.zh-CN.md":  # its commands are README.md's, as another test says
            continue
        fences = [(kind, body) for mark, kind, body in FENCE.findall(read(page)) if kind == "sh" or (mark and kind == "python")]
        folder = home / page.stem
        (folder / "notes").mkdir(parents=True)
        for name in ("mybook.txt", "letters.txt", "notes/a.md", "notes/b.md"):
            (folder / name).write_text(TEXT)
        sights.lay_out(folder)
        told = []
        for kind, body in fences:
            rows = [["-c", body]] if kind == "python" else [opened(words) for words in simple(body) if way(words) == "played"]
            told += [(str(folder), small(words)) for words in rows]
        jobs += [(str(folder), small(FIRST.split()[1:])), *told] if told else []
    (home / "jobs.json").write_text(json.dumps(jobs))
    env = {**os.environ, "LLM_DATA_DIR": str(home / "data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", DRIVER, str(home / "jobs.json")]
    done = subprocess.run(call, cwd=home, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return home


def test_commands_run(played):
    assert (played / "README" / "exported" / "model.safetensors").exists()
    assert (played / "START_HERE" / "logs" / "mybook" / "loss.png").exists()


def distinct(kind: str) -> list[list[str]]:
    """The commands of all pages that are run in such a way, each once."""
    found = [tuple(words) for page in PAGES for words in shells(page) if way(words) == kind]
    return [list(words) for words in dict.fromkeys(found)]


LAUNCHED = {" ".join(words[words.index("--") + 1 :]): words for words in distinct("launched")}


@pytest.mark.parametrize("what", [w if "shakespeare" in w else pytest.param(w, marks=pytest.mark.slow) for w in LAUNCHED])
def test_launched_commands_run(what, tmp_path, monkeypatch):
    """torchrun with two processes on this machine in place of many on others. Shards that come of it are made whole, and exported."""
    words = LAUNCHED[what]
    (tmp_path / "mybook.txt").write_text(TEXT)
    program, *flags = words[words.index("--") + 1 :]
    flags = [word.replace("/shared/corpus", str(tmp_path / "mybook.txt")) for word in flags]
    checkpoints, logs = tmp_path / "checkpoints", tmp_path / "logs"
    own = [*small(["train_cli.py", *flags])[1:], "--n_kv_head", "2", "--out_dir", str(checkpoints), "--log_dir", str(logs)]
    how = ["--no-python"] if "--no-python" in words else []
    monkeypatch.setenv("PYTHON", sys.executable)  # for deploy/train.sh
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LLM_DATA_DIR": str(tmp_path / "data"), "RUN": "team", "OUT_DIR": str(checkpoints)}
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *how, "--", str(ROOT / program), *own]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = [path for path in checkpoints.iterdir() if path.is_dir() and not path.is_symlink()]
    assert list(logs.glob("*/summary.json"))
    if "--fsdp" in flags:
        for verb in (["consolidate", str(run)], ["export", str(run), "--out", str(tmp_path / "exported")]):
            with pytest.raises(SystemExit) as end:
                train_cli.main(verb)
            assert not end.value.code


SERVED = {" ".join(opened(words)): opened(words) for words in distinct("served")}


@pytest.mark.skipif(os.name == "nt", reason="ended by SIGTERM")
@pytest.mark.parametrize("what", [w if w in ("serve.py", "train_cli.py watch") else pytest.param(w, marks=pytest.mark.slow) for w in SERVED])
def test_served_commands_answer(what, played):
    """Each on a free port, in the folder of a page; its first page is there, and it ends when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: text for name, text in os.environ.items() if not name.startswith("LLM_")} | {"OMP_NUM_THREADS": "1"}
    program, *flags = SERVED[what]
    command = [sys.executable, str(ROOT / program), *flags, "--port", str(port)]
    process = subprocess.Popen(command, cwd=played / "README", env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/", follow_redirects=True).status_code == 200
        return False

    try:
        wait_until(answers, 120)
    finally:
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM), told


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not on this machine")
@page
def test_settings_that_are_exported_are_taken(page):
    lines = [" ".join(words) for words in shells(page) if way(words) == "set"]
    script = "\n".join([*lines, "env"])
    done = subprocess.run(["sh", "-ec", script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("LLM_"))
    ServeConfig.from_env(told)


def test_a_checkpoint_of_nanogpt_is_carried_over(tmp_path, monkeypatch, gpt2_folder):
    """The snippet of CHECKPOINT_UPDATE.md, on a file with nanoGPT's names, and transformers' opinion of the same weights."""
    transformers = pytest.importorskip("transformers")
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, vocab_size=50304, n_positions=32)).eval()
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # GPT-2's lie the other way
    weights = {f"_orig_mod.{name}": w.T if name.endswith(turned) else w for name, w in theirs.state_dict().items()}
    args = {**shape, "block_size": 32, "dropout": 0.0, "bias": True, "vocab_size": 50304}
    held = {"model": weights, "model_args": args, "iter_num": 7, "best_val_loss": torch.tensor(3.0)}
    torch.save(held, tmp_path / "ckpt.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_folder))
    text = read(ROOT / "docs" / "CHECKPOINT_UPDATE.md")
    [snippet] = [body for _, kind, body in FENCE.findall(text) if kind == "python" and "ckpt.pt" in body]
    exec(compile(snippet, "CHECKPOINT_UPDATE.md", "exec"), {})
    model, tokenizer, provenance = checkpoint.load_model("checkpoints/nanogpt")
    ids = torch.tensor([tokenizer.encode("Once upon a time, there was a fox.").tolist()])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits[..., :50257], atol=1e-5, rtol=1e-4)
    assert provenance["step"] == 7


def test_fields_of_the_log_are_documented(played):
    """The tables of training_visualization.md name what a run writes, field by field."""
    text, log = read(ROOT / "docs" / "training_visualization.md"), played / "training_visualization" / "logs" / "mybook"
    for line in read(log / "events.jsonl").splitlines():
        event = json.loads(line)
        row = next((row for row in text.splitlines() if row.startswith(f"| `{event['event']}` |")), None)
        assert row, f"the event {event['event']} is not documented"
        if event["event"] != "end":
            assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == set(event) - {"event", "time"}
    table = text[text.index("## summary.json") : text.index("## TensorBoard")]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(json.loads(read(log / "summary.json")))


# ---- the server's pages: what they say of it is so, and their curl lines and snippets work against a live one

ADDRESS = "http://127.0.0.1:8000"
GUARDED = {
    "LLM_API_KEYS": "prod-key-1,prod-key-2", "LLM_USERS": "admin:admin123", "LLM_ADMIN_KEY": "admin-key",
    "LLM_METRICS_TOKEN": "metrics-token",
}  # fmt: skip
ASKING = [path for path in PAGES if ADDRESS in read(path)]
GUIDE = ROOT / "docs" / "SERVING.md"


@dataclass(frozen=True)
class Sites:
    """Two servers of one model: an open one, and one that asks who is there; and a folder with the files that the pages show it."""

    open: str
    guarded: str
    folder: Path

    def place(self, text: str) -> str:
        """A command or snippet, sent to the server that it is meant for."""
        named = re.search(r"prod-key|Authorization|oauth", text)
        return text.replace(ADDRESS, self.guarded if named else self.open)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = load(sights.checkpoint(tmp_path_factory.mktemp("model"), block_size=512))
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def sites(host, tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("open", "guarded")]
    names = {name.removeprefix("LLM_").lower(): text for name, text in GUARDED.items()}
    shown = tmp_path_factory.mktemp("shown")
    (shown / "cat.png").write_bytes(sights.picture())
    (shown / "question.wav").write_bytes(sights.sound())
    names["api_keys"] = tuple(names["api_keys"].split(","))
    with (
        serving(host, folders[0], api_keys=(), docs=True) as unguarded,
        serving(host, folders[1], **names) as guarded,
    ):
        yield Sites(unguarded, guarded, shown)


@pytest.fixture(scope="module")
def described(sites) -> dict[str, dict]:
    """The paths of the API, by its own document, and those that it does not speak of."""
    return {**httpx.get(f"{sites.open}/openapi.json").json()["paths"], "/metrics": {"get": {}}}


@page
def test_variables_that_are_named_exist(page):
    known = {variable(item.name) for item in dataclasses.fields(ServeConfig)} | {"LLM_DATA_DIR", "LLM_TEST_DATA"}
    assert set(re.findall(r"\bLLM_[A-Z_]+\b", read(page))) <= known


@page
def test_endpoints_that_are_named_exist(page, described):
    text = read(page)
    for methods, path in re.findall(r"`((?:(?:GET|POST|DELETE)(?:`, `)?)+) (/[^`\s]*)`", text):
        for method in re.findall("[A-Z]+", methods):
            assert method.lower() in described.get(path, {}), f"{page.name} names {method} {path}"
    for path in re.findall(rf"{ADDRESS}(/[\w/{{}}-]+)", text):
        known = [re.sub(r"\{\w+\}", r"[\\w-]+", each) for each in (*described, "/docs", "/openapi.json", "/v1")]
        assert any(re.fullmatch(each, path) for each in known), f"{page.name} asks {path}"


@pytest.mark.parametrize("name", ["SERVING.md", "QUICK_REFERENCE.md"])
def test_every_endpoint_is_documented(name, described):
    rows = [line.split("|")[1] for line in read(ROOT / "docs" / name).splitlines() if line.startswith("| `")]
    for path, methods in described.items():
        for method in methods:
            assert any(f"{path}`" in row and method.upper() in row for row in rows), f"{name}: {method} {path}"


def test_the_table_of_sampling_names_every_field():
    text = read(GUIDE)
    table = text[text.index("## Sampling") : text.index("They work in this order")]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.M))
    assert set(rows) == set(GenerateRequest.model_fields)
    for name, item in GenerateRequest.model_fields.items():
        if isinstance(item.default, int | float):
            assert rows[name] == str(item.default).lower(), name


def test_the_table_of_refusals_is_complete():
    text = read(GUIDE)
    table = text[text.index("| status |") : text.index("Every error has one shape")]
    assert set(re.findall(r"^\| (\d+) \|", table, re.M)) >= {str(status) for status in DOCUMENTED}
    source = "".join(read(path) for path in (ROOT / "server").glob("*.py"))
    assert set(re.findall(r'\bcode="(\w+)"', source)) <= set(re.findall(r"`(\w+)`", table))
    for code in re.findall(r"`([a-z]+_[a-z_]+)`", table):
        assert f'"{code}"' in source, code


def test_the_scrape_config_is_yaml():
    yaml = pytest.importorskip("yaml")
    [body] = [body for _, kind, body in FENCE.findall(read(GUIDE)) if kind == "yaml"]
    [job] = yaml.safe_load(body)["scrape_configs"]
    assert job["static_configs"] == [{"targets": [ADDRESS.removeprefix("http://")]}]


def answers(printed: str) -> list:
    """The JSON documents that some curl lines printed, one behind the other, and the events of streams."""
    left, found = re.sub(r"(?:^|(?<=\}))data: (\[DONE\])?", "", printed, flags=re.M).strip(), []
    while left:
        value, length = json.JSONDecoder().raw_decode(left)
        found.append(value)
        left = left[length:].strip()
    return found


def shape(value):
    """The names in a JSON value, without what they hold; of a list that of its first element."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else None


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on this machine")
@pytest.mark.parametrize("page", ASKING, ids=lambda path: path.name)
def test_curl_lines_work_and_print_what_the_page_shows(page, sites):
    login = {"username": "admin", "password": "admin123"}
    fences = [(kind, body) for _, kind, body in FENCE.findall(read(page))]
    for (kind, body), (_, below) in zip(fences, [*fences[1:], ("", "")], strict=True):
        if kind != "sh" or not re.search(r"^(\w+=\$\()?curl ", body, re.M):
            continue
        script = sites.place(body).replace("curl ", "curl -sS ")
        if "<access_token>" in script:
            token = httpx.post(f"{sites.guarded}/oauth/token", data=login).json()["access_token"]
            script = script.replace("<access_token>", token)
        how = {"env": {**os.environ, **GUARDED}, "cwd": sites.folder}
        done = subprocess.run(["sh", "-ec", script], **how, capture_output=True, text=True)
        assert done.returncode == 0, f"{body}{done.stderr}"
        if "/metrics" in body:
            continue
        printed, shown = answers(done.stdout), answers(below) if below.startswith(("{", "data: ")) else []
        assert ("-N" in body) == done.stdout.endswith("data: [DONE]\n\n"), body
        if shown:
            assert shape(printed[-1]) == shape(shown[-1]), body
        if shown and len(printed) > 1:  # of a stream the first event as well; a quick one is over with its first
            assert shape(printed[0]) == shape(shown[0]), body
        assert any("error" in each for each in printed) == any("error" in each for each in shown), done.stdout


@pytest.mark.parametrize("page", ASKING, ids=lambda path: path.name)
def test_snippets_that_ask_the_server_run(page, sites, capsys, monkeypatch):
    monkeypatch.chdir(sites.folder)
    snippets = [body for _, kind, body in FENCE.findall(read(page)) if kind == "python" and ADDRESS in body]
    for body in snippets:
        code, printed = compile(sites.place(body), page.name, "exec"), ""
        for _ in range(2):  # a text that is drawn may end with its first token, but hardly twice
            exec(code, {})
            printed = capsys.readouterr().out
            if printed:
                break
        assert printed, body
    assert snippets or page.name not in ("README.md", "README.zh-CN.md", "SERVING.md")


def test_the_metrics_that_are_named_are_there(sites):
    httpx.post(f"{sites.open}/v1/generate", json={"prompt": "Once", "max_new_tokens": 2})
    page = httpx.get(f"{sites.open}/metrics").text
    told = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"^(llm_\w+)", page, re.M)}
    named = {re.sub("_bucket$", "", name) for name in re.findall(r"\bllm_\w+", read(GUIDE))}
    assert named == told
    assert {"process_resident_memory_bytes", "process_open_fds"} <= set(re.findall(r"^(process_\w+)", page, re.M))


# ---- two languages, one content


def test_the_chinese_readme_says_the_same():
    pages = [read(ROOT / name) for name in ("README.md", "README.zh-CN.md")]
    bare = [FENCE.sub("", text) for text in pages]
    headings = [Counter(re.findall(r"^(#+) ", text, re.M)) for text in bare]
    assert headings[0] == headings[1]
    fences = [[shlex.split(body, comments=True) for _, _, body in FENCE.findall(text)] for text in pages]
    assert fences[0] == fences[1]
    links = [sorted(re.findall(r"\]\(([^)\s]+)\)", text)) for text in bare]
    assert [link for link in links[0] if "README" not in link] == [link for link in links[1] if "README" not in link]
    presets = [re.findall(r"^\| (`[\w-]+` \| .*? \| \d+ \| [\d.]+ M) ", text, re.M) for text in bare]
    assert presets[0] == presets[1]


def test_the_table_of_presets_is_right():
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+), (\d+) × (\d+) \| (\d+) \| ([\d.]+) M ", read(ROOT / "README.md"), re.M)
    assert {row[0] for row in rows} == set(PRESETS)
    for name, *shape, parameters in rows:
        preset = PRESETS[name]
        config = take(train_cli.shape_of(preset), {"vocab_size": 65 if preset.get("tokenizer") == "char" else 50257, **preset})
        assert shape == [config.architecture, *map(str, (config.n_layer, config.n_embd, config.block_size))], name
        assert float(parameters) == pytest.approx(count_parameters(config) / 1e6, rel=0.06), name
