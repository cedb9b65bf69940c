"""Controls of many jobs in one forward, on small networks with drawn weights."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import NodeError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control.control import Controlled, activated, recipes
from serve_app.models.families import Sd
from serve_app.models.families.unet.unet import UnetCall, UnetInputs, arguments, residuals
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.controls import HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Piece, denoise
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.values import Control
from tests.unit.models.control_nets import ARCHITECTURE, adapter, backbone, control_net

LEVELS = TableLevels()
A, B, T, U = (Recipe("controlnet", "controlnet", name) for name in ("a", "b", "adapter", "union"))


@pytest.fixture(scope="module", autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def nets():
    return {A: control_net(1), B: control_net(2), T: adapter(3), U: control_net(4, kinds=3)}


@pytest.fixture(scope="module")
def unet():
    return backbone()


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hint(seed, count=1):
    return torch.sigmoid(normal(seed, count, 40, 56, 3))


def piece(nets, control, seed=0, rows=1, sigma=2.0):
    """Return a piece of rows under the control's chain."""
    conds = {"positive": [(normal(seed, 1, 7, 16), {} if control is None else {"control": control})]}
    ((context, options),) = activated(conds, nets, ARCHITECTURE, LEVELS)["positive"]
    inputs = UnetInputs(context.expand(rows, -1, -1), controls=options.get("control", ()))
    return Piece(SimpleNamespace(), normal(seed + 100, rows, 4, 6, 8), sigma, inputs)


def told(pieces):
    """Return what the networks are told of all the rows."""
    sigma = torch.tensor([p.sigma for p in pieces for _ in range(p.rows)])
    x = torch.cat([p.x for p in pieces]) / (sigma**2 + 1).sqrt()[:, None, None, None]
    return UnetCall(x, LEVELS.timestep(sigma), torch.cat([p.inputs.context for p in pieces]))


def added(pieces):
    """Return what controls add to the pieces' forward."""
    return arguments(residuals([Controlled(p.rows, p.sigma, p.inputs.controls) for p in pieces], told(pieces)))


def forward(unet, pieces):
    call = told(pieces)
    return unet(call.x, call.timestep, call.context, return_dict=False, **added(pieces))[0]


def calls(module, work):
    """Return how many rows each forward of a module had while the work was done."""
    rows = []
    handle = module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    work()
    handle.remove()
    return rows


def test_rows_with_no_one_and_two_controls_in_one_forward_are_as_each_alone(nets, unet):
    told_apart = U.with_patch(HintKind(2))
    nets = {**nets, told_apart: nets[U]}
    first = Control(A, hint(1), 0.8)
    pieces = [
        piece(nets, None, 0),
        piece(nets, first, 1, rows=2),
        piece(nets, Control(B, hint(2, 2), 0.5, previous=first), 2, rows=3, sigma=0.4),
        piece(nets, Control(T, hint(3), 0.6), 3, sigma=9.0),
        piece(nets, Control(A, hint(4), 1.3, previous=Control(T, hint(3), 0.2)), 4),
        piece(nets, Control(U, hint(5), 1.0), 5),
        piece(nets, Control(told_apart, hint(5), 1.0), 6),
        piece(nets, Control(A, hint(1), 0.3, previous=first), 7),
    ]
    together = forward(unet, pieces)
    alone = torch.cat([forward(unet, [p]) for p in pieces])
    assert (together - alone).norm() / alone.norm() <= 1e-5


SHARES = st.sampled_from([(0.0, 1.0), (0.0, 0.4), (0.4, 1.0)])


@st.composite
def mixes(draw):
    """Any few pieces: (chain, text length, rows, sigma) each; of a chain: (net, hint, its images, strength, share)."""
    control = st.tuples(
        st.sampled_from([A, B, T, U]),
        st.integers(1, 2),
        st.integers(1, 2),
        st.floats(0.1, 1.5),
        SHARES,
    )
    made = st.tuples(
        st.lists(control, max_size=3), st.integers(2, 5), st.integers(1, 2), st.sampled_from([0.3, 2.0, 9.0])
    )
    return draw(st.lists(made, min_size=1, max_size=5))


@given(mix=mixes())
def test_any_mix_of_controls_in_one_forward_is_as_each_alone(nets, unet, mix):
    answering = RecipeBackbone(LoadedNetwork("tiny", ARCHITECTURE, unet, Discrete()))
    pieces = []
    for seed, (chain, length, rows, sigma) in enumerate(mix):
        last = None
        for net, number, images, strength, (start, end) in chain:
            last = Control(net, hint(number, images), strength, start, end, last)
        given = {} if last is None else {"control": last}
        ((text, options),) = activated({"": [(normal(seed, 1, length, 16), given)]}, nets, ARCHITECTURE, LEVELS)[""]
        inputs = UnetInputs(text.expand(rows, -1, -1), controls=options.get("control", ()))
        pieces.append(Piece(answering, normal(seed + 9, rows, 4, 6, 8) * sigma, sigma, inputs))
    together = torch.cat(denoise(pieces))
    alone = torch.cat([denoise([p])[0] for p in pieces])
    assert (together - alone).norm() / alone.norm() <= 1e-5


def test_a_control_changes_the_rows_that_are_under_it_and_no_others(nets, unet):
    plain = piece(nets, None, 1)
    for recipe in (A, T, U):
        under = piece(nets, Control(recipe, hint(1), 1.0), 1)
        without, with_one = forward(unet, [plain, plain]), forward(unet, [plain, under])
        torch.testing.assert_close(with_one[0], without[0], rtol=1e-5, atol=1e-5)
        assert (with_one[1] - without[1]).norm() > 1e-2 * without[1].norm()


def test_rows_of_all_jobs_under_one_controlnet_are_one_forward_of_it(nets):
    pieces = [piece(nets, Control(A, hint(i), 1.0), i, rows=i) for i in (1, 2)]
    pieces.insert(1, piece(nets, None, 5, rows=4))
    assert calls(nets[A].network, lambda: added(pieces)) == [3]


def test_a_hint_is_read_once_for_all_entries_and_steps_of_a_run(nets):
    control = Control(A, hint(1), 1.0)
    conds = {role: [(normal(0, 1, 7, 16), {"control": control})] for role in ("positive", "negative")}
    active = activated(conds, nets, ARCHITECTURE, LEVELS)
    pieces = [
        Piece(SimpleNamespace(), normal(1, 1, 4, 6, 8), 2.0, UnetInputs(cond, controls=options["control"]))
        for ((cond, options),) in active.values()
    ]

    def two_steps():
        for _ in range(2):
            added(pieces)

    assert calls(nets[A].network.hint_block[0], two_steps) == [1]


@pytest.mark.parametrize(("sigma", "acts"), [(14.0, False), (4.0, True), (0.05, False)])
def test_a_control_acts_only_within_its_share_of_the_levels(nets, sigma, acts):
    control = Control(A, hint(1), 1.0, start_percent=0.2, end_percent=0.8)
    waiting = [piece(nets, control, sigma=sigma)]
    assert bool(added(waiting)) is acts


def test_a_control_acts_at_the_very_levels_it_starts_and_ends_with(nets):
    control = Control(A, hint(1), 1.0, start_percent=0.2, end_percent=0.8)
    for share in (0.2, 0.8):
        waiting = [piece(nets, control, sigma=LEVELS.at_progress(share))]
        assert added(waiting)


def test_the_controlnets_of_all_chains_are_found_once_each():
    chain = Control(A, hint(1), 1.0, previous=Control(B, hint(1), 1.0))
    conds = {"positive": [(hint(1), {"control": chain})], "negative": [(hint(1), {}), (hint(1), {"control": chain})]}
    assert recipes(conds) == (A, B)


@pytest.mark.parametrize(
    ("recipe", "channels", "architecture", "says"),
    [
        (A, 4, ARCHITECTURE, "the hint has 4 channels; 'net1.safetensors' takes 3"),
        (A, 3, Sd((32, 64), (1, 1), (1, 1), 1, context_dim=24), "another family"),
        (T, 3, Sd((32, 64, 64), (1, 1, 1), (1, 1, 1), 1, context_dim=16), "another family"),
        (U.with_patch(HintKind(3)), 3, ARCHITECTURE, "knows 3 kinds of hint, and kind 3"),
    ],
)
def test_incompatible_controls_are_refused_before_the_run(nets, recipe, channels, architecture, says):
    known = {**nets, U.with_patch(HintKind(3)): nets[U]}
    control = Control(recipe, torch.zeros(1, 8, 8, channels), 1.0)
    with pytest.raises(NodeError, match=says):
        activated({"positive": [(hint(1), {"control": control})]}, known, architecture, LEVELS)
