"""Compiled programs outlive a command, where the user has not said otherwise."""

import os
import subprocess
import sys

import pytest

from jaxunlearn import compile_cache

OWN = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", compile_cache.SWITCH)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The user's cache is a folder of the test; changes of it end with the test."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)


COUNTED = """
import sys
from collections import Counter
from jaxunlearn.cli import main
assert "jax" not in sys.modules
class Before:
    def find_spec(self, name, *_):
        # Once the command has made up its mind, and JAX comes.
        if name == "jax":
            sys.meta_path.remove(self)
            import jax
            jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))
seen = Counter()
sys.meta_path.insert(0, Before())
status = main()
print(*(seen["/jax/compilation_cache/" + name] for name in ("cache_hits", "cache_misses")))
raise SystemExit(status)
"""


def command(*arguments):
    """Programs that a command found in the cache, and those that it did not."""
    words = [sys.executable, "-c", COUNTED, *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return tuple(map(int, result.stdout.splitlines()[-1].split()))


@pytest.mark.slow
def test_a_second_start_compiles_less(environment, tiny_folder):
    generate = ("generate", tiny_folder, "--prompt", "Who", "--max-new-tokens", 3)
    hits, misses = command(*generate)
    assert hits == 0 and misses > 0
    kept = sorted(path.name for path in compile_cache.cache_folder().glob("*-cache"))
    assert kept
    hits, fewer = command(*generate)
    assert hits == len(kept) and fewer == misses - hits
    assert sorted(path.name for path in compile_cache.cache_folder().glob("*-cache")) == kept
    # Switched off: neither read nor written.
    assert command(*generate, "--no-compile-cache") == (0, 0)


def test_the_folder_is_of_this_version_and_cpu(environment):
    assert compile_cache.use_cache() is None
    chosen = os.environ["JAX_COMPILATION_CACHE_DIR"]
    import jax

    assert chosen.startswith(f"{environment}/jaxunlearn/jax-{jax.__version__}-")


def test_what_the_user_set_goes_first(environment, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/theirs")
    assert compile_cache.use_cache() is None
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/theirs"


def test_it_can_be_switched_off(environment, monkeypatch):
    assert compile_cache.use_cache(asked=False) is None
    monkeypatch.setenv(compile_cache.SWITCH, "off")
    assert compile_cache.use_cache() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and not environment.exists()


def test_a_folder_that_cannot_be_written_costs_a_note_only(environment):
    environment.write_text("a file where the folder should be")
    note = compile_cache.use_cache()
    assert str(environment) in note and "JAXUNLEARN_COMPILE_CACHE=off" in note
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_importing_the_package_sets_nothing():
    code = (
        "import os, jaxunlearn, jaxunlearn.cli; print(os.environ.get('JAX_COMPILATION_CACHE_DIR'))"
    )
    environ = {k: v for k, v in os.environ.items() if k not in OWN}
    result = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True)
    assert result.stdout.strip() == b"None"
