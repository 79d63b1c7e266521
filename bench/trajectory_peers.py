"""What people use today for many epochs of plain gradient descent: NumPy, torch, JAX.

Every peer is a function of `(W, H, y, epochs)` as NumPy arrays that returns a call without
arguments, prepared (copied, compiled), which returns W and H after that many epochs of the mean
loss with `LR`, from the same start at each call.
"""

from __future__ import annotations

import numpy as np

LR = 1.0


def fastnc_(W, H, y, epochs):
    """The compiled loop of this package; float32 is compensated, as in `fastnc.descend`."""
    from fastnc.kernels.cpu.trajectory import descend

    def call():
        w, h = W.copy(), H.copy()
        single = W.dtype == np.float32
        low = [np.zeros_like(x) if single else np.zeros((0, 0)) for x in (w, h)]
        descend(w, h, *low, y, 1.0 / len(y), LR, epochs)
        return w, h

    return call


def numpy(W, H, y, epochs):
    """Arrays and their products, in place where that saves one."""
    N, rows = len(H), np.arange(len(H))

    def call():
        w, h = W.copy(), H.copy()
        for _ in range(epochs):
            Z = h @ w.T
            Z -= Z.max(axis=1, keepdims=True)
            np.exp(Z, out=Z)
            Z /= Z.sum(axis=1, keepdims=True)
            Z[rows, y] -= 1.0
            Z *= LR / N
            dW = Z.T @ h
            h -= Z @ w
            w -= dW
        return w, h

    return call


def torch_by_hand(W, H, y, epochs):
    """The same by torch, without autograd."""
    import torch

    start, labels, N = (torch.tensor(W), torch.tensor(H)), torch.tensor(y)[:, None], len(H)

    def call():
        w, h = (x.clone() for x in start)
        own = torch.full((N, 1), -1.0, dtype=w.dtype)
        for _ in range(epochs):
            Z = torch.softmax(h @ w.T, dim=1).scatter_add_(1, labels, own).mul_(LR / N)
            dW = Z.T @ h
            h.addmm_(Z, w, alpha=-1.0)
            w.sub_(dW)
        return w.numpy(), h.numpy()

    return call


def torch_eager(W, H, y, epochs):
    """Autograd and `torch.optim.SGD`."""
    import torch

    start, labels = (torch.tensor(W), torch.tensor(H)), torch.tensor(y)

    def call():
        w, h = (x.clone().requires_grad_() for x in start)
        optimiser = torch.optim.SGD([w, h], lr=LR)
        for _ in range(epochs):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(h @ w.T, labels).backward()
            optimiser.step()
        return w.detach().numpy(), h.detach().numpy()

    return call


def jax_loop(W, H, y, epochs):
    """`fori_loop` over epochs, compiled whole."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", W.dtype == np.float64)
    start, labels = (jnp.array(W), jnp.array(H)), jnp.array(y)

    def loss(W, H):
        Z = H @ W.T
        own = jnp.take_along_axis(Z, labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(Z, axis=1) - own).mean()

    slopes = jax.grad(loss, argnums=(0, 1))

    def epoch(_, state):
        return tuple(x - LR * dx for x, dx in zip(state, slopes(*state), strict=True))

    run = jax.jit(lambda W, H: jax.lax.fori_loop(0, epochs, epoch, (W, H)))
    return lambda: tuple(np.asarray(x) for x in jax.block_until_ready(run(*start)))


TRAJECTORY_PEERS = {
    "fastnc": fastnc_,
    "NumPy": numpy,
    "torch by hand": torch_by_hand,
    "torch eager": torch_eager,
    "JAX fori_loop": jax_loop,
}
