"""Settings of every test: four simulated CPU devices, exact products, no silent broadcasting.

What stands in the environment also holds for the processes that tests start.
"""

import gc
import getpass
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / f"jaxvsa-tests-{getpass.getuser()}"
DEVICES = "--xla_force_host_platform_device_count"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    # Compiling is most of the suite's time; what is compiled runs for milliseconds.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=4 {quick}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402  (reads the environment above)
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts tests in the background has them ignore Ctrl-C, which some of them are about.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Grain 0.2.18 reads absl flags in its prefetching and refuses unparsed ones (google/grain #1355).
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def free_programs() -> Iterator[None]:
    """Forgets compiled programs after every file: Linux gives a process 65,530 mappings.

    Each program takes several of them, and a process that runs out of them crashes.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def real_path() -> Callable[[str], Path]:
    """Function: name of an environment variable -> the folder of real data it names.

    Unset skips the test with a reason; set, but no folder or an empty one, fails it.
    """

    def find(name: str) -> Path:
        if name not in os.environ:
            pytest.skip(f"{name} is not set: it names a folder of real data")
        path = Path(os.environ[name])
        if not path.is_dir() or not any(path.iterdir()):
            pytest.fail(f"{name}={os.environ[name]} is no folder with something in it")
        return path

    return find


@pytest.fixture(scope="session")
def golden_path(real_path: Callable[[str], Path]) -> Path:
    """Folder of the golden cases of VC-CSA."""
    return real_path("JAXVSA_GOLDEN")


@pytest.fixture(scope="session")
def csmv_path(real_path: Callable[[str], Path]) -> Path:
    """Folder of the CSMV release."""
    return real_path("JAXVSA_CSMV")


@pytest.fixture(scope="session")
def minilm_path(real_path: Callable[[str], Path]) -> Path:
    """Hugging Face folder of all-MiniLM-L6-v2."""
    return real_path("JAXVSA_MINILM")


@pytest.fixture(scope="session")
def mustard_path(real_path: Callable[[str], Path]) -> Path:
    """Folder of MUStARD's annotations and folds."""
    return real_path("JAXVSA_MUSTARD")
