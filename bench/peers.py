"""What people use today for the same loss and gradients: NumPy, torch, JAX, where importable.

Every peer is a function of `(W, H, y)` as NumPy arrays that returns a call without arguments,
prepared (copied to its own library, compiled), and the call returns loss, grad_W, grad_H of the
mean; under "step" it updates its own copies of W and H instead, and returns the loss.
"""

from __future__ import annotations

import numpy as np

LR = 1e-3
# Logits a chunk of rows: 2^22 of them, 16 MB in float32, suited every chunked peer best.
LOGITS = 1 << 22


def rows_per_chunk(K: int, N: int) -> int:
    """Rows whose logits the chunked peers form at a time."""
    return max(16, min(N, LOGITS // K))


def fastnc_(W, H, y, step):
    """This package."""
    import fastnc

    if step:
        W, H = W.copy(), H.copy()
        return lambda: fastnc.gradient_step(W, H, y, LR)
    return lambda: fastnc.loss_and_grads(W, H, y)


def numpy(W, H, y, step):
    """All logits at once, softmax in place."""
    W, H = (W.copy(), H.copy()) if step else (W, H)
    N, rows = len(H), np.arange(len(H))

    def call():
        Z = H @ W.T
        Z -= Z.max(axis=1, keepdims=True)
        own = Z[rows, y]
        np.exp(Z, out=Z)
        S = Z.sum(axis=1, keepdims=True)
        value = (np.log(S[:, 0]) - own).mean()
        Z /= S
        Z[rows, y] -= 1.0
        Z /= N
        dW, dH = Z.T @ H, Z @ W
        if not step:
            return value, dW, dH
        np.subtract(W, LR * dW, out=W)
        np.subtract(H, LR * dH, out=H)
        return value

    return call


def _torch(objective):
    """A peer of `objective(W, H, y)` and torch's own gradients."""

    def peer(W, H, y, step):
        import torch

        W, H, y = torch.tensor(W), torch.tensor(H), torch.tensor(y)
        W.requires_grad_(), H.requires_grad_()
        function = objective(torch)

        def call():
            value = function(W, H, y)
            value.backward()
            dW, dH = W.grad, H.grad
            W.grad = H.grad = None
            if not step:
                return value.item(), dW.numpy(), dH.numpy()
            with torch.no_grad():
                W.sub_(dW, alpha=LR), H.sub_(dH, alpha=LR)
            return value.item()

        return call

    return peer


def _eager(torch):
    return lambda W, H, y: torch.nn.functional.cross_entropy(H @ W.T, y)


def _compiled(torch):
    # Shapes met before would make sizes variables, and the ninth shape would not be compiled.
    torch.compiler.reset()
    return torch.compile(_eager(torch), dynamic=False)


def _linear(torch):
    return lambda W, H, y: torch.nn.functional.linear_cross_entropy(H, W, y)


def _linear_chunked(torch):
    # The defaults of the options leave every choice to the library; giving them opts in.
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda W, H, y: torch.nn.functional.linear_cross_entropy(H, W, y, options=options)


def torch_by_hand(W, H, y, step):
    """Chunks of rows, softmax and gradients written out, no autograd."""
    import torch

    W, H, y = torch.tensor(W), torch.tensor(H), torch.tensor(y)
    K, N = len(W), len(H)
    size = rows_per_chunk(K, N)

    def call():
        dW, dH = torch.zeros_like(W), torch.empty_like(W if step else H)
        value = 0.0
        for first in range(0, N, size):
            h, label = H[first : first + size], y[first : first + size, None]
            Z = h @ W.T
            lse = Z.logsumexp(1, keepdim=True)
            value += (lse - Z.gather(1, label)).sum().item()
            Z.sub_(lse).exp_().scatter_add_(1, label, -torch.ones_like(lse)).mul_(1 / N)
            dW.addmm_(Z.T, h)
            if step:
                h.addmm_(Z, W, alpha=-LR)
            else:
                torch.mm(Z, W, out=dH[first : first + size])
        if not step:
            return value / N, dW.numpy(), dH.numpy()
        W.sub_(dW, alpha=LR)
        return value / N

    return call


def _jax(chunked):
    def peer(W, H, y, step):
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", W.dtype == np.float64)
        K, N = len(W), len(H)
        size = rows_per_chunk(K, N)
        while N % size:
            size -= 1

        def losses(W, h, labels):
            Z = h @ W.T
            own = jnp.take_along_axis(Z, labels[:, None], axis=1)[:, 0]
            return (jax.nn.logsumexp(Z, axis=1) - own).sum() / N

        both = jax.value_and_grad(losses, argnums=(0, 1))

        def scan(W, H, y):
            def body(carry, rows):
                value, (dW, dh) = both(W, *rows)
                return (carry[0] + value, carry[1] + dW), dh

            rows = H.reshape(-1, size, H.shape[1]), y.reshape(-1, size)
            (value, dW), dH = jax.lax.scan(body, (jnp.zeros((), W.dtype), 0 * W), rows)
            return value, (dW, dH.reshape(H.shape))

        evaluate = scan if chunked else both

        def advance(W, H, y):
            value, (dW, dH) = evaluate(W, H, y)
            return value, W - LR * dW, H - LR * dH

        state = [jnp.array(W), jnp.array(H)]
        labels = jnp.array(y)
        compiled = jax.jit(advance, donate_argnums=(0, 1)) if step else jax.jit(evaluate)

        def call():
            if not step:
                value, (dW, dH) = jax.block_until_ready(compiled(*state, labels))
                return value, dW, dH
            value, *state[:] = jax.block_until_ready(compiled(*state, labels))
            return value

        return call

    return peer


def _fastnc_torch(torch):
    from fastnc.nn import linear_cross_entropy

    return lambda W, H, y: linear_cross_entropy(H, W, y)


TORCH_LOSS_PEERS = {
    "fastnc": _torch(_fastnc_torch),
    "torch eager": _torch(_eager),
    "torch linear_cross_entropy": _torch(_linear),
}
PEERS = {
    "fastnc": fastnc_,
    "NumPy": numpy,
    "torch eager": _torch(_eager),
    "torch chunked by hand": torch_by_hand,
    "torch linear_cross_entropy": _torch(_linear),
    "torch linear_cross_entropy, chunked": _torch(_linear_chunked),
    "torch.compile": _torch(_compiled),
    "JAX jit": _jax(False),
    "JAX chunked scan": _jax(True),
}
