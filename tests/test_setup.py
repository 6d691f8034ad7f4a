"""The front doors, played with stand-ins: nothing is installed and no network is touched.

Each test gets a copy of setup.sh and the Makefile in a folder with a space in its name, and a
PATH that holds only a few system tools and a `python3` of ours. That python3 answers setup.sh's
questions with the real interpreter, under a version of our choosing, and writes down what it is
asked to install instead of installing it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["sh", "awk", "cat", "cksum", "cp", "dirname", "du", "find", "grep", "ls", "make", "mkdir"]
TOOLS += ["rm", "sleep", "touch", "tr"]

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="setup.sh and make are the Unix way"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine"),
]
no_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia").exists(), reason="this machine does have an NVIDIA driver"
)

FAKE_PYTHON = r"""#!/bin/sh
case "$1 $2" in
    "-c "*version_info*) exec "$REAL" -c "import sys
sys.version_info = tuple(map(int, '${VERSION:-3.12.4}'.split('.')))
${WITHOUT:+sys.modules['$WITHOUT'] = None}
$2" ;;
    "-c "*urlopen*) exit "${INDEX_IS_DOWN:-1}" ;;
    "-c import pip") [ -z "${BARE:-}" ] || [ -e venv/pip ]; exit ;;
    "-m ensurepip") touch venv/pip ;;
    "-c "*EXTERNALLY-MANAGED*) echo "${MANAGED:-False}" ;;
    "-c "*base_prefix*) exit "${OUTSIDE:-1}" ;;
    "-m venv") mkdir -p venv/bin venv/lib/python3.12/site-packages && cp "$0" venv/bin/python ;;
    "-m pip")
        [ "$3" = install ] || exit 0
        echo "$*" >>"$LOG"
        case "$*" in *"${REFUSE:-nothing}"*) exit 1 ;; esac
        half=venv/lib/python3.12/site-packages/half.dist-info
        if [ -n "${GO:-}" ]; then
            mkdir -p $half
            until [ -e "$GO" ]; do sleep 0.02; done
            touch $half/RECORD
        fi ;;
    *) exec "$REAL" "$@" ;;
esac
"""


class Checkout:
    def __init__(self, tmp_path: Path):
        self.root = tmp_path / "a check out"
        self.bin = tmp_path / "bin"
        self.log = tmp_path / "pip.log"
        self.root.mkdir()
        self.bin.mkdir()
        for name in ("setup.sh", "Makefile", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, self.root)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.program("python3", FAKE_PYTHON)
        self.program("uname", "#!/bin/sh\necho Linux\n")
        for script in ("train_cli.py", "generate.py"):
            (self.root / script).write_text("import sys; print(*sys.argv)\n")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **knobs: str) -> dict:
        fixed = {"PATH": str(self.bin), "REAL": sys.executable, "LOG": str(self.log)}
        return fixed | knobs

    def start(self, *command: str, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **knobs: str) -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment(**knobs), stdin=stdin, text=True,
            stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *command: str, **knobs) -> tuple[int, str]:
        process = self.start(*command, **knobs)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def setup(self, what: str = "runtime", **knobs: str) -> tuple[int, str]:
        return self.run("sh", "setup.sh", what, **knobs)

    def pip_calls(self) -> list[str]:
        """What pip was asked since the last look."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls

    def torch_call(self, **knobs: str) -> str:
        """The first pip call of a fresh set-up: the one for torch."""
        code, output = self.setup(**knobs)
        assert code == 0, output
        first, *_ = self.pip_calls()
        return first


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def refused(result: tuple[int, str], *words: str) -> None:
    """It failed, with these words and with no traceback."""
    code, output = result
    assert code != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output


# ---- which Python ----------------------------------------------------------------------


def test_an_old_python_is_named_with_the_way_out(checkout):
    refused(checkout.setup(VERSION="3.8.2"), "3.11, 3.12 or 3.13", "python3 is 3.8.2", "PYTHON=")
    refused(checkout.run("make", "train", VERSION="3.8.2"), "python3 is 3.8.2")
    assert not (checkout.root / "venv").exists()


def test_a_python_that_is_too_new_is_named_as_well(checkout):
    refused(checkout.setup(VERSION="3.14.0"), "python3 is 3.14.0")


def test_no_python_at_all(checkout):
    (checkout.bin / "python3").unlink()
    refused(checkout.setup(), "found none", "python.org")


def test_a_newer_python_beside_an_old_one_is_taken(checkout):
    checkout.program("python3.12", FAKE_PYTHON)
    checkout.program("python3", FAKE_PYTHON.replace("3.12.4", "3.9.1"))
    checkout.program("python3.13", "#!/bin/sh\necho 'a shim with nothing behind it'\nexit 127\n")
    code, output = checkout.setup()
    assert code == 0
    assert "python3.12 (3.12.4)" in output


def test_PYTHON_overrides_from_the_environment_and_from_make(checkout):
    refused(checkout.setup(PYTHON="python9"), "none under python9")
    checkout.program("my python", FAKE_PYTHON.replace("3.12.4", "3.11.9"))
    mine = str(checkout.bin / "my python")
    code, output = checkout.run("make", "setup", f"PYTHON={mine}")
    assert code == 0
    assert f"{mine} (3.11.9)" in output


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_missing_python3_venv_names_the_package(checkout, module):
    result = checkout.setup(WITHOUT=module)
    refused(result, "sudo apt install python3.12-venv", "docs/VENV_ISSUE.md")


# ---- where torch comes from -------------------------------------------------------------

CPU = "--index-url https://download.pytorch.org/whl/cpu"


@no_driver
def test_without_a_driver_torch_is_the_cpu_build(checkout):
    call = checkout.torch_call(INDEX_IS_DOWN="0")
    assert CPU in call
    assert "--no-deps" in call
    assert re.search(r"torch==[\d.]+$", call)


@no_driver
def test_an_index_that_does_not_answer_leaves_the_plain_pin(checkout):
    assert "--index-url" not in checkout.torch_call(INDEX_IS_DOWN="1")


def test_an_nvidia_driver_keeps_the_plain_pin(checkout):
    checkout.program("nvidia-smi", "#!/bin/sh\n")
    assert "--index-url" not in checkout.torch_call(INDEX_IS_DOWN="0")


def test_macos_keeps_the_plain_pin(checkout):
    checkout.program("uname", "#!/bin/sh\necho Darwin\n")
    assert "--index-url" not in checkout.torch_call(INDEX_IS_DOWN="0")


def test_TORCH_INDEX_URL_is_obeyed_also_later(checkout):
    mine = "https://user:secret@wheels.example/cu130"
    assert f"--index-url {mine}" in checkout.torch_call(TORCH_INDEX_URL=mine)
    assert checkout.setup(TORCH_INDEX_URL=mine) == (0, "")
    assert checkout.setup() == (0, "")
    assert checkout.pip_calls() == []
    for stamp in (checkout.root / "venv").glob(".installed-*"):
        assert "secret" not in stamp.read_text()

    other = "https://wheels.example/cpu"
    call = checkout.torch_call(TORCH_INDEX_URL=other)
    assert other in call
    assert "--force-reinstall" in call


def test_torch_is_there_before_pip_reads_the_other_lines(checkout):
    checkout.setup("dev")
    torch, rest, dev = checkout.pip_calls()
    assert "torch==" in torch
    assert rest.endswith("-r requirements.txt")
    assert dev.endswith("-r requirements-dev.txt")


# ---- once, and whole --------------------------------------------------------------------


def test_the_second_call_does_nothing(checkout):
    checkout.setup("dev")
    assert len(checkout.pip_calls()) == 3
    assert checkout.setup("dev") == (0, "")
    assert checkout.setup("runtime") == (0, "")
    assert checkout.pip_calls() == []


def test_changed_requirements_are_installed(checkout):
    checkout.setup("dev")
    checkout.pip_calls()
    for name, expected in (("requirements.txt", 2), ("requirements-dev.txt", 0)):
        with (checkout.root / name).open("a") as file:
            file.write("extra==1.0\n")
        assert checkout.setup("runtime")[0] == 0
        assert len(checkout.pip_calls()) == expected
    assert checkout.setup("dev")[0] == 0
    assert len(checkout.pip_calls()) == 1


def test_train_and_test_in_any_order(checkout):
    (checkout.root / "test_model.py").write_text("def test_nothing(): pass\n")
    code, output = checkout.run("make", "quick-test", "ARGS=-p no:cacheprovider")
    assert code == 0, output
    assert "1 passed" in output
    code, output = checkout.run("make", "train")
    assert code == 0
    assert output.splitlines()[-1] == "train_cli.py --preset quick"
    assert len(checkout.pip_calls()) == 3
    _, output = checkout.run("make", "train", "ARGS=--preset small")
    assert output.splitlines()[-1] == "train_cli.py --preset small"
    _, output = checkout.run("make", "generate", "ARGS=--prompt 'Once upon'")
    assert output.splitlines()[-1] == "generate.py --prompt Once upon"


def test_a_failed_install_says_why_and_the_next_call_goes_on(checkout):
    refused(checkout.setup(REFUSE="-r requirements.txt"), "no network", "full disk")
    assert checkout.setup()[0] == 0
    assert checkout.setup() == (0, "")


def test_the_tests_packages_missing_offline_do_not_cost_the_training(checkout):
    checkout.setup("runtime")
    marker = checkout.root / "venv" / "mine"
    marker.touch()
    refused(checkout.setup("dev", REFUSE="requirements-dev.txt"), "no network")
    assert checkout.setup("runtime")[0] == 0
    assert marker.exists()  # the same venv/


@pytest.mark.parametrize("stage", ["runtime", "dev"])
def test_a_killed_install_is_repaired(checkout, stage):
    if stage == "dev":  # over a venv/ that was whole for training
        assert checkout.setup("runtime")[0] == 0
    process = checkout.start("sh", "setup.sh", stage, GO="never")
    half = checkout.root / "venv/lib/python3.12/site-packages/half.dist-info"
    deadline = time.monotonic() + 20
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert half.exists()
    code, output = checkout.setup()
    assert code == 0
    assert "damaged" in output
    assert not half.exists()
    assert checkout.setup() == (0, "")


@pytest.mark.parametrize("record", ["half.py,sha256=x,7\n", "gone.py,sha256=x,5\n"])
def test_a_package_with_wrong_files_is_noticed(checkout, record):
    checkout.setup(REFUSE="-r requirements.txt")
    site = checkout.root / "venv/lib/python3.12/site-packages"
    (site / "half.py").write_text("x = 1")
    (site / "half.dist-info").mkdir()
    (site / "half.dist-info" / "RECORD").write_text("half.py,sha256=x,5\n")
    assert "damaged" not in checkout.setup(REFUSE="-r requirements.txt")[1]
    (site / "half.dist-info" / "RECORD").write_text(record)
    assert "damaged" in checkout.setup()[1]


def test_a_venv_whose_python_is_gone_is_made_again(checkout):
    checkout.setup()
    python = checkout.root / "venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.12")
    code, output = checkout.setup()
    assert code == 0
    assert "making it again" in output
    assert python.is_file()


def test_a_venv_without_pip_is_given_one(checkout):  # as uv makes them
    checkout.setup("runtime", REFUSE="-r requirements.txt")
    marker = checkout.root / "venv" / "mine"
    marker.touch()
    code, output = checkout.setup("runtime", BARE="1")
    assert code == 0 and "damaged" not in output
    assert marker.exists() and (checkout.root / "venv/pip").exists()
    assert checkout.setup("runtime", BARE="1") == (0, "")


def of_another_python(checkout) -> Path:
    """A venv/ of Python 3.14 with a file in it."""
    python = checkout.root / "venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(FAKE_PYTHON.replace("3.12.4", "3.14.0"))
    python.chmod(0o755)
    (checkout.root / "venv/precious").touch()
    return checkout.root / "venv/precious"


def test_a_venv_of_another_python_that_is_not_ours_stays(checkout):
    precious = of_another_python(checkout)
    for command in (("sh", "setup.sh", "setup"), ("make", "train")):
        refused(checkout.run(*command), "venv/ is of Python 3.14.0", "3.11, 3.12 or 3.13", "mv venv venv-3.14.0", "rm -rf venv")
    assert precious.exists() and checkout.pip_calls() == []
    precious.parent.rename(checkout.root / "venv-3.14.0")
    assert checkout.setup()[0] == 0


def test_a_venv_of_ours_whose_python_became_another_is_made_again(checkout):
    checkout.setup()
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("extra==1.0\n")
    precious = of_another_python(checkout)
    code, output = checkout.setup()
    assert code == 0
    assert "venv/ is of Python 3.14.0, which does not fit: making it again." in output and "damaged" not in output
    assert not precious.exists()


def meet(tmp_path, *checkouts: Checkout) -> None:
    """Two set-ups at once, of which one has to wait for the other: pip goes on when it says so."""
    said, go = tmp_path / "said", tmp_path / "go"
    with said.open("a") as out:
        knobs = {"stdout": out, "GO": str(go), "LOG": str(checkouts[0].log)}
        both = [each.start("sh", "setup.sh", "dev", **knobs) for each in checkouts]
    deadline = time.monotonic() + 20
    while "waiting for it" not in said.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    go.touch()
    assert [process.wait(60) for process in both] == [0, 0], said.read_text()
    assert said.read_text().count("waiting for it") == 1


def test_two_at_once_install_once(checkout, tmp_path):
    meet(tmp_path, checkout, checkout)
    assert len(checkout.pip_calls()) == 3


def test_two_checkouts_that_share_a_venv_wait_for_each_other(checkout, tmp_path):
    (tmp_path / "another").mkdir()
    other = Checkout(tmp_path / "another")
    assert checkout.setup("runtime")[0] == 0
    checkout.pip_calls()
    (other.root / "venv").symlink_to(checkout.root / "venv")
    meet(tmp_path, checkout, other)
    assert len(checkout.pip_calls()) == 1
    assert (other.root / "venv").is_symlink()


def test_a_shared_venv_that_is_damaged_is_left_and_one_of_our_own_made(checkout, tmp_path):
    (tmp_path / "shared" / "venv").mkdir(parents=True)
    (checkout.root / "venv").symlink_to(tmp_path / "shared" / "venv")
    meet(tmp_path, checkout, checkout)
    assert len(checkout.pip_calls()) == 3
    assert not (checkout.root / "venv").is_symlink() and (tmp_path / "shared" / "venv").is_dir()


def test_it_works_from_any_folder(checkout):
    script = str(checkout.root / "setup.sh")
    assert checkout.run("sh", "-c", 'cd / && sh "$1" init', "-", script)[0] == 0
    assert (checkout.root / "checkpoints").is_dir()


# ---- install, install-force, check-deps -------------------------------------------------


def test_install_refuses_outside_a_virtual_environment(checkout):
    result = checkout.run("make", "install", OUTSIDE="1")
    refused(result, "make setup", "activate", "make install-force")
    assert checkout.pip_calls() == []


def test_install_inside_one(checkout):
    code, _ = checkout.run("make", "install", OUTSIDE="0")
    assert code == 0
    assert len(checkout.pip_calls()) == 2
    assert not (checkout.root / "venv").exists()


def test_install_takes_a_conda_environment_but_not_its_base(checkout):
    conda = {"OUTSIDE": "1", "CONDA_PREFIX": "/somewhere"}
    refused(checkout.setup("install", CONDA_DEFAULT_ENV="base", **conda), "make setup")
    assert checkout.setup("install", CONDA_DEFAULT_ENV="mine", **conda)[0] == 0


@pytest.mark.parametrize("managed", ["True", "False"])
def test_install_force_breaks_system_packages_only_where_it_must(checkout, managed):
    assert checkout.run("make", "install-force", MANAGED=managed)[0] == 0
    for call in checkout.pip_calls():
        assert ("--break-system-packages" in call) == (managed == "True")


def test_what_to_try_next_is_the_quick_preset(checkout):
    for command, knobs in (("setup", {}), ("install", {"OUTSIDE": "0"})):
        assert "train.py --preset quick" in checkout.setup(command, **knobs)[1]
    assert "\npython train.py --preset quick\n" in (ROOT / "docs" / "INSTALL.md").read_text()


def test_check_deps_names_what_is_missing_and_the_mend(checkout):
    (checkout.root / "requirements.txt").write_text("pytest==1.0\nno-such-package==2.3\n")
    (checkout.root / "requirements-dev.txt").write_text("-r requirements.txt\nalso-none==1\n")
    result = checkout.run("make", "check-deps")
    refused(result, "Missing: no-such-package.", "make setup", "another version")
    (checkout.root / "requirements.txt").write_text("pytest==1.0\n")
    assert checkout.run("make", "check-deps")[0] == 0


# ---- tidying up -------------------------------------------------------------------------


def fill(checkout) -> Path:
    model = checkout.root / "checkpoints/run/last.pt"
    for file in (model, checkout.root / "logs/run/events.jsonl", checkout.root / "data/mine.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return model


def test_checkpoints_are_not_deleted_unasked(checkout):
    model = fill(checkout)
    refused(checkout.run("make", "clean-checkpoints"), "FORCE=1")
    assert model.exists()
    assert checkout.run("make", "clean-checkpoints", "FORCE=1")[0] == 0
    assert not model.exists()


@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_on_a_terminal_only_a_yes_deletes(checkout, answer):
    model = fill(checkout)
    ours, theirs = os.openpty()
    os.write(ours, f"{answer}\n".encode())
    code, output = checkout.run("make", "clean-checkpoints", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert code == 0
    assert "[y/N]" in output
    assert model.exists() == (answer != "y")


def test_clean_all_keeps_the_users_data_and_unasked_checkpoints(checkout):
    model = fill(checkout)
    checkout.setup()
    tokens = "data/tokens-0123456789abcdef"
    folders = ("tests/__pycache__", "logs/run", tokens, tokens + ".7.tmp", tokens + ".lock")
    media = tokens.replace("tokens", "media")
    folders += (media, media + ".7.tmp", media + ".lock")
    caches = [checkout.root / name for name in folders]
    named_alike = checkout.root / "data/media-from-my-phone-01"
    named_alike.mkdir()
    for folder in caches:
        folder.mkdir(parents=True, exist_ok=True)
    assert checkout.run("make", "clean-all")[0] == 0
    assert not any(folder.exists() for folder in [*caches, checkout.root / "venv"])
    assert model.exists() and named_alike.exists()
    assert (checkout.root / "data/mine.txt").exists()


def test_clean_leaves_environments_alone(checkout):
    theirs = [checkout.root / place / "lib/__pycache__" for place in ("venv", ".venv")]
    for folder in theirs:
        folder.mkdir(parents=True)
    assert checkout.run("make", "clean")[0] == 0
    assert all(folder.exists() for folder in theirs)


def test_clean_does_not_follow_links(checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for folder in ("__pycache__", "tokens-0123456789abcdef", "media-0123456789abcdef", "run"):
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "precious").touch()
    for name in ("checkpoints", "logs", "data", "src", "venv", "build"):
        (checkout.root / name).symlink_to(elsewhere)
    (checkout.root / "__pycache__").symlink_to(elsewhere / "__pycache__")
    code, output = checkout.run("make", "clean-all", "FORCE=1")
    assert code == 0
    assert output.count("is a link") == 3
    assert len(list(elsewhere.glob("*/precious"))) == 4


# ---- a browser for the tests of the pages ----------------------------------------------


def test_a_machine_without_chromium_is_told_how_to_get_it(checkout):
    checkout.program("id", "#!/bin/sh\necho 1000\n")
    checkout.program("apt-get", "#!/bin/sh\necho apt-get was asked\n")
    refused(checkout.setup("browser"), "sudo apt install chromium chromium-driver")
    checkout.program("chromium", "#!/bin/sh\n")
    refused(checkout.setup("browser"), "chromedriver")
    checkout.program("chromedriver", "#!/bin/sh\n")
    assert checkout.setup("browser") == (0, "")


def test_root_on_debian_gets_chromium_installed(checkout):
    checkout.program("id", "#!/bin/sh\necho 0\n")
    refused(checkout.setup("browser"), "sudo apt install")  # no apt-get
    installs = 'for name in chromium chromedriver; do cp "$0" "${0%/*}/$name"; done'
    checkout.program("apt-get", f'#!/bin/sh\n[ "$1" = update ] || {installs}\n')
    code, output = checkout.setup("browser")
    assert (code, output) == (0, "Installing chromium and chromium-driver, once.\n")


# ---- what the files say -----------------------------------------------------------------


def test_help_is_the_default_and_lists_every_target(checkout):
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):(?! ARGS)", text, re.M)) - {"runtime", "dev"}
    asked_for = (
        "setup-all setup install install-force test quick-test train train-multimodal watch generate info check-deps init "
        "clean clean-checkpoints clean-all bench lint help test-slow test-gpu test-browser serve serve-dev soak "
        "image image-push image-digest image-sbom obs-up obs-down verify-deploy verify-cluster"
    )
    assert targets == set(asked_for.split())
    _, output = checkout.run("make")
    assert dict(re.findall(r"^  make (\S+) +(\S)", output, re.M)).keys() == targets


def test_every_requirement_is_pinned_and_explained():
    guide = (ROOT / "docs" / "INSTALL.md").read_text()
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text().splitlines()
        for line in lines:
            if line.startswith(("#", "-r")):
                continue
            package, version = line.split("==")
            assert re.fullmatch(r"[\d.]+", version)
            assert f"| {package} |" in guide


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine")
def test_gitignore_hides_what_training_leaves_and_nothing_of_ours(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    ours = ["data.py", "checkpoint.py", "corpora/data/x.py", "docs/logs/x.md", "requirements.txt"]
    theirs = ["data/x.txt", "checkpoints/last.pt", "logs/a/b", "a.db", ".env", "venv/bin/python"]
    command = ["git", "-C", tmp_path, "check-ignore", *ours, *theirs]
    ignored = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert ignored == theirs


def test_data_never_becomes_a_package():
    assert not (ROOT / "data" / "__init__.py").exists()  # it would hide data.py
