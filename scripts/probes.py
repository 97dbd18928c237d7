"""What can be read off features by a linear map or by the nearest neighbour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
RIDGES = 10.0 ** np.arange(-4, 3)


def standardized(train: Array, test: Array) -> tuple[Array, Array]:
    """Both with the mean and the scale of the first: what is tested on has no say in either."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale < 1e-9 * max(1.0, float(scale.max()))] = 1.0
    return (train - mean) / scale, (test - mean) / scale


def linear_probe(train: Array, labels: Labels, test: Array) -> Labels:
    """Classes of `test` by ridge regression on one-hot labels.

    How much ridge is decided by the windows trained on alone: each is predicted from all others,
    which has a closed form.

    Args:
        train, test: standardized features [N, D].
        labels: of `train`, each class 0..C-1.
    """
    targets = np.eye(int(labels.max()) + 1)[labels]
    centre = targets.mean(axis=0)
    targets = targets - centre
    kernel = train @ train.T / train.shape[1]
    values, vectors = np.linalg.eigh(kernel)
    values, seen = values.clip(min=0), vectors.T @ targets
    best: tuple[float, Array] | None = None
    for ridge in RIDGES:
        kept = values / (values + ridge)
        fitted = vectors @ (kept[:, None] * seen)
        own = np.einsum("ij,j,ij->i", vectors, kept, vectors)[:, None]  # each target's own say
        error = float((((targets - fitted) / (1 - own).clip(min=1e-6)) ** 2).mean())
        if best is None or error < best[0]:
            best = error, vectors @ (seen / (values + ridge)[:, None])
    assert best is not None
    scores = test @ train.T / train.shape[1] @ best[1] + centre
    return np.asarray(scores.argmax(axis=1))


def nearest_neighbour(train: Array, labels: Labels, test: Array) -> Labels:
    """Classes of `test` by the window of `train` with the least angle to each."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (train, test))
    return np.asarray(labels[(test @ train.T).argmax(axis=1)])


PROBES = {"linear": linear_probe, "nearest": nearest_neighbour}


def accuracies(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels
) -> dict[str, float]:
    """The share of windows that each probe gets right."""
    train, test = standardized(train, test)
    return {
        name: float((probe(train, train_labels, test) == test_labels).mean())
        for name, probe in PROBES.items()
    }
