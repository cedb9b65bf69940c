"""All that is asked of a card, in exact numbers: what samplers, networks and jobs cost on the honest one.

A forward of one job is meant to take at most 25 kernels around its networks and two more for each further job, and to
wait for nothing. `test_card`, `test_card_draws`, `test_card_networks`, `test_card_jobs`, and of models `test_one_call`
and `test_one_call_net` count them.
"""

from __future__ import annotations

SAMPLERS = {
    "cfgpp_ud10_ab": (11, 0, 12, 0),
    "ddim": (10, 0, 11, 0),
    "ddpm": (11, 0, 19, 0),
    "deis": (11, 0, 12, 0),
    "dpm_2": (10, 0, 11, 0),
    "dpm_2_ancestral": (11, 0, 19, 0),
    "dpm_adaptive": (22, 1, 31, 1),
    "dpm_fast": (11, 0, 12, 0),
    "dpmpp_2m": (10, 0, 11, 0),
    "dpmpp_2m_cfg_pp": (10, 0, 11, 0),
    "dpmpp_2m_sde": (11, 0, 12, 0),
    "dpmpp_2m_sde_gpu": (11, 0, 12, 0),
    "dpmpp_2m_sde_heun": (11, 0, 12, 0),
    "dpmpp_2m_sde_heun_gpu": (11, 0, 12, 0),
    "dpmpp_2s_ancestral": (12, 0, 20, 0),
    "dpmpp_2s_ancestral_cfg_pp": (12, 0, 20, 0),
    "dpmpp_3m_sde": (11, 0, 12, 0),
    "dpmpp_3m_sde_gpu": (11, 0, 12, 0),
    "dpmpp_sde": (11, 0, 12, 0),
    "dpmpp_sde_gpu": (11, 0, 12, 0),
    "er_sde": (13, 0, 21, 0),
    "euler": (10, 0, 11, 0),
    "euler_ancestral": (11, 0, 19, 0),
    "euler_ancestral_cfg_pp": (11, 0, 19, 0),
    "euler_cfg_pp": (10, 0, 11, 0),
    "exp_heun_2_x0": (12, 0, 20, 0),
    "exp_heun_2_x0_sde": (12, 0, 20, 0),
    "gradient_estimation": (11, 0, 12, 0),
    "gradient_estimation_cfg_pp": (10, 0, 11, 0),
    "heun": (11, 0, 12, 0),
    "heunpp2": (11, 0, 12, 0),
    "ipndm": (12, 0, 13, 0),
    "ipndm_v": (12, 0, 13, 0),
    "lcm": (11, 0, 19, 0),
    "lms": (12, 0, 13, 0),
    "res_multistep": (10, 0, 11, 0),
    "res_multistep_ancestral": (12, 0, 20, 0),
    "res_multistep_ancestral_cfg_pp": (12, 0, 20, 0),
    "res_multistep_cfg_pp": (10, 0, 11, 0),
    "sa_solver": (12, 0, 20, 0),
    "sa_solver_pece": (12, 0, 20, 0),
    "seeds_2": (12, 0, 20, 0),
    "seeds_3": (12, 0, 20, 0),
    "uni_pc": (12, 0, 13, 0),
    "uni_pc_bh2": (12, 0, 13, 0),
}
"""By sampler: kernels around a forward of one job, and what waits for the card; the same of eight jobs."""

BESIDE = {
    "DifferentialDiffusion": (18, 0, 33, 0),
    "EpsilonScaling": (10, 0, 11, 0),
    "TemporalRescaling": (10, 0, 11, 0),
    "a mask": (16, 0, 17, 0),
    "a picture of each step": (11, 0, 19, 0),
    "a sampler of its own": (10, 0, 15, 0),
    "texts padded": (10, 0, 11, 0),
    "texts repeated": (10, 0, 23, 0),
    "texts under masks": (13, 0, 14, 0),
}
"""The same of Euler's jobs that have something beside."""

NO_SUMS = {
    "AdaptiveProjection": (35, 0, 190, 0),
    "CfgNorm": (21, 0, 78, 0),
    "CfgZeroStar": (26, 0, 118, 0),
    "FrequencyScaling": (24, 0, 102, 0),
    "Mahiro": (41, 0, 238, 0),
    "NoiseNorm": (28, 0, 134, 0),
    "RenormCfg": (20, 0, 70, 0),
    "RescaleCfg": (29, 0, 142, 0),
    "TangentialDamping": (28, 0, 134, 0),
    "an area": (25, 0, 54, 0),
    "perpendicular negatives": (27, 0, 126, 0),
}
"""The same of what is more than a sum of latents, which each job computes by itself: more than two kernels a job."""

DRAWS = {
    "dpmpp_2m_sde": (0, 5, 0),
    "dpmpp_2m_sde_gpu": (109, 5, 0),
    "dpmpp_2m_sde_heun": (0, 5, 0),
    "dpmpp_2m_sde_heun_gpu": (109, 5, 0),
    "dpmpp_3m_sde": (0, 5, 0),
    "dpmpp_3m_sde_gpu": (109, 5, 0),
    "dpmpp_sde": (0, 10, 0),
    "dpmpp_sde_gpu": (226, 10, 0),
}
"""By sampler: kernels, copies and waits that threads of noise ask for, beside forwards, in a run of six steps.

Eight runs take eight times as much. A draw's copy is of the weights of what it is a sum of, or of what a CPU has drawn.
"""

BROWNIAN = [(30, 1, 0), (28, 1, 0), (26, 1, 0), (24, 1, 0), (24, 1, 0), (25, 1, 0), (24, 1, 0), (22, 1, 0), (5, 1, 0)]
"""By step: kernels, copies and waits of a `_gpu` sampler's noise; each halving of its path is a draw."""

UNETS = {
    "plain": (10, 284, 11, 284),
    "a ControlNet": (13, 426, 14, 426),
    "FreeU": (10, 314, 11, 314),
    "one set of LoRAs": (10, 396, 11, 396),
    "eight sets of LoRAs": (10, 396, 11, 396),
}
"""By what jobs have: kernels around the networks of a forward of one job and in them, and the same of eight jobs.

A ControlNet's are in the networks'. LoRAs change 56 layers, each for two kernels whatever the number of sets.
"""

REPLAYED_UNETS = {
    "plain": (13, 14, 1),
    "a ControlNet": (19, 20, 2),
    "FreeU": (13, 14, 1),
    "one set of LoRAs": (13, 14, 1),
    "eight sets of LoRAs": (13, 14, 1),
}
"""Where networks' calls are replayed: all kernels that the host asks for in a forward of one job and of eight; replays.

Those that bring inputs to their places are among them. One more than a card takes is counted for each replay, which
here is a call and a copy of what it gives.
"""

REPLAYED_TRANSFORMERS = {
    "anima": (26, 341),
    "auraflow": (6, 109),
    "chroma": (15, 230),
    "ernie_image": (6, 145),
    "flux": (20, 201),
    "flux2": (13, 320),
    "flux2_klein": (10, 269),
    "flux_depth": (19, 200),
    "flux_fill": (19, 200),
    "flux_schnell": (17, 184),
    "ideogram4": (14, 168),
    "krea2": (16, 281),
    "lumina2": (32, 435),
    "omnigen2": (50, 411),
    "pixart": (13, 93),
    "pixart_alpha": (13, 111),
    "qwen": (15, 194),
    "qwen21": (8, 162),
    "qwen_2511": (15, 171),
    "qwen_layered": (13, 121),
    "sd3": (7, 116),
    "sd35": (7, 187),
    "wan": (16, 129),
    "wan22": (15, 123),
    "wan_vace": (15, 145),
    "zimage": (32, 219),
}
"""Kernels around the call of a replayed forward of three rows, filled up to four, and those in the call.

All are of small networks of one to three blocks; a deeper network has more in its call, and no more around it. One more
than a card takes is counted around, as a replay is here a call and a copy of what it gives.
"""

REPLAYED_CONTROL_NETS = {
    "unet": (12, 426),
    "unet union": (13, 427),
    "sd3_diffusers": (19, 351),
    "sd3_masked": (17, 345),
    "sd3_large": (17, 306),
    "sd3_large_pooled": (17, 290),
    "flux_union": (18, 957),
    "flux_doubles": (18, 863),
    "flux_masked": (18, 957),
    "flux_xlabs": (18, 716),
    "flux_mistoline": (18, 778),
    "qwen_union": (80, 1039),
    "qwen_masked": (78, 1770),
    "qwen_fun": (81, 1098),
}
"""By ControlNet: kernels that the host asks for in a forward of three rows under it, and those that it has replayed.

Both networks' rows are filled up to four. One more than a card takes is counted for each replay, which here is a call
and a copy. Qwen-Image's embeds what its ControlNets are told, before they and it do.
"""

JOBS = {
    "a run begins": (6, 0),
    "a run with a mask begins": (7, 0),
    "a run ends": (2, 0),
    "a text": (4, 0),
    "a weighted text": (5, 0),
    "four texts": (10, 0),
    "a text of SDXL": (6, 0),
    "a text of SD 3 without CLIP-L": (5, 0),
    "a text of HiDream": (11, 0),
    "an image is seen": (4, 0),
    "an image is decoded": (2, 0),
    "three images are decoded in slices": (4, 0),
    "an image is encoded": (2, 0),
}
"""By what is done: how many copies it asks for that the host does not wait for, and what it waits for."""
