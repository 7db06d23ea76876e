"""A sparse dictionary of few questions: the BatchTopK sparse autoencoder (Bussmann et al. 2024, arXiv 2412.06410) in NumPy.

With as few rows as questions it describes this set and generalises to no other: read its stability before its atoms.
Shapes: N questions, C coordinates, A atoms, M rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.components import Parts, assembled
from unmask.analysis.threads import one_thread

BATCH = 256
REVIVE_EVERY, REVIVE_UNTIL = 100, 0.7
"""Atoms that were silent for so many steps start again at the rows missed most, over this share of the training."""

_ADAM = (0.9, 0.999, 1e-8)
"""Kingma & Ba (2015)."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """codes = relu((x - bias) @ encoder + encoder_bias), those below `threshold` put to 0; x is about codes @ atoms + bias.

    codes (N x A), atoms of unit length (A x C), encoder (C x A), bias (C), encoder bias (A), all in the units of the rows.
    """

    codes_NA: np.ndarray
    atoms_AC: np.ndarray
    bias_C: np.ndarray
    encoder_CA: np.ndarray
    encoder_bias_A: np.ndarray
    threshold: float
    explained: float
    dead: int
    """Atoms that no question uses."""

    def encode(self, rows_NC: np.ndarray) -> np.ndarray:
        """Codes (N x A) of any rows, each by itself: the threshold stands for the batch, as in the paper."""
        raw_NA = np.maximum((rows_NC - self.bias_C) @ self.encoder_CA + self.encoder_bias_A, 0.0)
        return np.where(raw_NA >= self.threshold, raw_NA, 0.0)

    def parts(self, rows_NC: np.ndarray) -> Parts:
        """The atoms in use as parts of `rows_NC`, strongest first."""
        codes_NA = self.encode(rows_NC)
        used_A = (codes_NA > 0).any(axis=0)
        return assembled(rows_NC - self.bias_C, codes_NA[:, used_A], self.atoms_AC[used_A], converged=True)


def sparse_dictionary(
    rows_NC: np.ndarray,
    *,
    atoms: int,
    active: int,
    seed: int,
    steps: int = 600,
    learning_rate: float = 3e-3,
) -> Dictionary:
    """Train a BatchTopK dictionary: of all codes of a batch of M rows the M x `active` largest are kept.

    Mean squared error, Adam, encoder tied to the decoder at the start only, atoms kept at unit length (gradients along an atom
    are removed). Atoms start at random rows. Two departures suit few rows: silent atoms start again at the rows missed most
    instead of the paper's auxiliary loss, and the threshold is the smallest code kept over all rows after training.
    Rows are centred and scaled inside. Raises ValueError for fewer than 3 rows, `active` outside 1..`atoms`, or rows that are
    not finite or all the same.
    """
    rows_NC = np.asarray(rows_NC, dtype=np.float64)
    n, _ = rows_NC.shape
    if n < 3 or not 1 <= active <= atoms:
        raise ValueError(f"a dictionary needs 3 rows and active from 1 to {atoms} atoms, not {n} rows and {active}")
    if not np.isfinite(rows_NC).all():
        raise ValueError("a dictionary needs finite values")
    mean_C = rows_NC.mean(axis=0)
    scale = float(np.sqrt(np.mean(np.sum((rows_NC - mean_C) ** 2, axis=1))))
    if scale == 0:
        raise ValueError("a dictionary needs rows that differ")
    scaled_NC = ((rows_NC - mean_C) / scale).astype(np.float32)
    with one_thread():
        weights, threshold = _train(scaled_NC, atoms=atoms, active=active, seed=seed, steps=steps, rate=learning_rate)
        encoder_CA, encoder_bias_A, atoms_AC, bias_C = (one.astype(np.float64) for one in weights)
        made = Dictionary(
            codes_NA=np.empty(0),
            atoms_AC=atoms_AC,
            bias_C=mean_C + bias_C * scale,
            encoder_CA=encoder_CA,
            encoder_bias_A=encoder_bias_A * scale,
            threshold=threshold * scale,
            explained=float("nan"),
            dead=0,
        )
        codes_NA = made.encode(rows_NC)
        missed = float(((rows_NC - made.bias_C - codes_NA @ atoms_AC) ** 2).sum())
    return Dictionary(
        codes_NA,
        atoms_AC,
        made.bias_C,
        encoder_CA,
        made.encoder_bias_A,
        made.threshold,
        explained=1 - missed / (n * scale**2),
        dead=int((~(codes_NA > 0).any(axis=0)).sum()),
    )


def _train(
    rows_NC: np.ndarray, *, atoms: int, active: int, seed: int, steps: int, rate: float
) -> tuple[list[np.ndarray], float]:
    """Weights (encoder, its bias, atoms, bias) and the threshold, for rows of mean 0 and RMS norm 1."""
    rng = np.random.default_rng(seed)
    n, width = rows_NC.shape
    decoder_AC = _unit(rows_NC[rng.permutation(np.arange(max(atoms, n)) % n)[:atoms]], rng)
    weights = [decoder_AC.T.copy(), np.zeros(atoms, np.float32), decoder_AC, np.zeros(width, np.float32)]
    moments = [(np.zeros_like(one), np.zeros_like(one)) for one in weights]
    batch = min(BATCH, n)
    used_A = np.zeros(atoms, dtype=bool)
    order = np.empty(0, dtype=int)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = rng.permutation(n)
        rows_MC, order = rows_NC[order[:batch]], order[batch:]
        codes_MA = _largest(_codes(rows_MC, weights), batch * active)
        used_A |= (codes_MA > 0).any(axis=0)
        fading = min(1.0, 5 * (1 - (step - 1) / steps))  # the rate falls to 0 over the last fifth
        _adam(weights, moments, _gradients(rows_MC, codes_MA, weights), step=step, rate=rate * fading)
        weights[2] /= np.maximum(np.linalg.norm(weights[2], axis=1, keepdims=True), 1e-12)
        if step % REVIVE_EVERY == 0:
            if step <= REVIVE_UNTIL * steps:
                _revive(~used_A, rows_NC, active, weights, moments)
            used_A[:] = False
    kept_NA = _largest(_codes(rows_NC, weights), n * active)
    return weights, float(kept_NA[kept_NA > 0].min(initial=np.inf))


def _codes(rows_MC: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    encoder_CA, encoder_bias_A, _, bias_C = weights
    return np.maximum((rows_MC - bias_C) @ encoder_CA + encoder_bias_A, 0.0)


def _largest(codes_MA: np.ndarray, count: int) -> np.ndarray:
    """BatchTopK: all but the `count` largest codes of the batch put to 0."""
    positive = np.sort(codes_MA[codes_MA > 0])  # sorting what is positive is faster than partitioning mostly zeros
    if len(positive) <= count:
        return codes_MA
    return np.where(codes_MA >= positive[len(positive) - count], codes_MA, np.float32(0))


def _gradients(rows_MC: np.ndarray, codes_MA: np.ndarray, weights: list[np.ndarray]) -> list[np.ndarray]:
    """Of the mean squared error, per row summed over coordinates; without the part along each atom."""
    encoder_CA, _, atoms_AC, bias_C = weights
    wrong_MC = (codes_MA @ atoms_AC + bias_C - rows_MC) * (2 / len(rows_MC))
    back_MA = np.where(codes_MA > 0, wrong_MC @ atoms_AC.T, 0.0)
    along_AC = codes_MA.T @ wrong_MC
    along_AC -= (along_AC * atoms_AC).sum(axis=1, keepdims=True) * atoms_AC
    encoder_bias_A = back_MA.sum(axis=0)
    bias = wrong_MC.sum(axis=0) - encoder_CA @ encoder_bias_A
    return [(rows_MC - bias_C).T @ back_MA, encoder_bias_A, along_AC, bias]


def _adam(
    weights: list[np.ndarray],
    moments: list[tuple[np.ndarray, np.ndarray]],
    gradients: list[np.ndarray],
    *,
    step: int,
    rate: float,
) -> None:
    first, second, tiny = _ADAM
    for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
        moment[0][...] = first * moment[0] + (1 - first) * gradient
        moment[1][...] = second * moment[1] + (1 - second) * gradient**2
        root = np.sqrt(moment[1] / (1 - second**step)) + tiny
        weight[...] -= rate * (moment[0] / (1 - first**step)) / root


def _revive(
    silent_A: np.ndarray,
    rows_NC: np.ndarray,
    active: int,
    weights: list[np.ndarray],
    moments: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Point silent atoms at what the rows missed most still lack, and forget their moments."""
    silent = np.flatnonzero(silent_A)
    if not len(silent):
        return
    encoder_CA, encoder_bias_A, atoms_AC, bias_C = weights
    codes_NA = _largest(_codes(rows_NC, weights), len(rows_NC) * active)
    missed_NC = rows_NC - bias_C - codes_NA @ atoms_AC
    worst = np.argsort(-(missed_NC**2).sum(axis=1), kind="stable")[: len(silent)]
    silent = silent[: len(worst)]
    fresh = missed_NC[worst] / np.maximum(np.linalg.norm(missed_NC[worst], axis=1, keepdims=True), 1e-12)
    atoms_AC[silent], encoder_CA[:, silent], encoder_bias_A[silent] = fresh, fresh.T, 0.0
    for moment in range(2):
        moments[0][moment][:, silent] = 0.0
        moments[1][moment][silent] = 0.0
        moments[2][moment][silent] = 0.0


def _unit(rows_AC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of unit length; a row of zeros becomes a random direction."""
    lengths_A = np.linalg.norm(rows_AC, axis=1, keepdims=True)
    rows_AC = np.where(lengths_A > 0, rows_AC, rng.standard_normal(rows_AC.shape)).astype(np.float32)
    return rows_AC / np.linalg.norm(rows_AC, axis=1, keepdims=True)
