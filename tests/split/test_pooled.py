"""With `pool` a text leaves as one row: its mean, noised; whole runs work; promises are of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from transom.audit.attacks.split_view import Public
from transom.errors import CheckpointError, MisconfiguredError, NeverError
from transom.privacy.account import gaussian
from transom.privacy.guarantee import price, released
from transom.split import run, settle
from transom.split.job import Noise
from transom.split.messages import request as real_request
from transom.split.privatise import Privatiser, guarantee
from transom.split.room import needs
from transom.split.settled import Settled, settled_from

from .runs import Heard, run_job, states_of, weights_of
from .test_privatise import TEXTS, batch_of, sent
from .test_run import StoppedError, assert_predicts_the_end, stop_at
from .test_settle import RUN, SECRET, front_of, job_of, rows_of, settled

PUBLIC = replace(rows_of(1, 60), labels=tuple(number % 2 for number in range(60)))
BARE = Settled(Noise(pool=True), 0, False, releases=1, longest=16, nearest=0.5)
D_CHI = replace(BARE, noise=Noise("d_chi", eta=9.0, pool=True), eta=9.0)
GAUSSIAN = replace(BARE, noise=Noise("gaussian", clip=2.0, sigma=0.5, pool=True))


@pytest.mark.parametrize("frame", [(0, 0), (1, 1), (2, 0)])
def test_a_texts_row_is_the_mean_of_its_own_tokens(frame: tuple[int, int]) -> None:
    states, ids, mask = batch_of(TEXTS, wide=3)
    privatiser = Privatiser(replace(BARE, before=frame[0], after=frame[1]), SECRET, RUN)
    out = privatiser(states, ids, mask, [0, 1, 2], 0)
    for row, text in enumerate(TEXTS):
        inner = states[row, frame[0] : len(text) - frame[1]]
        inner = inner if len(inner) else states[row, : len(text)]  # nothing but the tokenizer's own
        torch.testing.assert_close(out[row], inner.mean(0, keepdim=True))
    assert torch.equal(privatiser.leaving(mask), torch.ones(3, 1).long())


@pytest.mark.parametrize("frame", [(0, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_rows_that_are_measured_are_those_that_leave_and_those_attacked(
    request: Any, model: str, frame: tuple[int, int]
) -> None:
    """Of a causal model the last of a text's states, which alone has seen them all."""
    job = replace(job_of(request.getfixturevalue(model), pool=True), after_block=1)
    front, rows = front_of(job), replace(PUBLIC, frame=frame)
    found = settled(job, rows)
    assert found.last == (model == "llama")
    short = replace(rows, ids=((7,), (7, 8), *rows.ids), labels=(0, 1, *rows.labels))
    known = Public(front.parts.model, 1, short.ids, frame=frame)
    measured = settle._means(front, short, 99)
    for row, text in enumerate(short.ids):
        with torch.no_grad():
            states_TD = front(torch.tensor([text]), torch.ones(1, len(text)).long())[0]
        (leaves,) = found.pooled(states_TD.numpy())
        np.testing.assert_allclose(measured[row], leaves, atol=1e-5)
        np.testing.assert_allclose(known.crossing((text,))[0][0], leaves, atol=1e-5)
        inner = states_TD[frame[0] : len(text) - frame[1]]
        if model == "llama" and len(inner):
            np.testing.assert_array_equal(leaves, inner[-1])


@pytest.mark.parametrize("of", [D_CHI, GAUSSIAN])
def test_a_text_has_the_same_row_in_every_batch_and_no_other_has(of: Settled) -> None:
    alone = torch.cat([sent(of, [text], [number]) for number, text in enumerate(TEXTS)])
    assert torch.equal(alone, sent(of, TEXTS, [0, 1, 2], wide=9))
    noise_BD = (alone - sent(replace(BARE, noise=Noise(pool=True)), TEXTS, [0, 1, 2]))[:, 0]
    assert torch.cdist(noise_BD, noise_BD).fill_diagonal_(9).min() > 0.1
    reordered = sent(of, [TEXTS[0][::-1]], [0])  # the same mean, and noise of its own
    assert not torch.allclose(reordered, alone[:1], atol=1e-3)


def test_the_noise_is_of_the_law_once_a_text() -> None:
    texts = [np.random.default_rng(row).integers(1, 99, 1 + row % 16).tolist() for row in range(300)]
    states, ids, mask = batch_of(texts)
    noisy, bare = (Privatiser(of, SECRET, RUN)(states, ids, mask, range(300), 0) for of in (D_CHI, BARE))
    lengths_N = (noisy - bare).flatten(0, 1).norm(dim=1).numpy()
    assert stats.kstest(lengths_N, stats.gamma(32, scale=1 / 9).cdf).pvalue > 1e-3


def test_what_is_promised_is_of_a_whole_text_wherever_it_is_cut() -> None:
    for after_block in (0, 2):
        found = guarantee(replace(GAUSSIAN, after_block=after_block))
        assert released(found) == (gaussian(sigma=0.5, clip=2.0, neighbours="replace-one", count=1),)
        assert found.unit == "one text's row"
        metric = guarantee(replace(D_CHI, eta=3.0, after_block=after_block))
        assert (metric.kind, metric.unit.split(",")[0]) == ("metric-dp", "one text's row")
        assert not any("token" in one for one in (*found.assumptions, *metric.assumptions))
    for weak in (BARE, replace(D_CHI, eta=90.0)):
        assert (guarantee(weak).kind, guarantee(weak).discloses) == ("empirical", ())
        with pytest.raises(NeverError):
            price(guarantee(weak), 1e-5)
    report = Privatiser(D_CHI, SECRET, RUN).report()
    assert report["sent"].startswith("one row a text")
    assert (report["nearest_is_of"], report["privacy_nearest_neighbour"]) == ("rows of texts", None)


def test_it_is_settled_on_means_and_shaped_by_the_task(bert: Path) -> None:
    job = job_of(bert, kind="d_chi", eta=3.0, pool=True, inside=0.1, directions=3, directions_of="task",
                 public=Path("public"))  # fmt: skip
    job = replace(job, after_block=1)
    found = settled(job, rows_of(0, 6), public=PUBLIC)
    assert (len(found.basis), len(found.basis[0]), found.measured) == (32, 3, {})
    front = front_of(job)
    means = []
    for text in PUBLIC.ids:
        with torch.no_grad():
            states_TD = front(torch.tensor([text]), torch.ones(1, len(text)).long())[0]
        means.append(found.pooled(states_TD.numpy())[0])
    apart = np.linalg.norm(np.array(means)[:, None] - np.array(means)[None], axis=2)
    nearest = np.median(np.where(np.eye(60, dtype=bool), np.inf, apart).min(1))
    assert found.nearest == pytest.approx(nearest, rel=1e-3)


def narrow(bert: Path, **noise: Any) -> Settled:
    job = job_of(bert, pool=True, narrow=True, directions=3, directions_of="task", public=Path("p"), **noise)
    return settled(replace(job, after_block=1), rows_of(0, 6), public=PUBLIC)


def test_of_a_narrow_row_what_tells_the_classes_leaves_and_nothing_else(bert: Path) -> None:
    found = narrow(bert)
    assert found.narrow is not None
    basis_DR, center_D = found.narrow.basis_DR, found.narrow.center_D
    states, ids, mask = batch_of(TEXTS)
    out_BD = Privatiser(found, SECRET, RUN)(states, ids, mask, [0, 1, 2], 0)[:, 0].numpy()
    whole_BD = Privatiser(replace(BARE, before=1, after=1), SECRET, RUN)(states, ids, mask, [0, 1, 2], 0)[
        :, 0
    ]
    np.testing.assert_allclose(
        (out_BD - center_D) @ basis_DR, (whole_BD.numpy() - center_D) @ basis_DR, atol=1e-5
    )
    outside_BD = out_BD - center_D
    outside_BD -= outside_BD @ basis_DR @ basis_DR.T
    assert np.abs(outside_BD).max() < 1e-6  # what lies there is the public mean, whatever the text
    beside_D = np.linalg.svd(basis_DR.T)[2][-1]  # a direction that does not leave
    moved = states + 100 * torch.from_numpy(beside_D).to(states) * mask[..., None]
    again_BD = Privatiser(found, SECRET, RUN)(moved, ids, mask, [0, 1, 2], 0)[:, 0].numpy()
    np.testing.assert_allclose(again_BD, out_BD, atol=1e-4)


@pytest.mark.parametrize(
    "noise", [{"kind": "d_chi", "eta": 9.0}, {"kind": "gaussian", "clip": 0.5, "sigma": 0.4}]
)
def test_a_narrow_rows_noise_is_where_the_row_is(bert: Path, noise: dict[str, Any]) -> None:
    found = narrow(bert, **noise)
    assert found.narrow is not None
    texts = [np.random.default_rng(row).integers(1, 99, 3 + row % 13).tolist() for row in range(300)]
    states, ids, mask = batch_of(texts)
    out_BD = Privatiser(found, SECRET, RUN)(states, ids, mask, range(300), 0)[:, 0].numpy()
    clean_BR = np.concatenate(
        [found.ready(found.pooled(one[: len(text)].numpy())) for one, text in zip(states, texts, strict=True)]
    )
    noise_BR = found.narrow.coordinates(out_BD.astype(np.float64)) - clean_BR
    if found.eta:
        law = stats.gamma(3, scale=1 / 9).cdf  # of as many numbers as leave, not of the width
        assert stats.kstest(np.linalg.norm(noise_BR, axis=1), law).pvalue > 1e-3
    else:
        assert np.linalg.norm(clean_BR, axis=1).max() < 0.5 + 1e-5
        assert stats.kstest(noise_BR.ravel(), stats.norm(scale=0.4).cdf).pvalue > 1e-3
        promised = released(guarantee(found))
        assert promised == (gaussian(sigma=0.4, clip=0.5, neighbours="replace-one", count=1),)


def test_what_is_said_of_a_narrow_row(bert: Path) -> None:
    found = narrow(bert)
    told = guarantee(found)
    assert (told.kind, told.discloses) == ("empirical", ())
    assert "3 numbers a text" in told.assumptions[0]
    report = Privatiser(found, SECRET, RUN).report()
    assert (report["directions"], report["nearest_is_of"]) == (3, "two texts, at the median distance")
    assert "in the task's directions" in report["sent"]


def test_directions_of_the_own_rows_are_theirs_and_said_to_leave(bert: Path) -> None:
    """Public rows have no part in them, and need not be there. With few rows a fit names any labels."""
    job = replace(job_of(bert, pool=True, narrow=True, directions=2, directions_of="own"), after_block=1)
    many = rows_of(1, 128)
    own = settled(job, many)
    as_public = replace(job, noise=replace(job.noise, directions_of="task", public=Path("p")))
    named = settled(as_public, rows_of(0, 6), public=many)
    assert (own.basis, own.center) == (named.basis, named.center)
    assert guarantee(named).discloses == ()
    assert any("the label of each text" in one for one in guarantee(own).discloses)
    with pytest.raises(MisconfiguredError, match=r"127 rows by heart.* want 128 rows"):
        settled(job, rows_of(1, 127))


def test_more_directions_than_a_file_keeps_are_refused_before_a_step(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "_MOST_NUMBERS", 95)
    with pytest.raises(MisconfiguredError, match=r"3 directions of 32 numbers.* take 2 or fewer"):
        narrow(bert)


def test_kept_directions_that_are_not_the_jobs_are_refused(bert: Path) -> None:
    """Without a center a narrow row would leave whole."""
    found = narrow(bert)
    job = replace(job_of(bert, **vars(found.noise)), after_block=1)
    assert settled_from(found.to_bytes(), job) == found
    for broken in (
        {"center": ()}, {"center": found.center[:-1]},
        {"basis": ()}, {"basis": found.basis[:-1]},
        {"basis": (*found.basis[:-1], found.basis[-1][:-1])},
        {"basis": tuple(row[:2] for row in found.basis)},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="not this job's"):
            settled_from(replace(found, **broken).to_bytes(), job)  # type: ignore[arg-type]
    shaped = job_of(bert, kind="d_chi", eta=3.0, inside=0.5, directions=3, public=Path("p"))
    kept = settled(shaped, rows_of(0, 6), public=PUBLIC)
    with pytest.raises(CheckpointError, match="not this job's"):
        settled_from(replace(kept, basis=()).to_bytes(), shaped)


def test_in_a_few_directions_metric_privacy_is_of_texts_that_lie_apart(bert: Path) -> None:
    """Of so many texts some two lie side by side there, which says nothing of others."""
    found = narrow(bert, kind="d_chi", eta=1.0)
    front = front_of(replace(job_of(bert), after_block=1))
    with torch.no_grad():
        told_NR = np.concatenate(
            [
                found.ready(
                    found.pooled(front(torch.tensor([text]), torch.ones(1, len(text)).long())[0].numpy())
                )
                for text in PUBLIC.ids
            ]
        )
    apart_N = np.linalg.norm(told_NR[:, None] - told_NR[None], axis=2)[np.triu_indices(60, 1)]
    assert found.nearest == pytest.approx(float(np.median(apart_N)), rel=0.05)
    strict, loose = (replace(found, eta=eta / found.nearest) for eta in (3.0, 12.0))
    assert (guarantee(strict).kind, guarantee(loose).kind) == ("metric-dp", "empirical")
    assert "two texts, at the median distance" in guarantee(loose).assumptions[0]


@pytest.mark.parametrize("of", ["task", "own"])
def test_a_narrow_run_learns_and_predicts_as_it_ended(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Any
) -> None:
    """With the files of a real run."""
    monkeypatch.setattr(settle, "_ROWS_A_NUMBER", 0)  # 22 rows
    job = run_job(bert, "classification", tmp_path, after_block=1)
    assert job.data is not None
    public = job.data.train if of == "task" else None
    noise = Noise(pool=True, narrow=True, directions=2, directions_of=of, public=public)
    job, heard = replace(job, noise=noise), Heard()
    run.simulate(job, heard)
    assert all(np.isfinite(heard.losses))
    assert_predicts_the_end(job, heard)


def test_the_gaussian_clips_the_mean_that_it_prices() -> None:
    quiet = replace(GAUSSIAN, noise=Noise("gaussian", clip=2.0, sigma=1e-9, pool=True))
    states, ids, mask = batch_of(TEXTS)
    out = Privatiser(quiet, SECRET, RUN)(100 * states, ids, mask, [0, 1, 2], 0)
    torch.testing.assert_close(out.norm(dim=-1), torch.full((3, 1), 2.0))


@pytest.mark.parametrize("layout", ["vendor", "customer"])
@pytest.mark.parametrize(("model", "after_block"), [("bert", 0), ("bert", 2), ("llama", 1)])
def test_a_run_trains_on_one_row_a_text_and_predicts_as_it_ended(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, after_block: int, layout: str
) -> None:
    job = run_job(
        request.getfixturevalue(model), "classification", tmp_path, after_block=after_block, layout=layout,
        noise=Noise(pool=True),
    )  # fmt: skip
    lengths: list[int] = []

    def request_(rows_ND: Any, lengths_B: Any = torch.zeros(0), *more: Any, **named: Any) -> Any:  # noqa: B008
        lengths.extend(lengths_B.tolist())
        return real_request(rows_ND, lengths_B.long(), *more, **named)

    monkeypatch.setattr("transom.split.customer.request", request_)
    heard = Heard()
    run.simulate(job, heard)
    assert len(lengths) > 22
    assert set(lengths) == {1}  # how long a text is does not leave
    assert all(np.isfinite(heard.losses))
    assert_predicts_the_end(job, heard)
    assert any(float(one.abs().max()) > 0 for name, one in weights_of(job).items() if "lora_B" in name)


def test_a_stopped_run_ends_with_the_same_bits(bert: Path, tmp_path: Path) -> None:
    job = run_job(bert, "classification", tmp_path, noise=Noise(pool=True))
    run.simulate(job, Heard())
    undisturbed = states_of(job)
    again = replace(job, out=tmp_path / "again")
    with pytest.raises(StoppedError):
        run.simulate(again, stop_at(4))
    run.simulate(again, Heard())
    assert states_of(again) == undisturbed


def test_a_batch_of_pooled_rows_needs_the_room_of_one_token_a_text(bert: Path) -> None:
    job, rows = job_of(bert, kind="d_chi", eta=3.0), rows_of(0, 6)
    pooled = replace(job, noise=replace(job.noise, pool=True))
    assert (needs(pooled, 32, rows).tokens, needs(job, 32, rows).tokens > 1) == (1, True)
