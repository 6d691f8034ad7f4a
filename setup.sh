#!/bin/sh
# Set-up, in one place. The Makefile calls this file, and it does as well without make:
#
#   sh setup.sh                 make venv/ and put into it what training and sampling need
#   sh setup.sh dev             the same, and what the tests need
#   sh setup.sh all             dev, the folders, a look at the packages, a quick test
#   sh setup.sh install         into the virtual environment that is active now
#   sh setup.sh install-force   into the current Python, whatever it is
#   sh setup.sh init            the folders: checkpoints/ data/ logs/
#   sh setup.sh check-deps      which packages are wanted, which are there
#   sh setup.sh browser         Chromium for the tests of the pages: installs it as root on Debian, says how elsewhere
#
# PYTHON=python3.12 chooses the Python, TORCH_INDEX_URL=https://... where torch comes from.
# Plain POSIX sh: it has to run before anything is installed.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"

py=venv/bin/python
cpu_index=https://download.pytorch.org/whl/cpu

# A stamp says which requirements venv/ holds, so that the next call is done in a blink.
runtime_stamp="venv/.installed-$(cksum <requirements.txt | tr ' ' -)"
dev_stamp="venv/.installed-dev-$(cat requirements.txt requirements-dev.txt | cksum | tr ' ' -)"
index_sum="$(printf %s "${TORCH_INDEX_URL:-}" | cksum)" # a sum: the URL may hold a password

say() { printf '%s\n' "$*"; }
die() {
    printf '\n' >&2
    printf '%s\n' "$@" >&2
    exit 1
}

# ---- which Python ----------------------------------------------------------------------

# Prints "3.11.7 good", "3.8.2 version" or "3.11.2 venv": the version, and what is wrong with
# it. Fails where nothing runs under that name (a shim, a leftover link).
probe() {
    "$1" -c 'import sys
v = sys.version_info
verdict = "good" if (3, 11) <= v[:2] <= (3, 13) else "version"
try:
    import venv, ensurepip
except ImportError:
    if verdict == "good":
        verdict = "venv"
print("%d.%d.%d %s" % (v[0], v[1], v[2], verdict))' 2>/dev/null
}

# Sets $python to the first that fits, or explains what is missing.
find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"
    else set -- python3 python3.13 python3.12 python3.11 python; fi
    no_venv='' unfit=''
    for python do
        verdict="$(probe "$python")" || continue
        version="${verdict% *}"
        case "$verdict" in
            *good) return ;;
            *venv) no_venv="${no_venv:-$python $version}" ;;
            *) unfit="$unfit${unfit:+, }$python is $version" ;;
        esac
    done
    if [ -n "$no_venv" ]; then
        minor="${no_venv##* }" minor="${minor%.*}"
        die "$no_venv cannot make virtual environments: its ensurepip module is missing." \
            "Debian and Ubuntu keep it in a package of its own:" \
            "    sudo apt install python$minor-venv" \
            "Then run this again. Other ways out: docs/VENV_ISSUE.md"
    fi
    die "This needs Python 3.11, 3.12 or 3.13, and found ${unfit:-none${PYTHON:+ under $PYTHON}}." \
        "    Ubuntu, Debian   sudo apt install python3.12 python3.12-venv" \
        "    macOS            brew install python@3.12" \
        "    anywhere         https://www.python.org/downloads/" \
        "Then run this again. One under another name: PYTHON=/path/to/python3.12 make setup"
}

# ---- where torch comes from -------------------------------------------------------------

# Does the index answer within two seconds? The alarm also ends a name look-up that hangs.
answers() {
    { "$into" -c 'import signal, sys, urllib.request
signal.alarm(2)
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=2)' "$1"; } >/dev/null 2>&1
}

# PyPI's torch for Linux brings CUDA along: gigabytes that do nothing without an NVIDIA driver.
# So a machine without one takes the CPU build from PyTorch's own index. Prints nothing where
# PyPI's build is the right one.
torch_index() {
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        say "$TORCH_INDEX_URL"
    elif [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] \
        && ! command -v nvidia-smi >/dev/null && answers "$cpu_index"; then
        say "No NVIDIA driver here: torch comes from $cpu_index." >&2
        say "$cpu_index"
    fi
}

# ---- installing -------------------------------------------------------------------------

into=''  # the Python that pip installs for
flags='' # what every pip install below gets

pip_install() {
    # shellcheck disable=SC2086 # flags are words
    PIP_USER=0 "$into" -m pip install --disable-pip-version-check $flags "$@" || die \
        "pip stopped; its own words are above. What is usually behind it:" \
        "    no network        run this again with one: what has been downloaded is kept" \
        "    a full disk       df -h .    (docs/INSTALL.md says how much is needed)" \
        "    torch not found   name its index: TORCH_INDEX_URL=https://pypi.org/simple make setup"
}

# torch first, alone and from its own index: by the time pip reads the other lines it is there,
# and pip has no reason to fetch the big one.
install_runtime() {
    index="$(torch_index)"
    set -- "$(grep '^torch==' requirements.txt)"
    [ -z "$index" ] || set -- --index-url "$index" "$@"
    # An index that the user names is an order, even where another build is there already.
    [ -z "${TORCH_INDEX_URL:-}" ] || set -- --force-reinstall "$@"
    pip_install --no-deps "$@"
    pip_install -r requirements.txt
}

# ---- venv/ ------------------------------------------------------------------------------

# complete runtime|dev: the stamps are there, and the Python still runs. Asked on every make.
complete() {
    [ -f "$runtime_stamp" ] || return 1
    [ "$1" = runtime ] || [ -f "$dev_stamp" ] || return 1
    [ -z "${TORCH_INDEX_URL:-}" ] || [ "$(cat "$runtime_stamp")" = "$index_sum" ] || return 1
    "$py" -c 'import pip' 2>/dev/null
}

# Without a stamp: is venv/ worth keeping? An install that was cut short leaves packages whose
# list of files (RECORD) is absent or does not match, or folders that pip had set aside (~name).
sound() {
    case "$(probe "$py")" in *good) ;; *) return 1 ;; esac
    "$py" -c 'import pip' 2>/dev/null || "$py" -m ensurepip >/dev/null 2>&1 || return 1 # uv makes them without pip
    "$py" -c 'import csv, sys
from pathlib import Path
for site in Path("venv/lib").glob("python*/site-packages"):
    if any(site.glob("~*")):
        sys.exit(1)
    for info in site.glob("*.dist-info"):
        for path, _, size in csv.reader((info / "RECORD").read_text("utf-8").splitlines()):
            if size and (site / path).stat().st_size != int(size):
                sys.exit(1)' 2>/dev/null
}

# Clears away a venv/ that is not sound. One of another Python that no set-up of ours has filled is not
# ours to delete: it may hold what its owner needs.
clear_away() {
    verdict="$(probe "$py")" || verdict=gone
    version="${verdict% *}"
    set -- venv/.installed-*
    case "$verdict" in
        *version)
            [ -e "$1" ] || die \
                "venv/ is of Python $version, and this needs 3.11, 3.12 or 3.13. Nothing tells that this set-up made it, so it stays." \
                "    mv venv venv-$version    keeps its files, though its scripts go on naming the old place" \
                "    rm -rf venv            deletes it" \
                "Do one of the two, then run this again."
            say "venv/ is of Python $version, which does not fit: making it again." ;;
        *) say "venv/ is damaged, or its Python is gone: making it again." ;;
    esac
    rm -rf venv # of a link, the link
}

# One set-up at a time. The locks sit on this folder and, where venv/ is a link, on the folder in which
# it really lies, so that checkouts which share one wait for each other. They are held by way of
# descriptors 9 and 8, and the kernel drops them when the last process of this set-up ends, however it
# ends: no stale lock files.
lock() {
    exec 9<. 8<.
    [ ! -d venv ] || command exec 8<venv/.. || : # another set-up may have cleared it away since; a bare exec would end this one
    "$1" -c 'import fcntl, os
same, told = os.path.samestat(os.fstat(9), os.fstat(8)), False
for folder in [9] if same else [9, 8]:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told or print("Another set-up is at work on this venv/; waiting for it.", flush=True)
        told = True  # whoever ends lets go of one folder just before the other
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks' 9<&9 8<&8
}

# ensure runtime|dev
ensure() {
    ! complete "$1" || return 0
    case "$(uname -s)" in
        MINGW* | MSYS* | CYGWIN*) die "On Windows the way is two lines of pip: docs/INSTALL.md" ;;
    esac
    case "$(probe "$py")" in
        *good) lock "$py" ;;
        *) find_python; lock "$python" ;;
    esac
    ! complete "$1" || return 0 # the one that we waited for has done it

    if [ -e venv ] || [ -h venv ]; then
        sound || clear_away
    fi
    if [ ! -e venv ]; then
        find_python
        say "Making venv/ with $python ($version)."
        "$python" -m venv venv || die "$python -m venv failed; docs/VENV_ISSUE.md knows why."
    fi

    into="$py"
    [ -t 1 ] || flags=-q # progress bars are for people
    wanted="$1"
    ! complete runtime || { wanted="tests only"; index_sum="$(cat "$runtime_stamp")"; }
    # From here to the last line nothing vouches for venv/, so a cut-off install is noticed.
    rm -f venv/.installed-*
    if [ "$wanted" != "tests only" ]; then
        say "Installing requirements.txt: a minute or two, once."
        install_runtime
    fi
    if [ "$1" = dev ]; then
        say "Installing what the tests need."
        pip_install -r requirements-dev.txt
        touch "$dev_stamp"
    fi
    say "$index_sum" >"$runtime_stamp"
}

# ---- the current Python, for install and check-deps -------------------------------------

current_python() {
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} python3 python; do
        verdict="$(probe "$python")" && return
    done
    find_python # none runs: this explains
}

install_here() {
    current_python
    case "$verdict" in
        *version) die "This needs Python 3.11, 3.12 or 3.13; the current one is ${verdict% *}." ;;
    esac
    into="$python"
    "$into" -m pip --version >/dev/null 2>&1 || die \
        "$into has no pip. Debian and Ubuntu: sudo apt install python3-pip"
    install_runtime
    say "Installed. Try: $python train.py --preset quick"
}

in_a_virtual_environment() {
    "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' && return
    [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]
}

check_deps() {
    if [ -x "$py" ]; then python="$py"; else current_python; fi
    say "$("$python" -c 'import sys; print("Python", sys.version.split()[0], "at", sys.prefix)')"
    "$python" - <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version

missing = []
for name in ("requirements.txt", "requirements-dev.txt"):
    print(f"\n{name:<24}{'wanted':<12}found")
    for package, wanted in re.findall(r"^([\w.-]+)==([\w.]+)", open(name).read(), re.M):
        try:
            found = version(package)
            note = "" if found.split("+")[0] == wanted else "  (another version; it may do)"
        except PackageNotFoundError:
            found, note = "-", "  (only for the tests)" if "dev" in name else "  MISSING"
            missing += [package] * (name == "requirements.txt")
        print(f"  {package:<22}{wanted:<12}{found}{note}")
if missing:
    sys.exit("\nMissing: " + ", ".join(missing) + ". The mend: make setup   (or: sh setup.sh)")
PY
}

# ---- a browser for the tests of the pages

have_browser() {
    { command -v chromedriver || [ -x "${CHROMEWEBDRIVER:-}/chromedriver" ]; } >/dev/null || return 1
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        ! command -v "$name" >/dev/null || return 0
    done
    return 1
}

get_browser() {
    ! have_browser || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing chromium and chromium-driver, once."
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null || true
    fi
    have_browser || die "The tests of the pages need Chromium (or Chrome) and its chromedriver on the PATH:" \
        "    Debian   sudo apt install chromium chromium-driver" \
        "    Ubuntu   sudo apt install chromium-browser chromium-chromedriver" \
        "    macOS    brew install --cask google-chrome chromedriver"
}

# ---- the front desk ---------------------------------------------------------------------

case "${1:-setup}" in
    setup)
        ensure runtime
        say "venv/ is ready. Next: make train" \
            "  (or: . venv/bin/activate, then python train.py --preset quick)" ;;
    runtime) ensure runtime ;; # as setup, without a word when there is nothing to do
    dev) ensure dev ;;
    init) mkdir -p checkpoints data logs ;;
    check-deps) check_deps ;;
    browser) get_browser ;;
    install)
        current_python
        in_a_virtual_environment || die \
            "No virtual environment is active, and pip can break the system's own Python." \
            "    make setup                                  makes venv/ and installs there" \
            "    . venv/bin/activate && make install         where you have one already" \
            "    make install-force                          if you mean the current Python"
        install_here ;;
    install-force)
        current_python
        managed="$("$python" -c 'import os, sys, sysconfig
print(sys.prefix == sys.base_prefix
      and os.path.exists(sysconfig.get_path("stdlib") + "/EXTERNALLY-MANAGED"))')"
        [ "$managed" != True ] || flags=--break-system-packages
        install_here ;;
    all)
        ensure dev
        sh setup.sh init
        sh setup.sh check-deps
        "$py" -m pytest -q test_model.py
        say "All set. Next: make train" ;;
    *) die "setup.sh does not know '$1'. The first lines of the file list what it does." ;;
esac
