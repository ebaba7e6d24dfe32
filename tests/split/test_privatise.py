"""States leave with the noise that was promised: one a text, none shared, none at padding, none by seed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.errors import LinkRefusedError, MisconfiguredError, NeverError
from transom.privacy.account import gaussian
from transom.privacy.guarantee import price, released
from transom.split.job import Noise
from transom.split.privatise import Privatiser, guarantee, make_privatiser
from transom.split.rows import padded
from transom.split.settle import settle
from transom.split.settled import Settled, settled_from

from .test_settle import RUN, SECRET, front_of, job_of, rows_of

D_CHI = Settled(Noise("d_chi", eta=9.0), 0, False, releases=1, longest=16, nearest=0.5, eta=9.0)
GAUSSIAN = replace(D_CHI, noise=Noise("gaussian", clip=2.0, sigma=0.5), eta=None)
NONE = replace(D_CHI, noise=Noise(), eta=None)
TEXTS = [[5, 6, 7], [5, 6, 8, 9], [7]]


def batch_of(texts: list[list[int]], wide: int = 0, width: int = 32) -> tuple[Any, Any, Any]:
    """States that depend on the token alone, ids and mask, padded on the right."""
    long = max(wide, *map(len, texts))
    ids_BT = torch.tensor([text + [0] * (long - len(text)) for text in texts])
    mask_BT = torch.tensor([[1] * len(text) + [0] * (long - len(text)) for text in texts])
    table = torch.randn(100, width, generator=torch.Generator().manual_seed(0))
    return table[ids_BT], ids_BT, mask_BT


def sent(settled: Settled, texts: list[list[int]], numbers: list[int], step: int = 0, **more: Any) -> Any:
    privatiser = Privatiser(settled, more.pop("secret", SECRET), more.pop("run", RUN))
    return privatiser(*batch_of(texts, more.pop("wide", 0)), numbers, step, **more)


@pytest.mark.parametrize("settled", [D_CHI, GAUSSIAN])
@given(data=st.data())
def test_a_text_has_the_same_noise_in_every_batch_and_epoch(settled: Settled, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True))
    wide, step = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 99))
    alone = [sent(settled, [TEXTS[number]], [number])[0] for number in range(3)]
    together = sent(settled, [TEXTS[number] for number in numbers], numbers, step, wide=wide)
    for row, number in enumerate(numbers):
        long = len(TEXTS[number])
        assert torch.equal(together[row, :long], alone[number])
        assert not together[row, long:].any()


@pytest.mark.parametrize("settled", [D_CHI, GAUSSIAN])
def test_no_two_texts_rows_topics_runs_or_secrets_share_noise(settled: Settled) -> None:
    text, other = [5, 6, 7], [5, 6, 8]
    all_noise = [
        sent(settled, [text], [0]),
        sent(settled, [text], [1]),
        sent(settled, [text], [0], topic="evaluate"),
        sent(settled, [text], [0], topic="predict"),
        sent(settled, [text], [0], run="other"),
        sent(settled, [text], [0], secret=bytes(32)),
        sent(settled, [other], [0]),
        sent(settled, [[*text, 9]], [0]),
    ]
    first_tokens = np.stack([one[0, 0].numpy() for one in all_noise])  # of the same token
    apart = stats.rankdata(np.linalg.norm(first_tokens[:, None] - first_tokens[None], axis=-1), "min")
    assert (apart == 1).sum() == len(all_noise)  # only each from itself


def test_a_front_that_changes_has_noise_of_its_own_at_every_step() -> None:
    changing = replace(D_CHI, changing=True)
    privatiser, (states, ids, mask) = Privatiser(changing, SECRET, RUN), batch_of(TEXTS)
    first = privatiser(states, ids, mask, [0, 1, 2], 4)
    assert torch.equal(first, privatiser(states, ids, mask, [0, 1, 2], 4))
    noise = first - states
    assert not torch.isclose(privatiser(states, ids, mask, [0, 1, 2], 5) - states, noise)[0, :3].any()
    moved = states + 1e-3  # the same step again, after a restart, with other states: nothing cancels out
    assert not torch.isclose(privatiser(moved, ids, mask, [0, 1, 2], 4) - moved, noise, atol=1e-4)[
        0, :3
    ].all()


def test_the_noise_is_of_the_law_and_the_sum_is_rounded_once() -> None:
    texts = [np.random.default_rng(row).integers(1, 99, 16).tolist() for row in range(200)]
    states, ids, mask = batch_of(texts)
    noise_ND = (
        (Privatiser(D_CHI, SECRET, RUN)(states, ids, mask, range(200), 0) - states).flatten(0, 1).numpy()
    )
    lengths_N = np.linalg.norm(noise_ND, axis=1)
    assert stats.kstest(lengths_N, stats.gamma(32, scale=1 / 9).cdf).pvalue > 1e-3
    assert np.abs((noise_ND / lengths_N[:, None]).mean(0)).max() < 4 / math.sqrt(32 * len(noise_ND))
    row = replace(D_CHI, noise=replace(D_CHI.noise, spare=50.0, contributing=0.1), spared=(int(ids[0, 0]),))
    spared = Privatiser(row, SECRET, RUN)(states, ids, mask, range(200), 0) - states
    same_T = ids[0] == ids[0, 0]
    assert float(spared[0, same_T].norm(dim=-1).max()) < 0.05 * float(spared[0, ~same_T].norm(dim=-1).min())


def test_the_gaussian_clips_before_it_adds() -> None:
    states, ids, mask = batch_of(TEXTS)
    quiet = replace(GAUSSIAN, noise=Noise("gaussian", clip=2.0, sigma=1e-9))
    out = Privatiser(quiet, SECRET, RUN)(100 * states, ids, mask, [0, 1, 2], 0)
    real = mask == 1
    torch.testing.assert_close(out[real].norm(dim=-1), torch.full((8,), 2.0))
    torch.testing.assert_close(out[real], torch.nn.functional.normalize(states[real], dim=-1) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_type_is_kept_and_no_graph_leaves(dtype: torch.dtype) -> None:
    states, ids, mask = batch_of(TEXTS)
    states = states.to(dtype).requires_grad_()
    for settled in (NONE, D_CHI):
        out = Privatiser(settled, SECRET, RUN)(states, ids, mask, [0, 1, 2], 0)
        assert (out.dtype, out.requires_grad, out.shape) == (dtype, False, states.shape)
        assert torch.equal(out[mask == 1], states[mask == 1]) == (settled is NONE)


def test_what_does_not_fit_does_not_leave() -> None:
    privatiser, (states, ids, mask) = Privatiser(D_CHI, SECRET, RUN), batch_of(TEXTS)
    broken = states.clone()
    broken[0, 1, 3] = math.nan
    with pytest.raises(LinkRefusedError, match="not finite"):
        privatiser(broken, ids, mask, [0, 1, 2], 0)
    for call in (
        (states[:, 1:], ids, mask, [0, 1, 2]),
        (states, ids, mask, [0, 1]),
        (states, ids, mask[:2], [0]),
    ):
        with pytest.raises(MisconfiguredError, match="do not fit each other"):
            privatiser(*call, 0)
    with pytest.raises(MisconfiguredError, match="a text has 17 tokens, and the run's at most 16"):
        privatiser(*batch_of([[5] * 17]), [0], 0)
    with pytest.raises(MisconfiguredError, match="the secret has 3 bytes"):
        Privatiser(D_CHI, b"abc", RUN)(states, ids, mask, [0, 1, 2], 0)
    assert SECRET.hex() not in repr(privatiser)
    assert repr(SECRET) not in repr(privatiser)


def test_the_guarantee_is_of_what_was_done() -> None:
    small = replace(D_CHI, eta=3.0, noise=Noise("d_chi", eta=3.0))
    found = guarantee(small)
    assert (found.kind, found.unit[:18]) == ("metric-dp", "one token's vector")
    assert found.epsilon == pytest.approx(3)
    assert guarantee(replace(small, releases=5)).epsilon == pytest.approx(15)
    for weak in (
        replace(small, eta=30.0),
        replace(small, spared=(7,), spared_told="1 tokens"),
        replace(small, after_block=1),
        NONE,
    ):
        assert guarantee(weak).kind == "empirical"
        with pytest.raises(NeverError):
            price(guarantee(weak), 1e-5)
    found_on_texts = guarantee(replace(small, eta_from="the customer's texts"))
    assert "found on the texts" in found_on_texts.discloses[-1]
    assert "length of the noise" in found_on_texts.discloses[-1]


def test_the_report_s_bound_is_the_guarantee_s_with_a_shape_too() -> None:
    noise = Noise("d_chi", eta=3.0, inside=0.5, public=Path("public.txt"))
    report = Privatiser(replace(D_CHI, eta=3.0, noise=noise, nearest=1.5), SECRET, RUN).report()
    assert report["eta_times_nearest"] == pytest.approx(9)
    assert f"{report['eta_times_nearest']:g} between two nearest" in report["guarantee"]["assumptions"][0]


def test_denoised_rows_have_no_length_of_noise_and_tell_of_what_they_are_computed_with() -> None:
    denoised = replace(D_CHI, eta=3.0, noise=Noise("d_chi", eta=3.0, denoise=True))
    assert (guarantee(denoised).kind, guarantee(denoised).discloses) == ("metric-dp", ())  # post-processing
    report = Privatiser(denoised, SECRET, RUN).report()
    assert report["sent"].startswith("of each noisy row what it lets expect")
    assert "length of the noise" not in report["eta_known_to_vendor"]
    found_on_texts = guarantee(replace(denoised, eta_from="the customer's texts"))
    assert "computed with eta" in found_on_texts.discloses[-1]
    spared = guarantee(replace(denoised, spared=(7,), spared_told="1 tokens"))
    assert spared.discloses[-1].startswith("which tokens are spared: what is sent is computed with")
    assert Privatiser(replace(denoised, noise=Noise("d_chi", eta=3.0)), SECRET, RUN).report()["sent"] == (
        "the noisy rows"
    )


@pytest.mark.parametrize("releases", [1, 4])
def test_the_gaussian_is_priced_by_a_token_at_the_embedding_and_by_a_text_after_a_block(
    releases: int,
) -> None:
    token = guarantee(replace(GAUSSIAN, releases=releases))
    text = guarantee(replace(GAUSSIAN, releases=releases, after_block=2))
    assert released(token) == (gaussian(sigma=0.5, clip=2.0, neighbours="replace-one", count=releases),)
    assert released(text) == (gaussian(sigma=0.5, clip=8.0, neighbours="replace-one", count=releases),)
    assert price(text, 1e-5) > price(token, 1e-5) > 0
    assert "all tokens of one text" in text.adjacency
    assert not any("its own token alone" in one for one in text.assumptions)


@pytest.mark.parametrize("after_block", [0, 1])
@pytest.mark.parametrize("kind", ["none", "d_chi", "gaussian"])
def test_the_report_says_what_happened(bert: Path, kind: str, after_block: int) -> None:
    options: dict[str, Any] = {"d_chi": {"eta": 40.0}, "gaussian": {"clip": 0.1, "sigma": 0.2}}.get(kind, {})
    job = job_of(bert, after_block=after_block, kind=kind, **options)
    privatiser = make_privatiser(job, front_of(job), rows_of(0), SECRET, RUN)
    report = json.loads(json.dumps(privatiser.report()))
    assert report["noise"]["kind"] == kind
    assert (report["eta"] is None) == (report["eta_times_nearest"] is None) == (kind != "d_chi")
    assert (report["privacy_nearest_neighbour"] is None) == (after_block > 0)
    assert ("inverter" in (report["not_measured"] or "")) == (after_block > 0)
    assert report["guarantee"]["kind"] == privatiser.guarantee.kind
    if not after_block and kind == "none":
        assert report["privacy_nearest_neighbour"]["all"] == 0


@pytest.mark.parametrize("after_block", [0, 2])
def test_a_run_that_goes_on_sends_the_bytes_of_before(bert: Path, after_block: int) -> None:
    job = job_of(bert, after_block=after_block, kind="d_chi", eta=40.0, contributing=0.1, spare=2)
    front, rows = front_of(job), rows_of(0)
    fresh = Privatiser(settled_from(settle(job, front, rows, SECRET, RUN).to_bytes(), job), SECRET, RUN)
    first = make_privatiser(job, front, rows, SECRET, RUN)
    for numbers in ([0, 3, 5], [5, 1]):
        ids_BT, mask_BT, _labels = padded(rows, numbers, 0)
        with torch.no_grad():
            states_BTD = front(ids_BT, mask_BT)
        assert torch.equal(*(one(states_BTD, ids_BT, mask_BT, numbers, 0) for one in (first, fresh)))


def test_seeds_decide_no_noise(bert: Path) -> None:
    job = job_of(bert, kind="d_chi", eta=40.0)
    other = replace(job, train=replace(job.train, seed=job.train.seed + 1))
    torch.manual_seed(0)
    one = make_privatiser(job, front_of(job), rows_of(0), SECRET, RUN)
    torch.manual_seed(1)
    np.random.seed(1)
    two = make_privatiser(other, front_of(job), rows_of(0), SECRET, RUN)
    batch = batch_of(TEXTS)
    assert torch.equal(one(*batch, [0, 1, 2], 0), two(*batch, [0, 1, 2], 7))
