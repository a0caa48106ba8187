"""One run of a peer's sampler on a target of the efficiency benchmark; ``efficiency.py`` calls it.

    PEERS/bin/python benchmarks/efficiency_peers.py METHOD TARGET DTYPE OUT.npz

It needs the packages of ``benchmarks/peers.txt``, and nothing of potentia. Samplers run with their library's defaults
and adaptation. BlackJAX has none for MALA: its step is searched for in the warm-up, to an acceptance of 0.574.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
from _efficiency_targets import Target, starts, target

METHODS = ("pyro-hmc", "pyro-nuts", "blackjax-mala", "blackjax-nuts", "blackjax-mclmc", "numpyro-nuts")
Result = dict[str, Any]
clock = time.process_time  # of all threads: on a busy machine, wall time measures the others


def pyro_run(t: Target, method: str, dtype: str, x0: Any, draws: int, warmup: int) -> Result:
    import pyro
    import torch
    from pyro.infer.mcmc import HMC, MCMC, NUTS

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    kind = getattr(torch, dtype)
    logs, means, precisions = (torch.tensor(a, dtype=kind) for a in (t.log_weights, t.means, t.precisions))
    count = [0]

    def potential(params: dict[str, torch.Tensor]) -> torch.Tensor:
        count[0] += 1
        off = params["x"] - means
        value = -torch.logsumexp(logs - 0.5 * torch.einsum("kd,kde,ke->k", off, precisions, off), 0)
        return value if len(means) > 1 else 0.5 * (off[0] @ precisions[0]) @ off[0]

    kept, warm, spent, grads = [], 0.0, 0.0, 0
    for chain in x0:
        kernel = (HMC if method == "pyro-hmc" else NUTS)(potential_fn=potential, jit_compile=False)
        marks: list[tuple[float, int]] = []

        def hook(kernel: Any, params: Any, stage: str, i: int, marks: list[tuple[float, int]] = marks) -> None:
            if (stage.startswith("Warmup") and i == warmup - 1) or (stage.startswith("Sample") and i == draws - 1):
                marks.append((clock(), count[0]))

        begun = clock()
        mcmc = MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={"x": torch.tensor(chain, dtype=kind)},
            hook_fn=hook,
            disable_progbar=True,
        )
        mcmc.run()
        kept.append(mcmc.get_samples()["x"].numpy())
        first, last = marks[-2], marks[-1]
        warm += first[0] - begun
        spent += last[0] - first[0]
        grads += last[1] - first[1]
    return {"draws": np.stack(kept), "compile": 0.0, "warmup": warm, "sampling": spent, "grads": grads}


def log_density(t: Target, dtype: str) -> Callable[[Any], Any]:
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    logs, means, precisions = (jnp.asarray(a, dtype) for a in (t.log_weights, t.means, t.precisions))

    def density(x: Any) -> Any:
        if len(t.means) == 1:
            off = x - means[0]
            return -0.5 * jnp.dot(off @ precisions[0], off)
        off = x - means
        return logsumexp(logs - 0.5 * jnp.einsum("kd,kde,ke->k", off, precisions, off))

    return density


def compiled(fn: Any, *args: Any) -> tuple[Any, float]:
    """A function compiled for these arguments, and the time that took."""
    import jax

    begun = clock()
    return jax.jit(fn).lower(*args).compile(), clock() - begun


def blackjax_run(t: Target, method: str, dtype: str, x0: Any, draws: int, warmup: int) -> Result:
    import blackjax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", dtype == "float64")
    density = log_density(t, dtype)
    x0 = jnp.asarray(x0, dtype)
    keys = jax.random.split(jax.random.key(0), len(x0))

    def chain(one_step: Any, state: Any, key: Any) -> Any:
        def body(state: Any, key: Any) -> Any:
            state, info = one_step(key, state)
            return state, (state.position, info)

        return jax.lax.scan(body, state, jax.random.split(key, draws))[1]

    if method == "blackjax-nuts":

        def warm(x: Any, key: Any) -> Any:
            (state, found), _ = blackjax.window_adaptation(blackjax.nuts, density).run(key, x, warmup)
            return state, found

        def sample(state: Any, found: Any, key: Any) -> Any:
            positions, info = chain(blackjax.nuts(density, **found).step, state, key)
            return positions, info.num_integration_steps.sum()

    elif method == "blackjax-mala":

        def warm(x: Any, key: Any) -> Any:
            def body(carry: Any, pair: Any) -> Any:
                state, log_step = carry
                number, key = pair
                state, info = blackjax.mala.build_kernel()(key, state, density, jnp.exp(log_step))
                return (state, log_step + (info.acceptance_rate - 0.574) * 2 / jnp.sqrt(number)), log_step

            numbers = jnp.arange(1, warmup + 1).astype(dtype)
            first = (blackjax.mala.init(x, density), jnp.asarray(-6.0, dtype))
            (state, _), path = jax.lax.scan(body, first, (numbers, jax.random.split(key, warmup)))
            return state, jnp.exp(path[warmup // 2 :].mean())

        def sample(state: Any, step: Any, key: Any) -> Any:
            positions, _ = chain(blackjax.mala(density, step).step, state, key)
            return positions, jnp.asarray(draws)

    else:

        def warm(x: Any, key: Any) -> Any:
            state = blackjax.mcmc.mclmc.init(x, density, key)
            kernel = blackjax.mcmc.mclmc.build_kernel()
            found = blackjax.mclmc_find_L_and_step_size(kernel, warmup, state, key, logdensity_fn=density)
            return found[0], found[1]

        def sample(state: Any, found: Any, key: Any) -> Any:
            algorithm = blackjax.mclmc(density, found.L, found.step_size, inverse_mass_matrix=found.inverse_mass_matrix)
            positions, _ = chain(algorithm.step, state, key)
            return positions, jnp.asarray(2 * draws)  # its integrator takes two gradients a step

    # One chain after the other: in lockstep they would wait for the longest tree.
    warm_run, compile_warm = compiled(lambda x, k: jax.lax.map(lambda a: warm(*a), (x, k)), x0, keys)
    begun = clock()
    state, found = jax.block_until_ready(warm_run(x0, keys))
    warmed = clock() - begun
    run, compile_run = compiled(lambda s, f, k: jax.lax.map(lambda a: sample(*a), (s, f, k)), state, found, keys)
    begun = clock()
    positions, grads = jax.block_until_ready(run(state, found, keys))
    spent = clock() - begun
    return {
        "draws": np.asarray(positions),
        "compile": compile_warm + compile_run,
        "warmup": warmed,
        "sampling": spent,
        "grads": int(grads.sum()),
    }


def numpyro_run(t: Target, method: str, dtype: str, x0: Any, draws: int, warmup: int) -> Result:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64(dtype == "float64")
    density = log_density(t, dtype)
    kernel = NUTS(potential_fn=lambda x: -density(x))
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=len(x0),
        chain_method="sequential",
        progress_bar=False,
    )
    begun = clock()
    mcmc.warmup(jax.random.key(0), init_params=jnp.asarray(x0, dtype), collect_warmup=False)
    jax.block_until_ready(mcmc.last_state)
    warmed = clock() - begun
    mcmc.run(jax.random.key(1), extra_fields=("num_steps",))  # compiles
    begun = clock()
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jax.random.key(2), extra_fields=("num_steps",))
    positions = np.asarray(mcmc.get_samples(group_by_chain=True))
    spent = clock() - begun
    grads = int(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum())
    return {"draws": positions, "compile": 0.0, "warmup": warmed, "sampling": spent, "grads": grads}


def plan(method: str, dim: int) -> tuple[int, int, int]:
    """Chains, draws, warm-up."""
    large = dim > 500
    if method.startswith("pyro"):
        return (4, 150, 150) if large else (4, 300, 300)
    if method == "blackjax-mala":
        return (4, 4_000, 2_000) if large else (4, 40_000, 10_000)
    if method == "blackjax-mclmc":
        return (4, 2_000, 4_000) if large else (4, 10_000, 5_000)
    return (4, 500, 500) if large else (4, 2_000, 1_000)


def main() -> None:
    method, name, dtype, out = sys.argv[1:]
    t = target(name)
    chains, draws, warmup = plan(method, t.dim)
    library = {"pyro": pyro_run, "blackjax": blackjax_run, "numpyro": numpyro_run}[method.split("-")[0]]
    result = library(t, method, dtype, starts(name, chains), draws, warmup)
    np.savez(out, **result)


if __name__ == "__main__":
    main()
