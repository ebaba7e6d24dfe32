"""Noise for the two tables: isotropic as the method has it, and shaped by what the model is sensitive to.

A table with noise is a channel from a token to what the host reads, y = (x - mean) K + mean + n. Without
harm to the secret a row may be replaced by what is known of it after the noise (a linear map that the host
could undo or do itself), and then the best noise for a given rate is known: reverse water-filling. In the
coordinates where the model's sensitivity M is the identity, each direction of the table's covariance keeps
(1 - theta / lambda) of itself and gets noise a theta; directions below theta are dropped. Rate and harm are

    R = 1/2 sum log(lambda / theta)  nats a token        harm = 1/2 sum min(theta, lambda)  nats of KL,

for small harm. A host that names tokens among V needs R of about log V = 10.8 nats.

Threat model: see `_hardening_points`; the host knows M and theta.
Source: Cover and Thomas, Elements of Information Theory, section 10.3 (rate distortion of a Gaussian vector).
M is the Fisher metric: for the embedding E[g g^T], g the gradient of the log-probability of a sampled next
token; for the head E[(1 - sum p^2) x x^T], x the state before it.

Shapes: V vocabulary, D width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Channel:
    """Row x becomes mean + (x - mean) keep + noise; `rate` in nats a token, `harm` in nats of KL if small."""

    mean_D: Matrix
    keep_DD: Matrix
    noise_DD: Matrix
    rate: float
    harm: float

    def without_noise(self, table_VD: Floats) -> Floats:
        """The table through the channel, noise left out: what the host compares with."""
        if np.array_equal(self.keep_DD, np.eye(len(self.mean_D))):
            return table_VD
        mean_D, keep_DD = self.mean_D.astype(np.float32), self.keep_DD.astype(np.float32)
        return np.asarray((table_VD - mean_D) @ keep_DD + mean_D, dtype=np.float32)

    def send(self, table_VD: Floats, seed: int) -> Floats:
        """The table with noise. Seeded: this is a study."""
        values_D, vectors_DD = np.linalg.eigh(self.noise_DD)
        root_DD = (vectors_DD * np.sqrt(np.maximum(values_D, 0))).astype(np.float32)
        drawn_VD = np.random.default_rng(seed).standard_normal(table_VD.shape, dtype=np.float32)
        noisy_VD = drawn_VD @ root_DD.T
        noisy_VD += self.without_noise(table_VD)
        return np.asarray(noisy_VD, dtype=np.float32)


def sensitivities(model: Any, ids_BT: Any, *, gradients: bool, seed: int = 0) -> tuple[Matrix, Matrix]:
    """M [D, D] of the embedding (0 without `gradients`) and of the head, on public text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    into, out = np.zeros((width, width)), np.zeros((width, width))
    for ids_T in ids_BT:
        embedded = model.get_input_embeddings()(ids_T[None]).detach().requires_grad_(gradients)
        states_TD = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
        log_p_TV = model.get_output_embeddings()(states_TD).float().log_softmax(-1)
        p_TV = log_p_TV.detach().exp()
        weighted_TD = (states_TD.detach() * (1 - p_TV.square().sum(-1))[:, None].sqrt()).double().numpy()
        if gradients:
            drawn_T = torch.multinomial(p_TV, 1, generator=generator)
            log_p_TV.gather(1, drawn_T).sum().backward()
            gradient_TD = embedded.grad[0].double().numpy()
            into += gradient_TD.T @ gradient_TD / ids_BT.numel()
        out += weighted_TD.T @ weighted_TD / ids_BT.numel()
    return into, out


def isotropic(table_VD: Floats, metric_DD: Matrix, alpha: float) -> Channel:
    """Noise of alpha standard deviations of the table."""
    mean_D, covariance_DD = _moments(table_VD)
    noise_DD = np.eye(len(mean_D)) * (alpha * float(table_VD.std())) ** 2
    if alpha == 0:
        return Channel(mean_D, np.eye(len(mean_D)), noise_DD, float("inf"), 0.0)
    keep_DD = np.eye(len(mean_D))
    rate = 0.5 * np.linalg.slogdet(keep_DD + covariance_DD / noise_DD[0, 0])[1]
    return Channel(mean_D, keep_DD, noise_DD, float(rate), float(0.5 * np.trace(metric_DD @ noise_DD)))


def water_filled(table_VD: Floats, metric_DD: Matrix, theta: float) -> Channel:
    """Reverse water-filling at level `theta` (nats of KL a direction, twice)."""
    mean_D, covariance_DD = _moments(table_VD)
    root_DD, unroot_DD = _roots(metric_DD)
    values_D, vectors_DD = np.linalg.eigh(root_DD @ covariance_DD @ root_DD)
    kept_D = np.maximum(0.0, 1 - theta / np.maximum(values_D, 1e-300))
    into_DD, back_DD = root_DD @ vectors_DD, vectors_DD.T @ unroot_DD
    rate = 0.5 * np.log(np.maximum(1.0, values_D / theta)).sum()
    return Channel(
        mean_D,
        (into_DD * kept_D) @ back_DD,
        (back_DD.T * (kept_D * theta)) @ back_DD,
        float(rate),
        float(0.5 * np.minimum(theta, values_D).sum()),
    )


def least_harm(table_VD: Floats, metric_DD: Matrix, scale: float) -> Channel:
    """Noise added, nothing taken away, in the shape that harms least for what it hides when it hides much.

    At a low rate, tr(C S^-1) / 2 nats get through noise S and tr(M S) / 2 is the harm; their product is least
    for S proportional to the geometric mean of C and M^-1.
    """
    mean_D, covariance_DD = _moments(table_VD)
    root_DD, unroot_DD = _roots(metric_DD)
    values_D, vectors_DD = np.linalg.eigh(root_DD @ covariance_DD @ root_DD)
    values_D = np.maximum(values_D, 1e-12 * values_D[-1])
    back_DD = vectors_DD.T @ unroot_DD
    rate = 0.5 * np.log1p(np.sqrt(values_D) / scale).sum()
    return Channel(
        mean_D,
        np.eye(len(mean_D)),
        (back_DD.T * (scale * np.sqrt(values_D))) @ back_DD,
        float(rate),
        float(0.5 * scale * np.sqrt(values_D).sum()),
    )


def theta_at(table_VD: Floats, metrics: Sequence[Matrix], rate: float) -> float:
    """The level at which the table, sent once in each metric, has this rate in all (nats a token)."""
    covariance_DD = _moments(table_VD)[1]
    roots = [_roots(metric_DD)[0] for metric_DD in metrics]
    values = np.concatenate([np.linalg.eigvalsh(root @ covariance_DD @ root) for root in roots])
    low, high = 1e-12, float(values.max())
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (
            (middle, high) if np.log(np.maximum(1, values / middle)).sum() > 2 * rate else (low, middle)
        )
    return float(middle)


def _moments(table_VD: Floats) -> tuple[Matrix, Matrix]:
    mean_D = table_VD.mean(0, dtype=np.float64)
    centred_VD = table_VD - mean_D.astype(np.float32)
    return mean_D, (centred_VD.T @ centred_VD).astype(np.float64) / len(table_VD)


def _roots(metric_DD: Matrix) -> tuple[Matrix, Matrix]:
    """M^1/2 and M^-1/2, eigenvalues not below a millionth of the largest."""
    values_D, vectors_DD = np.linalg.eigh(metric_DD)
    roots_D = np.sqrt(np.maximum(values_D, 1e-6 * values_D[-1]))
    return (vectors_DD * roots_D) @ vectors_DD.T, (vectors_DD / roots_D) @ vectors_DD.T
