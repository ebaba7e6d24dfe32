"""What goes in place of noisy rows: Bayes' row, a function of them and of public things, in any batch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.privacy.denoise import expected_rows
from transom.split import denoised as room
from transom.split import run
from transom.split.denoised import Denoiser
from transom.split.job import Noise
from transom.split.privatise import Privatiser
from transom.split.rows import padded
from transom.split.settled import Settled, settled_from

from .runs import Heard, run_job, states_of
from .test_run import StoppedError, stop_at
from .test_settle import CLS, RUN, SECRET, SEP, front_of, job_of, rows_of, settled, table_of

ETA = {"kind": "d_chi", "eta": 30.0, "denoise": True}


def sent(found: Settled, front: Any, rows: Any, numbers: list[int], denoise: Denoiser | None = None) -> Any:
    """(noisy, sent) rows of a batch, and its mask."""
    ids_BT, mask_BT, _labels = padded(rows, numbers, 0)
    noisy_BTD = Privatiser(found, SECRET, RUN)(front(ids_BT, mask_BT).detach(), ids_BT, mask_BT, numbers, 0)
    return noisy_BTD, (denoise or Denoiser.of(found, front))(noisy_BTD, ids_BT, mask_BT), mask_BT


@pytest.mark.parametrize("public", [False, True])
def test_it_is_the_row_expected_of_the_public_texts(bert: Path, public: bool) -> None:
    job = job_of(bert, **ETA, public=Path("public.txt") if public else None)
    rows, texts, front = rows_of(0, 6), rows_of(1, 300), front_of(job)
    found = settled(job, rows, public=texts if public else None)
    noisy_BTD, sent_BTD, mask_BT = sent(found, front, rows, [0, 1, 2])
    table_VD = table_of(front)
    prior_V = np.bincount([one for text in texts.ids for one in text], minlength=len(table_VD)).astype(float)
    prior_V = np.maximum(prior_V, 0.1) if public else np.ones(len(table_VD))
    expected_ND = expected_rows(noisy_BTD[mask_BT > 0].numpy(), table_VD, 30.0, prior_V=prior_V)
    own_N = np.array([one in rows.specials for number in range(3) for one in rows.ids[number]])
    np.testing.assert_allclose(sent_BTD[mask_BT > 0][~own_N], expected_ND[~own_N], atol=1e-5)
    assert torch.equal(sent_BTD[:, 0], torch.from_numpy(table_VD[[CLS] * 3]))  # no text's, and no secret
    assert not sent_BTD[mask_BT == 0].any()


def test_the_tokenizers_own_are_told_by_their_place_and_not_by_a_text_that_spells_them(bert: Path) -> None:
    job, rows = job_of(bert, **ETA), rows_of(0, 6)
    spelled = replace(rows, ids=((CLS, CLS, 10, SEP, 20, SEP),) * 6)  # as each may, and others do not
    found, front = settled(job, spelled), front_of(job)
    assert (found.before, found.after) == (1, 1)
    _noisy, sent_BTD, _mask = sent(found, front, spelled, [5])
    exact_T = (sent_BTD[0] == front.parts.embedding.weight[list(spelled.ids[5])]).all(1)
    assert exact_T.tolist() == [True, False, False, False, False, True]


def test_equal_noisy_rows_are_sent_alike_whatever_the_text(bert: Path) -> None:
    """So it is post-processing: of the ids it looks at the tokenizer's own."""
    job, rows = job_of(bert, **ETA), rows_of(0, 6)
    found, front = settled(job, rows), front_of(job)
    noisy_BTD, sent_BTD, mask_BT = sent(found, front, rows, [0])
    other_BT = torch.full_like(mask_BT, 33)
    other_BT[:, 0], other_BT[:, -1] = CLS, SEP
    assert torch.equal(Denoiser.of(found, front)(noisy_BTD, other_BT, mask_BT), sent_BTD)


@pytest.fixture(scope="module")
def six(bert: Path) -> tuple[Any, Settled, Any, list[Any]]:
    """Six texts, their noise, the front, and what is sent of each alone."""
    job, rows = job_of(bert, **ETA), rows_of(0, 6)
    found, front = settled(job, rows), front_of(job)
    return rows, found, front, [sent(found, front, rows, [number])[1][0] for number in range(6)]


@settings(max_examples=30)
@given(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), kept=st.integers(0, 2000))
def test_a_text_goes_alike_in_every_batch_kept_or_not(six: Any, numbers: list[int], kept: int) -> None:
    rows, found, front, alone = six
    denoise = Denoiser.of(found, front)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_KEPT_BYTES", kept)
        for _ in range(2):
            together_BTD = sent(found, front, rows, numbers, denoise)[1]
            assert sum(one.nbytes for one in denoise._kept.values()) <= kept
            for row, number in enumerate(numbers):
                assert torch.equal(together_BTD[row, : len(rows.ids[number])], alone[number])


def test_spared_and_shaped_noise_are_taken_at_their_own_law(bert: Path) -> None:
    more: dict[str, Any] = {"contributing": 0.1, "spare": 3.0, "inside": 0.3, "directions": 4}
    job = job_of(bert, **ETA, **more, public=Path("public.txt"))
    rows, front = rows_of(0, 60), front_of(job)
    found = settled(job, rows, public=rows_of(1))
    noisy_BTD, sent_BTD, _mask_BT = sent(found, front, rows, [3])
    eta_V = np.where(np.isin(np.arange(len(table_of(front))), found.spared), 90.0, 30.0)
    prior_V = Denoiser.of(found, front)._prior_V
    noisy_ND = noisy_BTD[0].numpy()
    expected = expected_rows(noisy_ND, table_of(front), eta_V, prior_V=prior_V, shape=found.shape)
    np.testing.assert_allclose(sent_BTD[0, 1:-1], expected[1:-1], atol=1e-5)


def test_what_it_rests_on_is_kept_with_the_noise(bert: Path) -> None:
    job = job_of(bert, **ETA, public=Path("public.txt"))
    found = settled(job, rows_of(0), public=rows_of(1))
    assert len(found.common) > 10
    assert settled_from(found.to_bytes(), job) == found
    assert not settled(replace(job, noise=replace(job.noise, denoise=False)), rows_of(0)).common


def test_a_run_that_is_stopped_sends_the_same_again_and_predicts_as_it_ended(
    bert: Path, tmp_path: Path
) -> None:
    job = run_job(bert, "classification", tmp_path, noise=Noise(**ETA))
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(1))
    calm = replace(job, out=tmp_path / "calm")
    shutil.copytree(job.out, calm.out)  # another would have another secret
    heard, again = Heard(), Heard()
    run.simulate(calm, heard)
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(6))
    run.simulate(job, again)
    assert states_of(job) == states_of(calm)
    assert run.predict_here(job, None).metrics() == pytest.approx(again.evaluations[-1], rel=1e-6)
    noisy = replace(job, noise=replace(job.noise, denoise=False), out=tmp_path / "noisy")
    run.simulate(noisy, Heard())
    assert states_of(noisy) != states_of(job)
