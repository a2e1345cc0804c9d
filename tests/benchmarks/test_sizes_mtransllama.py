import jax
import pytest

from benchmarks.sizes_mtransllama import measure


@pytest.mark.skipif(jax.device_count() < 8, reason="fewer than 8 simulated devices")
def test_seven_billion_parameters_in_bytes_on_every_mesh() -> None:
    found = measure("mustard")
    assert found["values_that_learn"] == 2_454_966
    assert found["values_frozen"] == pytest.approx(7.91e9, rel=0.01)
    sizes = found["mib_per_device"]
    # Two bytes for each frozen value but the Q-Former's four; three float32 for what learns.
    assert sizes["decoder, frozen"]["1 device"] == pytest.approx(6.74e9 * 2 / 2**20, rel=0.01)
    assert sizes["what learns"]["1 device"] == 2_454_966 * 4 / 2**20
    assert sizes["its moments"]["1 device"] == pytest.approx(2_454_966 * 8 / 2**20, rel=1e-3)
    assert sizes["sum"]["data 8"] == sizes["sum"]["1 device"]
    assert sizes["decoder, frozen"]["fsdp 4"] == pytest.approx(
        sizes["decoder, frozen"]["1 device"] / 4, rel=1e-3
    )
