"""One sampler run, driven by hand."""

from __future__ import annotations

import pytest
import torch

from serve_app.engine.trajectory import Trajectory
from serve_app.errors import NodeError
from serve_app.sampling.lazy_sum import compute
from serve_app.sampling.samplers.error_estimate import read
from serve_app.sampling.schedules.levels import TableLevels
from tests.unit.engine.mixes import TinyBackbone, request, tiny_flow


def drive(trajectory, answer):
    """Answer a trajectory's pieces until its end; return the x it showed at each evaluation."""
    seen = []
    trajectory.start()
    while trajectory.result is None:
        seen.append(trajectory.pieces[0].x)
        trajectory.feed([answer(piece) for piece in trajectory.pieces])
        trajectory.advance()
    return seen


def test_progress_is_reported_once_a_step_however_many_evaluations_a_step_takes():
    reports = []
    trajectory = Trajectory(TinyBackbone(), request(sampler="heun", steps=3), lambda *report: reports.append(report))
    seen = drive(trajectory, lambda piece: piece.x * 0)
    assert len(seen) == 5
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_what_a_sampler_has_to_read_can_be_read_with_that_of_others_once_what_is_written_down_is_computed():
    asked = [request(sampler="dpm_adaptive", seed=seed) for seed in range(2)]
    alone, together = ([Trajectory(TinyBackbone(), one) for one in asked] for _ in range(2))
    for trajectory in alone:
        drive(trajectory, lambda piece: piece.x.cos())
    for trajectory in together:
        trajectory.start()
    while waiting := [trajectory for trajectory in together if trajectory.result is None]:
        for trajectory in waiting:
            trajectory.feed([piece.x.cos() for piece in trajectory.pieces])
        compute(latents for trajectory in waiting for latents in trajectory.pending)
        choosing = {trajectory: of for trajectory in waiting if (of := trajectory.error_estimate) is not None}
        read(choosing.values())
        for trajectory in choosing:
            trajectory.go_on()
        for trajectory in waiting:
            assert trajectory.error_estimate is None
            trajectory.advance()
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.result.latents, other.result.latents)


def test_cond_and_uncond_are_one_evaluation_of_twice_the_rows():
    trajectory = Trajectory(TinyBackbone(), request(shape=(3, 4, 2, 2)))
    trajectory.start()
    assert [piece.rows for piece in trajectory.pieces] == [3, 3]
    assert trajectory.cells == 6 * 4
    assert trajectory.key == ("tiny", (4, 2, 2))


def test_latents_are_scaled_on_the_way_in_and_back_on_the_way_out():
    r = request(seed=None, sampler="lcm", steps=1)
    trajectory = Trajectory(TinyBackbone(), r)
    [x] = drive(trajectory, lambda piece: piece.x)
    torch.testing.assert_close(x, r.latents * 0.18215)
    torch.testing.assert_close(trajectory.result.latents, r.latents)


def test_a_run_with_no_entries_ends_at_zero_without_asking_the_network():
    trajectory = Trajectory(TinyBackbone(), request(positive=[], negative=[]))
    trajectory.start()
    assert trajectory.pieces == ()
    torch.testing.assert_close(trajectory.result.latents, torch.zeros(1, 4, 4, 4))


def test_a_mask_keeps_the_latents_where_it_is_zero_and_samples_where_it_is_one():
    mask = torch.zeros(1, 32, 32)
    mask[:, :, 16:] = 1
    r = request(noise_mask=mask, steps=5, cfg=1.0)
    trajectory = Trajectory(TinyBackbone(), r)
    seen = drive(trajectory, lambda piece: torch.full_like(piece.x, 0.5))
    kept, sampled = trajectory.result.latents.tensor_split(2, dim=-1)
    torch.testing.assert_close(kept, r.latents[..., :2])
    torch.testing.assert_close(sampled, torch.full_like(sampled, 0.5 / 0.18215))
    # The network sees what is kept at each level with the job's own noise: the same noise, less of it.
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))[..., :2]
    sigmas = TableLevels().sigma(torch.linspace(999, 0, 5))
    for x, sigma in zip(seen, sigmas, strict=True):
        torch.testing.assert_close(x[..., :2], r.latents[..., :2] * 0.18215 + noise * sigma)


def test_ddim_keeps_masked_latents_with_noise_of_the_next_seed():
    mask = torch.zeros(1, 4, 4)
    r = request(sampler="ddim", noise_mask=mask, seed=6)
    trajectory = Trajectory(TinyBackbone(), r)
    trajectory.start()
    assert isinstance(r.latents, torch.Tensor)
    held = trajectory.pieces[0].x - r.latents * 0.18215
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(held, noise * 14.614641, rtol=1e-4, atol=1e-4)


def test_sigmas_that_a_sampler_cannot_step_over_are_an_error_that_names_it():
    upwards = torch.tensor([0.5, 2.0, 8.0])
    trajectory = Trajectory(TinyBackbone(), request(sampler="seeds_2", sigmas=upwards))
    with pytest.raises(NodeError, match="sampler 'seeds_2' cannot step over the sigmas it was given"):
        drive(trajectory, lambda piece: piece.x / 2)


def test_what_a_run_last_took_for_the_image_comes_with_its_latents():
    whole = Trajectory(TinyBackbone(), request(sigmas=torch.tensor([9.0, 3.0, 1.0, 0.0]), cfg=1.0))
    drive(whole, lambda piece: piece.x / 2)
    # A step to zero jumps to the image; one that leaves noise ends before it.
    torch.testing.assert_close(whole.result.latents, whole.result.denoised)
    left = Trajectory(TinyBackbone(), request(sigmas=torch.tensor([9.0, 3.0, 1.0]), cfg=1.0))
    *_, last = drive(left, lambda piece: piece.x / 2)
    torch.testing.assert_close(left.result.denoised, last / 2 / 0.18215)
    torch.testing.assert_close(left.result.latents, (last / 2 + last / 2 / 3) / 0.18215)


def test_on_a_flow_a_run_begins_with_noise_alone_and_ends_with_latents_moved_back():
    trajectory = Trajectory(tiny_flow(), request(shape=(2, 3, 1, 4, 4), steps=3, cfg=1.0, noise_seed=5))
    [first, *_] = drive(trajectory, lambda piece: torch.ones_like(piece.x))
    assert torch.equal(first, torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(5)))
    channels = trajectory.result.latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels, torch.tensor([3.0, 0.0, 0.5])[:, None].expand(3, 32))


def test_on_a_flow_what_is_left_of_noise_comes_with_latents_of_whole_size():
    halves = [torch.tensor([1.0, 0.7, 0.4]), torch.tensor([0.4, 0.2, 0.0])]
    whole = Trajectory(tiny_flow(), request(shape=(1, 3, 1, 4, 4), sigmas=torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0])))
    drive(whole, lambda piece: piece.x.cos())
    first = Trajectory(tiny_flow(), request(shape=(1, 3, 1, 4, 4), sigmas=halves[0]))
    drive(first, lambda piece: piece.x.cos())
    rest = request(latents=first.result.latents, seed=None, sigmas=halves[1])
    second = Trajectory(tiny_flow(), rest)
    drive(second, lambda piece: piece.x.cos())
    torch.testing.assert_close(second.result.latents, whole.result.latents, rtol=1e-4, atol=1e-5)


def test_empty_latents_are_sampled_as_the_model_has_them_and_are_not_moved_by_a_mean():
    r = request(latents=torch.zeros(2, 4, 8, 6), factor=16, sigmas=torch.tensor([0.5, 0.0]), seed=None)
    trajectory = Trajectory(tiny_flow(), r)
    [x] = drive(trajectory, lambda piece: torch.zeros_like(piece.x))
    assert torch.equal(x, torch.zeros(2, 3, 1, 16, 12))
    assert trajectory.result.latents.shape == (2, 3, 1, 16, 12)


def test_latents_with_other_channels_that_are_not_empty_are_an_error():
    with pytest.raises(NodeError, match=r"\(1,4,1,4,4\); this model samples latents \(batch,3,time,height,width\)"):
        Trajectory(tiny_flow(), request(shape=(1, 4, 4, 4))).start()


def test_a_batch_of_masks_acts_moment_by_moment():
    mask = torch.zeros(2, 4, 4)
    mask[1] = 1
    r = request(shape=(1, 3, 2, 4, 4), noise_mask=mask, steps=3, cfg=1.0)
    trajectory = Trajectory(tiny_flow(), r)
    drive(trajectory, lambda piece: torch.ones_like(piece.x))
    torch.testing.assert_close(trajectory.result.latents[:, :, 0], r.latents[:, :, 0])
    sampled = trajectory.result.latents[0, :, 1].flatten(1)
    torch.testing.assert_close(sampled, torch.tensor([3.0, 0.0, 0.5])[:, None].expand(3, 16))
