"""NC1 and the class geometry of features beside torch, a peer's algorithm and the floor.

    python bench/collapse.py [CASE ...]

Cases are numbers of the table below; all by default. Everything is float32, in one process, the
contenders take turns, and medians are compared. The contenders:

torch     a careful vectorised computation: one-hot or indexed sums, deviations projected on the
          eigenvectors of the K x K Gram matrix, in float32; NC1, trace quotient, norms, angles
          and the distance to the simplex.
chunked   the same by 2048 rows at a time, so that temporaries stay in the cache.
package   what the best-known package does: one-hot means, a d x d covariance, the pseudo-inverse
          of a d x d matrix; NC1, quotient, CDNV, norms and the distance to the simplex.
fastnc    `collapse_metrics(H, y)`, every metric that needs no classifier, in float64 (products in
          float32 where there are 48 directions and more); `with W` adds decisions, margins and
          all that compares the two.
floor     H read twice by all threads and, where more classes than 32 make GEMM the bound,
          the product with K - 1 directions.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import fastnc

# (N, d, K), repetitions, and whether the package's pseudo-inverse is run once or each time.
CASES = [((60_000, 512, 10), 9), ((20_000, 4096, 10), 5), ((50_000, 2048, 1000), 3)]
PACKAGE_ONCE = 2048
CHUNK = 2048


def data(N, d, K, seed=0):
    """Gaussian classes in random order, and a classifier."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(N) % K)
    means = rng.standard_normal((K, d), dtype=np.float32)
    H = means[y]
    H += 0.3 * rng.standard_normal((N, d), dtype=np.float32)
    return H, y, means + 0.3 * rng.standard_normal((K, d), dtype=np.float32)


def one_hot(y, K):
    P = torch.zeros(len(y), K)
    P[torch.arange(len(y)), y] = 1
    return P


def careful(H, y, K, rows):
    """(nc1, quotient, equinorm, equiangular, simplex distance) by torch, `rows` at a time."""
    parts = list(zip(H.split(rows), y.split(rows), strict=True))
    sums = torch.zeros(K, H.shape[1])
    if K <= 64:
        for h, labels in parts:
            sums.addmm_(one_hot(labels, K).T, h)
    else:
        sums.index_add_(0, y, H)
    means = sums / torch.bincount(y, minlength=K)[:, None]
    C = (means - means.mean(0)).double()
    gram = C @ C.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values[1:], vectors[:, 1:]
    Q = ((vectors.T @ C) / values.sqrt()[:, None]).float().T.contiguous()
    projected, within = torch.zeros(K - 1, dtype=torch.float64), 0.0
    for h, labels in parts:
        X = h - means[labels]
        T = X @ Q
        projected += T.square_().sum(0)
        within += torch.linalg.vector_norm(X).double() ** 2
    norms = gram.diagonal().sqrt()
    off = gram / (norms[:, None] * norms) + 1 / (K - 1)
    angle = (off.abs().sum() - off.diagonal().abs().sum()) / (K * (K - 1))
    E = (torch.eye(K, dtype=torch.float64) - 1 / K) / (K - 1) ** 0.5
    return torch.stack(
        [
            (projected / values).sum() / len(y),
            within / len(y) / (gram.trace() / K),
            norms.std(correction=0) / norms.mean(),
            angle,
            torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - E),
        ]
    ).tolist()


def package(H, y, K, rows=8192):
    """The package's accumulators, one pass each, and its measures."""
    totals, counts = torch.zeros(K, H.shape[1]), torch.zeros(K)
    for h, labels in zip(H.split(rows), y.split(rows), strict=True):
        owner = (labels[:, None] == torch.arange(K)).float()
        totals += owner.T @ h
        counts += owner.sum(0)
    means = totals / counts[:, None]
    C = means - means.mean(0)
    covariance, variances = torch.zeros(H.shape[1], H.shape[1]), torch.zeros(K)
    for h, labels in zip(H.split(rows), y.split(rows), strict=True):
        X = h - means[labels]
        covariance += X.T @ X
    for h, labels in zip(H.split(rows), y.split(rows), strict=True):
        owner = (labels[:, None] == torch.arange(K)).float()
        variances += (owner.T @ (h - means[labels]) ** 2).sum(1)
    covariance /= len(y)
    between = C.T @ C / K
    nc1 = torch.trace(torch.linalg.pinv(between) @ covariance) / K
    gaps = torch.cdist(means, means) ** 2 + torch.eye(K)
    v = variances / counts
    cdnv = ((v[:, None] + v) / (2 * gaps)).triu(1).sum() / (K * (K - 1) / 2)
    gram = C @ C.T
    E = (torch.eye(K) - 1 / K) / (K - 1) ** 0.5
    simplex = torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - E)
    norms = C.norm(dim=1)
    return [float(nc1), float(torch.trace(covariance) / torch.trace(between)),
            float(norms.std() / norms.mean()), float(cdnv), float(simplex)]  # fmt: skip


def floor(H, K):
    """Two reads of H, and one product with K - 1 columns where that is what takes time."""
    for _ in range(2):
        H.sum()
    if K > 32:
        H @ torch.ones(H.shape[1], K - 1)


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(sizes, rounds):
    N, d, K = sizes
    H, y, W = data(*sizes)
    Ht, yt = torch.from_numpy(H), torch.from_numpy(y)
    bias = np.zeros(K, np.float32)
    told = fastnc.collapse_metrics(H, y)
    names = ("nc1", "nc1_quotient", "equinorm_features", "equiangular_features")
    ours = [getattr(told, name) for name in (*names, "nc2_gram_features")]
    # A comparison of different numbers is worth nothing; theirs are in float32.
    np.testing.assert_allclose(careful(Ht, yt, K, CHUNK), ours, rtol=2e-3)
    contenders = {
        "floor": lambda: floor(Ht, K),
        "fastnc": lambda: fastnc.collapse_metrics(H, y),
        "with W": lambda: fastnc.collapse_metrics(H, y, W, bias),
        "torch": lambda: careful(Ht, yt, K, N),
        "chunked": lambda: careful(Ht, yt, K, CHUNK),
        "package": lambda: package(Ht, yt, K),
    }
    times = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            slow = name == "package" and d >= PACKAGE_ONCE
            # The first turn warms up; what takes seconds needs no warmth, and one turn.
            if slow == (turn == 0):
                times[name].append(seconds(call))
            elif turn == 0:
                call()
    return {name: 1e3 * float(np.median(t)) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", type=int, help="numbers of the table, from 0")
    chosen = parser.parse_args().cases or range(len(CASES))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, ms")
    head = ("floor", "fastnc", "with W", "torch", "chunked", "package")
    over = "".join(f"{name + '/':>9}" for name in head[3:])
    print(f"{'N, d, K':<22}" + "".join(f"{name:>10}" for name in head) + over)
    for number in chosen:
        sizes, rounds = CASES[number]
        ms = measure(sizes, rounds)
        ratios = [ms[name] / ms["fastnc"] for name in ("torch", "chunked", "package")]
        row = "".join(f"{ms[name]:10.1f}" for name in head)
        print(f"{sizes!s:<22}{row}" + "".join(f"{ratio:8.2f}x" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
