import os
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch.multiprocessing.reductions import StorageWeakRef

from serve_app.errors import ConfigError, DeviceMemoryError, ModelFileError, WeightsFreedError
from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.weights import loading
from serve_app.models.weights.deallocation import tensors_of
from serve_app.models.weights.dtypes import dtype_of
from serve_app.models.weights.load_progress import LoadProgress
from serve_app.models.weights.loading import Loader
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip
from serve_app.sampling.forward import Piece, denoise
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.card_driver import Driver, driven
from tests.unit.engine.card_order import Order
from tests.unit.models.sample import cpu_weights, random_tensors

CPU = torch.device("cpu")
UNET = Sd((32,), (1,), (1,), 1, 64)
VAE = AutoencoderKL((32, 32), 1, 4, 3, True)
TEXT = ClipText(1, 64, 64, 77)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    (root / "vae").mkdir()
    tensors = random_tensors(UNET) | random_tensors(VAE) | random_tensors(TEXT)
    for name in ("a", "b", "c"):
        save_file(tensors, root / "checkpoints" / f"{name}.safetensors")
    save_file(random_tensors(VAE), root / "vae" / "own.safetensors")
    return Catalog(root)


def backbone(name):
    return Recipe("backbone", "checkpoints", f"{name}.safetensors")


def nbytes(architecture):
    return sum(t.numel() for t in random_tensors(architecture).values()) * 4


ONE = nbytes(UNET)


def weights(catalog, budget_bytes=10**9):
    return cpu_weights(catalog, budget_bytes=budget_bytes)


def names(held):
    return [name.rpartition("/")[2].removesuffix(".safetensors") for name in held.resident()]


def test_each_part_of_a_checkpoint_is_loaded_alone(catalog):
    held = weights(catalog)
    held.vae(Recipe("vae", "checkpoints", "a.safetensors"))
    assert held.resident() == ("vae checkpoints/a.safetensors",)
    held.backbone(backbone("a"))
    assert held.resident() == ("vae checkpoints/a.safetensors", "backbone checkpoints/a.safetensors")


def test_a_vae_of_its_own_file_is_loaded(catalog):
    assert weights(catalog).vae(Recipe("vae", "vae", "own.safetensors")).factor == 2


def test_what_is_resident_is_not_loaded_again(catalog):
    held = weights(catalog)
    first = held.backbone(backbone("a"))
    assert held.backbone(backbone("a")).network is first.network


def test_backbones_of_one_file_have_equal_keys_and_of_two_files_unequal_ones(catalog):
    held = weights(catalog)
    assert held.backbone(backbone("a")).key == held.backbone(backbone("a")).key
    assert held.backbone(backbone("a")).key != held.backbone(backbone("b")).key


def test_recipes_that_differ_only_in_clip_skip_share_their_weights(catalog):
    held = weights(catalog)
    clip = Recipe("clip", "checkpoints", "a.safetensors")
    plain, skipping = held.clip(clip), held.clip(clip.with_patch(ClipSkip(-1)).with_patch(ClipSkip(-2)))
    assert plain.encoder is skipping.encoder
    assert (plain.stop_at, skipping.stop_at) == (None, -2)
    assert len(held.resident()) == 1


def test_what_was_used_least_recently_goes_first(catalog):
    held = weights(catalog, 2 * ONE)
    held.backbone(backbone("a"))
    held.backbone(backbone("b"))
    held.backbone(backbone("a"))
    held.backbone(backbone("c"))
    assert names(held) == ["a", "c"]


def live_bytes(module):
    """Return the memory that the tensors of a network still have, packed ones as if they were plain."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors_of(module.modules()))


@pytest.mark.parametrize("part", ["backbone", "clip", "vae"])
def test_an_evicted_part_has_no_memory_and_says_so_if_it_is_used(catalog, part):
    held, recipe = weights(catalog, ONE), Recipe(part, "checkpoints", "a.safetensors")
    model = getattr(held, part)(recipe)
    [module] = [resident.loaded.module for resident in held.residency.resident.values()]
    tensors = tensors_of(module.modules())
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors if not tensor.is_mkldnn]
    assert live_bytes(module) > 0
    held.release()
    assert live_bytes(module) == sum(tensor.numel() for tensor in tensors) == 0
    assert storages
    assert all(storage.expired() for storage in storages)
    with pytest.raises(WeightsFreedError, match=r"a\.safetensors was evicted"):
        module(torch.zeros(1))
    assert getattr(held, part)(recipe) is not model


def test_weights_under_an_open_hold_stay_and_others_go(catalog):
    held = weights(catalog, 2 * ONE)
    in_use = held.open(backbone("a"))
    network = held.backbone(backbone("a"), in_use).network
    held.backbone(backbone("b"))
    held.backbone(backbone("c"))
    assert names(held) == ["a", "c"]
    assert held.backbone(backbone("a")).network is network


def test_a_shared_hold_keeps_weights_until_both_are_closed_and_none_is_used_once_it_is(catalog):
    held = weights(catalog, ONE)
    first = held.open(backbone("a"))
    second = first.share()
    first.close()
    first.close()
    assert held.release() == 0
    with pytest.raises(WeightsFreedError, match=r"a\.safetensors are asked for by a hold that is closed"):
        held.backbone(backbone("a"), first)
    with pytest.raises(WeightsFreedError):
        first.share()
    with second:
        assert held.backbone(backbone("a"), second).network is not None
    assert held.release() == ONE


def test_a_part_larger_than_the_budget_is_loaded_after_all_else_has_gone(catalog):
    held = weights(catalog, ONE - 1)
    held.vae(Recipe("vae", "checkpoints", "a.safetensors"))
    held.backbone(backbone("a"))
    assert held.resident() == ("backbone checkpoints/a.safetensors",)


def test_weights_fit_if_resident_or_if_idle_ones_can_be_evicted(catalog):
    held = weights(catalog, 2 * ONE)
    a, b = held.open(backbone("a")), held.open(backbone("b"))
    assert held.fits(held.needs.of(backbone("a")))
    assert not held.fits(held.needs.of(backbone("c")))
    b.close()
    assert held.fits(held.needs.of(backbone("c")))
    a.close()


def test_a_part_larger_than_the_budget_fits_once_nothing_is_in_use(catalog):
    held = weights(catalog, ONE - 1)
    with held.open(Recipe("vae", "checkpoints", "a.safetensors")):
        assert not held.fits(held.needs.of(backbone("a")))
    assert held.fits(held.needs.of(backbone("a")))


def test_a_file_replaced_under_its_name_is_loaded_anew(tmp_path):
    (tmp_path / "vae").mkdir()
    path = tmp_path / "vae" / "v.safetensors"
    held = weights(Catalog(tmp_path))
    recipe = Recipe("vae", "vae", "v.safetensors")
    latents = torch.ones(1, 4, 2, 2)
    save_file(random_tensors(VAE), path)
    before = held.vae(recipe).decode(latents)
    zeroed = {name: torch.zeros_like(tensor) for name, tensor in random_tensors(VAE).items()}
    save_file(zeroed, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    after = held.vae(recipe).decode(latents)
    assert torch.equal(after, torch.full_like(after, 0.5))
    assert not torch.equal(before, after)


def test_released_weights_are_no_longer_reported(catalog):
    held = weights(catalog)
    in_use = held.open(backbone("a"))
    held.backbone(backbone("b"))
    assert (held.counters.resident_bytes, held.counters.loads) == (2 * ONE, 2)
    held.release()
    assert names(held) == ["a"]
    assert (held.resident_bytes, held.counters.resident_bytes, held.counters.evictions) == (ONE, ONE, 1)
    in_use.close()
    held.release()
    assert (held.resident(), held.resident_bytes) == ((), 0)


def test_asking_again_whether_weights_fit_touches_no_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "a.safetensors"
    save_file(random_tensors(UNET), path)
    held = weights(Catalog(tmp_path))
    need = held.needs.of(backbone("a"))
    path.unlink()
    assert held.fits(need)


def test_what_a_file_takes_is_read_off_it_once(catalog, monkeypatch):
    read, nbytes = [], Loader.nbytes

    def counted(loader, recipe, files):
        read.append(recipe.name)
        return nbytes(loader, recipe, files)

    monkeypatch.setattr(Loader, "nbytes", counted)
    held = weights(catalog)
    for _ in range(3):
        held.backbone(backbone("a"))
        assert held.needs.of(backbone("a")).nbytes
    assert len(read) == 1


def test_a_failed_load_leaves_the_others_resident(catalog):
    held = weights(catalog)
    held.backbone(backbone("a"))
    with pytest.raises(ModelFileError, match="holds no diffusion network"):
        held.backbone(Recipe("backbone", "vae", "own.safetensors"))
    with pytest.raises(ModelFileError, match="missing"):
        held.backbone(backbone("missing"))
    assert names(held) == ["a"]


def test_threads_that_ask_at_once_share_one_load(catalog):
    held = weights(catalog)
    got = []
    threads = [threading.Thread(target=lambda: got.append(held.backbone(backbone("a")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model.network.module) for model in got}) == 1


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_network_of_any_format_denoises_close_to_the_full_one(catalog, dtype):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    full, model = weights(catalog).backbone(backbone("a")), cpu_weights(catalog, dtype=dtype).backbone(backbone("a"))

    def both(by):
        rows = [(x[:1], 7.0, context[:1]), (x[1:], 0.5, context[1:])]
        return torch.cat(denoise([Piece(by, x, sigma, UnetInputs(cond)) for x, sigma, cond in rows]))

    with torch.inference_mode():
        exact, denoised = both(full), both(model)
    assert denoised.dtype == torch.float32
    assert float((denoised - exact).norm() / exact.norm()) < {"fp32": 1e-6, "fp16": 0.01, "bf16": 0.05}[dtype]


def test_automatic_formats_are_full_on_a_cpu_and_half_on_a_gpu():
    gpu, driver = torch.device("cuda", 0), Driver(Order())
    assert dtype_of("auto", "backbone", CPU) == dtype_of("auto", "vae", CPU, AutoencoderKL.dtypes) == torch.float32
    with driven(driver):
        assert dtype_of("auto", "backbone", gpu) == torch.float16
        assert dtype_of("auto", "vae", gpu, AutoencoderKL.dtypes) == torch.bfloat16
        # Torch emulates it there.
        driver.capability = 7, 5
        assert dtype_of("auto", "vae", gpu, AutoencoderKL.dtypes) == torch.float32
        with pytest.raises(ConfigError, match="this GPU does not do bf16"):
            dtype_of("bf16", "vae", gpu)


def test_an_unknown_format_is_refused_with_those_allowed():
    with pytest.raises(ConfigError, match="'fp8' of the clip is unknown; allowed are auto, fp32, fp16, bf16"):
        dtype_of("fp8", "clip", CPU)


class Tight:
    """A device with room for so many networks' weights, counting those that `held` has."""

    def __init__(self, monkeypatch, held, room):
        self.failures = 0
        self._held, self._room, self._load = held, room, held.loader.load
        monkeypatch.setattr(held.loader, "load", self.load)

    def load(self, recipe, files, stream=None):
        if len(self._held.resident()) >= self._room:
            self.failures += 1
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 MiB. If reserved but unallocated memory is large try setting"
            )
        return self._load(recipe, files)


def test_weights_that_run_out_of_memory_are_loaded_again_without_idle_ones(catalog, monkeypatch):
    held = weights(catalog)
    device = Tight(monkeypatch, held, 2)
    with held.open(backbone("a")):
        held.backbone(backbone("b"))
        assert held.backbone(backbone("c")).network is not None
        assert (names(held), device.failures) == (["a", "c"], 1)


def test_weights_that_do_not_fit_fail_with_figures_and_reserve_nothing(catalog, monkeypatch):
    held = weights(catalog)
    Tight(monkeypatch, held, 1)
    in_use = held.open(backbone("a"))
    megabytes = f"{ONE / 2**20:,.0f}"
    with pytest.raises(DeviceMemoryError) as raised:
        held.backbone(backbone("b"))
    assert str(raised.value) == (
        f"weights of {megabytes} MB do not fit the device's memory besides {megabytes} MB of weights that are in use. "
        "CUDA out of memory. Tried to allocate 2 MiB."
    )
    assert (names(held), held.reserved_bytes) == (["a"], 0)
    in_use.close()
    assert held.backbone(backbone("b")).network is not None


def test_room_that_was_given_is_known_until_the_weights_are_there(catalog):
    held = weights(catalog)
    hold = held.hold(held.needs.of(backbone("a")))
    assert (held.reserved_bytes, held.resident_bytes) == (ONE, 0)
    held.load(hold)
    assert (held.reserved_bytes, held.resident_bytes) == (0, ONE)
    other = held.hold(held.needs.of(backbone("b")))
    assert held.reserved_bytes == ONE
    other.close()
    assert held.reserved_bytes == 0


def test_the_oldest_weights_are_released_until_the_request_is_met(catalog):
    held = weights(catalog)
    for name in "abc":
        held.backbone(backbone(name))
    assert held.release(ONE + 1) == 2 * ONE
    assert names(held) == ["c"]
    assert (held.release(0), names(held)) == (0, ["c"])
    assert (held.release(), held.release(), names(held)) == (ONE, 0, [])
    assert (held.counters.evictions, held.counters.releases) == (3, 3)


def test_what_goes_for_other_weights_is_no_release(catalog):
    held = weights(catalog, ONE)
    held.backbone(backbone("a"))
    held.backbone(backbone("b"))
    assert (held.counters.evictions, held.counters.releases) == (1, 0)


def test_a_text_encoder_of_a_wider_file_has_its_numbers_in_half_precision(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    wide = random_tensors(TEXT, torch.float32)
    for name, tensors in (("wide", wide), ("half", {key: tensor.half() for key, tensor in wide.items()})):
        save_file(tensors, tmp_path / "checkpoints" / f"{name}.safetensors")
    held = weights(Catalog(tmp_path))
    wide, half = (held.clip(Recipe("clip", "checkpoints", f"{name}.safetensors")) for name in ("wide", "half"))
    [(ours, _)], [(theirs, _)] = wide.encode(["a fox"])[0], half.encode(["a fox"])[0]
    assert torch.equal(ours, theirs)


def test_a_load_counts_what_it_reads_up_to_all_of_the_part(catalog, monkeypatch):
    seen = []

    class Watched(LoadProgress):
        def add(self, count):
            super().add(count)
            seen.append((made.load_under_way is self, self.done, self.total))

    monkeypatch.setattr(loading, "LoadProgress", Watched)
    made = weights(catalog)
    made.backbone(backbone("a"))
    assert len(seen) > 10
    in_file = ONE // 2  # sixteen bits each
    assert seen[-1] == (True, in_file, in_file)
    assert made.load_under_way is None
    assert str(LoadProgress("sd15", 4_000_000_000, 2_100_000_000)) == "loading sd15, 2.1 of 4.0 GB"
