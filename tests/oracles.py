"""What the tests compare with: the definitions, in NumPy and mpmath; nothing of fastnc."""

import itertools

import mpmath
import numpy as np

# --- Neural collapse, in extended precision where NumPy has it -----------------------------


def clouds(n_classes, dim, n_samples, spread=0.3, offset=0.0, seed=0, absent=(), dtype=np.float64):
    """Gaussian classes of unequal sizes in random order: H (N, d), y (N,), W (K, d), bias (K,).

    Classes in `absent` have no sample; every other class has one at least. W leans on the class
    means, so that some decisions agree with the nearest mean and some do not.
    """
    rng = np.random.default_rng(seed)
    present = np.setdiff1d(np.arange(n_classes), absent)
    y = np.concatenate([present, rng.choice(present, n_samples - len(present))])
    y = rng.permutation(y)
    means = rng.standard_normal((n_classes, dim))
    H = (offset + means[y] + spread * rng.standard_normal((n_samples, dim))).astype(dtype)
    W = 0.2 + means + 0.3 * rng.standard_normal((n_classes, dim))
    return H, y, W, 0.1 * rng.standard_normal(n_classes)


def etf_distance(G):
    """`|G/|G| - E/|E||_F` with E = I - 11^T/K."""
    K = len(G)
    E = np.eye(K) - np.ones((K, K)) / K
    return np.sqrt(((G / np.sqrt((G**2).sum()) - E / np.sqrt(np.longdouble(K - 1))) ** 2).sum())


def spread_of_norms(V, ddof=0):
    """Std / Avg of the norms of the rows."""
    norms = np.sqrt((V**2).sum(axis=1))
    return norms.std(ddof=ddof) / norms.mean()


def angles(V):
    """Avg over pairs of `|cos + 1/(K-1)|` of the rows."""
    K = len(V)
    V = V / np.sqrt((V**2).sum(axis=1))[:, None]
    return np.abs((V @ V.T)[np.triu_indices(K, 1)] + 1 / np.longdouble(K - 1)).mean()


def normalised_trace(X, C):
    """`tr(Sigma_W Sigma_B^+) / K` of deviations X (N, d) and means about their centre C (K, d).

    `Sigma_B^+ = K C^+ C^+^T` with the pseudo-inverse of C itself: no d x d matrix is inverted.
    """
    inverse = np.linalg.pinv(C.astype(np.float64), rcond=1e-6)
    return ((X.astype(np.float64) @ inverse) ** 2).sum() / len(X)


def collapse(H, y, W=None, bias=None):
    """Every metric by its definition, one array operation each, in extended precision."""
    H = H.astype(np.longdouble)
    labels = np.unique(y)
    K, N = len(labels), len(y)
    place = np.searchsorted(labels, y)
    sizes = np.bincount(place)
    means = np.stack([H[place == k].mean(axis=0) for k in range(K)])
    g = means.mean(axis=0)
    C, X = means - g, H - means[place]
    squares = np.bincount(place, (X**2).sum(axis=1).astype(np.float64))
    i, j = np.triu_indices(K, 1)
    gaps = ((means[i] - means[j]) ** 2).sum(axis=1)
    v = squares / sizes
    told = {
        "equinorm_features": spread_of_norms(C),
        "within_class": np.sqrt((X**2).sum(1)).mean() / np.sqrt(((H - g) ** 2).sum(1)).mean(),
        "equiangular_features": angles(C),
        "nc1": normalised_trace(X, C),
        "nc1_quotient": ((X**2).sum() / N) / ((C**2).sum() / K),
        "cdnv": ((v[i] + v[j]) / (2 * gaps)).mean(),
        "nc2_gram_features": etf_distance(C @ C.T),
        "nearest_mean_accuracy": (nearest(H, means) == place).mean(),
        "effective_rank": effective_rank(C.astype(np.float64)),
        **energies(C),
    }
    if W is not None:
        W = W.astype(np.longdouble)
        offset = np.zeros(len(W)) if bias is None else bias
        V, rows = W - W.mean(axis=0), W[labels] if len(W) > K else W
        R = rows - rows.mean(axis=0)
        unit_C = C / np.sqrt((C**2).sum(1))[:, None]
        unit_R = R / np.sqrt((R**2).sum(1))[:, None]
        Z = H @ W.T + offset
        own = Z[np.arange(N), y].copy()
        decided = Z.argmax(axis=1)
        Z[np.arange(N), y] = -np.inf
        margin = (own - Z.max(axis=1)).min()
        counts = np.bincount(y, minlength=len(W)).astype(np.float64)
        E = np.diag(np.sqrt(counts)) - np.sqrt(counts) / len(W)
        nuclear = np.linalg.svd(E, compute_uv=False).sum()
        told |= {
            "equinorm_classifier": spread_of_norms(V),
            "equiangular_classifier": angles(V),
            "self_duality": np.sqrt(((unit_C - unit_R) ** 2).sum(1)).mean(),
            "nc2_gram_classifier": etf_distance(V @ V.T),
            "nc3_gram": etf_distance(R @ C.T),
            "nc3_distance": (
                (rows / np.sqrt((rows**2).sum()) - C / np.sqrt((C**2).sum())) ** 2
            ).sum(),
            "nc4_agreement": (decided == labels[nearest(H, means)]).mean(),
            "accuracy": (decided == y).mean(),
            "uniform_duality": (rows * C).sum(axis=1).var(),
            "nc0": (W.sum(axis=0) ** 2).sum() / len(W),
            "one_vs_rest_distance": one_vs_rest(W.astype(np.float64)),
            "margin": margin,
            "margin_ratio": 2 * nuclear * margin / ((W**2).sum() + (H**2).sum()),
        }
    return {name: None if value is None else float(value) for name, value in told.items()}


def nearest(H, means):
    """The place of the nearest mean of each row."""
    return ((H[:, None, :] - means[None]) ** 2).sum(axis=2).argmin(axis=1)


def effective_rank(C):
    """exp of the entropy of the singular values, those below 1e-6 of the largest left out."""
    lengths = np.linalg.svd(C, compute_uv=False)
    shares = lengths[lengths > 1e-6 * lengths[0]]
    shares = shares / shares.sum()
    return np.exp(-(shares * np.log(shares)).sum())


def energies(C):
    """Averages over pairs of log(1/r) and of the Riesz energy r^-(d-2), r between directions."""
    U = C / np.sqrt((C**2).sum(axis=1))[:, None]
    i, j = np.triu_indices(len(U), 1)
    r = np.sqrt(((U[i] - U[j]) ** 2).sum(axis=1))
    s = C.shape[1] - 2
    # In one dimension directions coincide.
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "gnc2_log": -np.log(r).mean(),
            "gnc2_riesz": (r**-s).mean() if s >= 0 else -(r**-s).mean(),
            "gnc2_log_variance": np.log(r).var(),
            "gnc2_distance_variance": r.var(),
        }


def one_vs_rest(W):
    """The least distance of a direction from the hull of the others, by every face of the hull.

    None for more rows than this takes a moment for.
    """
    if len(W) > 7:
        return None
    U = W / np.linalg.norm(W, axis=1)[:, None]
    best = np.inf
    for k in range(len(U)):
        rest = np.delete(U, k, axis=0)
        for size in range(1, len(rest) + 1):
            for face in itertools.combinations(range(len(rest)), size):
                # The affine hull's nearest point belongs to the face where its weights do.
                V = rest[list(face)]
                x, *_ = np.linalg.lstsq((V[1:] - V[0]).T, U[k] - V[0], rcond=None)
                if (x >= 0).all() and x.sum() <= 1:
                    best = min(best, np.linalg.norm(U[k] - V[0] - (V[1:] - V[0]).T @ x))
    return best


def held_out(H, y, means, W, bias):
    """Of samples about the means of others (all classes have some): what may differ."""
    K, C = len(means), means - means.mean(axis=0)
    X, Z = H - means[y], H @ W.T + bias
    v = np.array([(X[y == k] ** 2).sum(axis=1).mean() for k in range(K)])
    i, j = np.triu_indices(K, 1)
    own = Z[np.arange(len(y)), y]
    rival = np.where(np.eye(K, dtype=bool)[y], -np.inf, Z).max(axis=1)
    E = np.eye(K) - 1 / K
    nuclear = np.linalg.svd(E * np.sqrt(np.bincount(y, minlength=K)), compute_uv=False).sum()
    return {
        "within_class": np.linalg.norm(X, axis=1).mean()
        / np.linalg.norm(H - means.mean(axis=0), axis=1).mean(),
        "nc1": normalised_trace(X, C),
        "nc1_quotient": ((X**2).sum() / len(y)) / ((C**2).sum() / K),
        "cdnv": ((v[i] + v[j]) / (2 * ((means[i] - means[j]) ** 2).sum(axis=1))).mean(),
        "nc4_agreement": (Z.argmax(axis=1) == nearest(H, means)).mean(),
        "accuracy": (Z.argmax(axis=1) == y).mean(),
        "nearest_mean_accuracy": (nearest(H, means) == y).mean(),
        "margin": (own - rival).min(),
        "margin_ratio": 2 * nuclear * (own - rival).min() / ((W**2).sum() + (H**2).sum()),
    }


def _classes(H, y):
    K = y.max() + 1
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    X = H - means[y]
    return K, means, X.T @ X / len(y)


def papyan(H, y, W, bias):
    """The measurements of Papyan, Han and Donoho's notebook, step by step (all classes present)."""
    K, means, within = _classes(H, y)
    M = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(M.T @ M / K)
    values, vectors = values[-(K - 1) :], vectors[:, -(K - 1) :]

    def coherence(V):
        V = V / np.linalg.norm(V, axis=1, keepdims=True)
        G = V @ V.T + 1 / (K - 1)
        np.fill_diagonal(G, 0.0)
        return np.abs(G).sum() / (K * (K - 1))

    gap = W / np.linalg.norm(W) - M / np.linalg.norm(M)
    return {
        "NC1: tr(Sw Sb^+)": np.trace(within @ (vectors / values) @ vectors.T),
        "NC2: equinorm of M": spread_of_norms(M, ddof=1),
        "NC2: equinorm of W": spread_of_norms(W, ddof=1),
        "NC2: equiangular of M": coherence(M),
        "NC2: equiangular of W": coherence(W),
        "NC3: |W/|W| - M/|M||^2": np.linalg.norm(gap) ** 2,
        "NC4: mismatch": 1 - (nearest(H, means) == (H @ W.T + bias).argmax(axis=1)).mean(),
    }


def papyan_in_print(H, y, W, bias):
    """The same with NC1 as the paper's figures define it, divided by the number of classes."""
    told = papyan(H, y, W, bias)
    return {"NC1: tr(Sw Sb^+)/C": told.pop("NC1: tr(Sw Sb^+)") / (y.max() + 1), **told}


def zhu(H, y, W, bias):
    """The measurements of Zhu et al.'s published script (all classes present)."""
    K, means, within = _classes(H, y)
    g = H.mean(axis=0)
    between = sum(np.outer(m - g, m - g) for m in means) / K
    return {
        "NC1: tr(Sw Sb^+)/K": np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / K,
        "NC2: WW^T against the ETF": etf_distance(W @ W.T),
        "NC3: WM^T against the ETF": etf_distance(W @ (means - g).T),
        "NC4: |W g + b|": np.linalg.norm(W @ g + bias),
    }


def rhubarbwu(H, y, W):
    """The measurements of the package of that name, which knows no bias (all classes present)."""
    K, means, within = _classes(H, y)
    g = means.mean(axis=0)
    M = means - g
    between = M.T @ M / K
    v = np.array([((H[y == k] - means[k]) ** 2).sum() / (y == k).sum() for k in range(K)])
    pairs = [(a, b) for a in range(K) for b in range(a)]
    unit = M / np.linalg.norm(M, axis=1)[:, None]
    r = np.array([np.linalg.norm(unit[a] - unit[b]) for a, b in pairs])
    return {
        "NC1: tr(Sw Sb^+)/K": np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / K,
        "NC1: tr Sw / tr Sb": np.trace(within) / np.trace(between),
        "NC1: CDNV": np.mean(
            [(v[a] + v[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs]
        ),
        "NC2: variation of the norms": spread_of_norms(M, ddof=1),
        "NC2: MM^T against the ETF": etf_distance(M @ M.T),
        "NC2: variance of distances": r.var(),
        "NC2: variance of log distances": np.log(1 / r).var(),
        "NC3: WM^T against the ETF": etf_distance(W @ M.T),
        "NC3: variance of <w, m>": (W * M).sum(axis=1).var(ddof=1),
        "NC4: agreement": (nearest(H, means) == (H @ W.T).argmax(axis=1)).mean(),
    }


# --- The objective and its derivatives in 50 digits ----------------------------------------

DIGITS = 50


def numbers(x):
    """The same numbers as an array of mpmath's."""
    return np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])(x)


def floats(x):
    """mpmath's numbers rounded to float64."""
    return np.vectorize(float, otypes=[np.float64])(x)


def cross_entropy(W, H, y, dW=None, dH=None):
    """Equation (4) summed, its logarithm and gradients, and its Hessian times (dW, dH).

    A dictionary of mpmath's numbers: "loss", "log_loss", "grad_W", "grad_H", "residuals", and,
    where a direction is given, "HW" and "HH".
    """
    with mpmath.workdps(DIGITS):
        W, H = numbers(W), numbers(H)
        N, K = len(H), len(W)
        Z = H @ W.T
        r, dr = np.zeros_like(Z), np.zeros_like(Z)
        rates = np.zeros_like(Z)
        if dW is not None:
            dW, dH = numbers(dW), numbers(dH)
            rates = dH @ W.T + H @ dW.T
        loss = mpmath.mpf(0)
        for i in range(N):
            own = int(y[i])
            e = {j: mpmath.exp(Z[i, j] - Z[i, own]) for j in range(K) if j != own}
            S = mpmath.fsum(e.values())
            loss += mpmath.log1p(S)
            gaps = {j: rates[i, j] - rates[i, own] for j in e}
            s = mpmath.fsum(e[j] * gaps[j] for j in e) / (1 + S)
            for j in e:
                r[i, j] = e[j] / (1 + S)
                dr[i, j] = r[i, j] * (gaps[j] - s)
            r[i, own] = -S / (1 + S)
            dr[i, own] = -s / (1 + S)
        told = {
            "loss": loss,
            "log_loss": mpmath.log(loss),
            "grad_W": r.T @ H,
            "grad_H": r @ W,
            "residuals": r,
        }
        if dW is not None:
            told["HW"] = dr.T @ H + r.T @ dH
            told["HH"] = dr @ W + r @ dW
        return told


def worst_relative_error(found, exact, dtype="float64"):
    """The largest relative error, over entries whose true value is a normal number of `dtype`."""
    found, exact = numbers(np.atleast_1d(found)), np.atleast_1d(exact)
    tiny, huge = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    normal = [(f, e) for f, e in zip(found.flat, exact.flat, strict=True) if tiny <= abs(e) <= huge]
    assert normal, "no entry is a normal number: the test would compare nothing"
    with mpmath.workdps(DIGITS):
        return float(max(abs(f - e) / abs(e) for f, e in normal))


def central_difference(function, x, direction, step=1e-6):
    """The derivative of `function` at x along `direction`, to some 1e-9 of its size."""
    ahead, behind = function(x + step * direction), function(x - step * direction)
    return (ahead - behind) / (2 * step)
