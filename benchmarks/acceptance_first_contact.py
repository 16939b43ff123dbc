"""The first minutes of the kernels on a GPU: each one by itself, then the shapes that are measured.

A kernel that hangs or leaves its arrays breaks the device for all that follows. So each is named,
in the log and to who asked, before it is waited for. What is found here is mended before anything
is timed.
"""

from contextlib import contextmanager
from functools import partial, wraps

import numpy as np

from benchmarks import parity
from benchmarks.acceptance_context import Unfit, digest, rehearse_kernels
from benchmarks.acceptance_steps import WALKS, environment, sanitizer
from gpuclf.devices.backends import to_device
from gpuclf.kernels.building import cuda
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models import SOFTMAX, TWO_LAYER
from gpuclf.models.linear import penalized_linear_pass
from gpuclf.models.neighbors import k_neighbors, nearest_in_tiles
from gpuclf.samples.folding import FoldedSamples

LAUNCH = "launch of "  # what the name of a kernel follows
LEFT_OUT = {"message": "left out: no C++ compiler"}
REG = 1e-3
EPOCHS = 3  # launched, recorded and repeated
ALLOWED = 1e-5  # of the norm of the gradient: float32's products make some 1e-6
UPLOADED_BYTES = 64 << 20
EPOCHS_OF = {
    "softmax": (SOFTMAX, "epochs.linear_on_gpu:linear_epochs"),
    "net": (TWO_LAYER, "epochs.two_layer_on_gpu:two_layer_epochs"),
}


def with_kernels(step):
    """Leave a step out where a rehearsal has no compiler to run kernels on the CPU."""

    @wraps(step)  # which is also how another process finds it
    def wrapped(*given):
        if given[-1].settings.dry_run and not rehearse_kernels():
            return LEFT_OUT
        return step(*given)

    return wrapped


@contextmanager
def named_launches(context):
    """Say which kernel is launched, then wait for it; give the names, each with what it was for."""
    build, recorded = cuda.build, cuda.recorded
    launched, may_wait = {}, [True]

    def named(file, name, constants):
        launcher = build(file, name, constants)
        given = " ".join(f"{key}={value}" for key, value in constants)

        def launch(grid, block, args, shared_bytes):
            what = f"{LAUNCH}{name} ({file}), grid {grid}, block {block}"
            print(f"{what}, {shared_bytes} bytes, {given}", flush=True)  # in the log, each of them
            if (file, name, constants) not in launched:
                context.advance(what)
            launched[file, name, constants] = given
            launcher(grid, block, args, shared_bytes)
            if may_wait[-1]:
                context.device.synchronize()

        return launch

    def without_waiting(like, queue):
        may_wait.append(False)  # while launches are recorded
        try:
            return recorded(like, queue)
        finally:
            may_wait.pop()

    cuda.build, cuda.recorded = named, without_waiting
    try:
        yield launched
    finally:
        cuda.build, cuda.recorded = build, recorded


@with_kernels
def kernels_of(name, context):
    """Launch the kernels of a function at small sizes, and hold what they find against NumPy."""
    function, kernel = parity.registered("cupy")[name]
    with named_launches(context) as launched:
        check = parity.check_kernel(function, kernel, context.put, parity.SMALL_SIZES)
    result = {"launched": sorted({f"{file}: {name}" for file, name, _ in launched}), "check": check}
    if not check["passed"]:
        raise Unfit(check.get("message") or "it differs from NumPy", result)
    return result


def pixels_of(context, n_samples, n_features=3072):
    """Return random bytes and labels on the host; few and narrow in a rehearsal."""
    if context.settings.dry_run:
        n_samples, n_features = context.settings.samples, 96
    rng = np.random.default_rng(context.settings.seed)
    pixels = rng.integers(256, size=(n_samples, n_features), dtype=np.uint8)
    return pixels, rng.integers(10, size=n_samples)


@with_kernels
def full_passes(context):
    """Do the softmax pass that is measured, with each walk twice, and compare the bits."""
    X, y = pixels_of(context, context.settings.samples)
    rng = np.random.default_rng(1)
    W = (1e-3 * rng.standard_normal((X.shape[1], 10))).astype(np.float32)
    of_host = penalized_linear_pass.reference(
        *(W, None, FoldedSamples(X, 10, W.dtype), y, None, softmax_cross_entropy, REG)
    )
    put = partial(to_device, backend="cupy") if not context.settings.dry_run else np.array
    X, y, W = map(put, (X, y, W))
    found, wrong = {}, []
    for name, walk in WALKS.items():
        with named_launches(context):
            results = [
                walk(W, None, FoldedSamples(X, 10, W.dtype), y, None, softmax_cross_entropy, REG)
                for _ in range(2)
            ]
        if results[0] is NotImplemented:
            wrong.append(f"{name} declined")
            continue
        bits = {digest(result[:2]) for result in results}
        loss, dW = (np.asarray(to_device(x, backend="numpy")) for x in results[0][:2])
        errors = (x - right for x, right in zip((loss, dW), of_host, strict=False))
        sizes = map(np.linalg.norm, of_host)
        worst = max(np.linalg.norm(e) / size for e, size in zip(errors, sizes, strict=False))
        of_allowed = float(worst / ALLOWED)
        found[name] = {"different_results": len(bits), "of_allowed": of_allowed}
        if len(bits) > 1 or not of_allowed <= 1:
            wrong.append(f"{name}: {len(bits)} results, {of_allowed:.3g} of what is allowed")
    if wrong:
        raise Unfit("; ".join(wrong), found)
    return found


@with_kernels
def recorded_epochs(context):
    """Train three epochs twice, one launched, one recorded, one repeated, and compare the bits."""
    X, y = map(context.put, pixels_of(context, context.settings.samples))
    n_samples, found, wrong = int(X.shape[0]), {}, []
    n_steps = -(-n_samples // 200)
    for name, (model, epochs) in EPOCHS_OF.items():
        bits = set()
        for _ in range(2):
            rng = np.random.default_rng(2)
            sizes = {"D": int(X.shape[1]), "C": 10, "H": 50}
            shapes = {k: tuple(sizes[a] for a in axes) for k, axes in model.axes.items()}
            params = {
                k: context.put((1e-3 * rng.standard_normal(shape)).astype(np.float32))
                for k, shape in shapes.items()
            }
            velocity = {k: 0 * value for k, value in params.items()}
            with named_launches(context):
                run = parity.imported(epochs)(
                    model, params, velocity, X, y, batch_size=200, reg=1e-4, momentum=0.9,
                    nesterov=True, augment=None, rng=None,
                )  # fmt: skip
                if run is NotImplemented:
                    break
                losses = [
                    np.asarray(
                        to_device(run(rng.permutation(n_samples), [1e-6] * n_steps), "numpy")
                    )
                    for _ in range(EPOCHS)
                ]
            bits.add(digest((losses, params)))
        finite = bool(bits) and bool(np.isfinite(losses).all())
        recorded = bool(bits) and (context.settings.dry_run or run.is_recorded)
        found[name] = {"different_results": len(bits), "finite": finite, "recorded": recorded}
        if len(bits) != 1 or not finite or not recorded:
            wrong.append(name)
    if wrong:
        why = f"declined, not finite, not recorded, or other bits: {', '.join(wrong)}"
        raise Unfit(why, found)
    return found


@with_kernels
def nearest_neighbors(context):
    """Search the nearest of 4,096 images for 512, which NumPy has to find bit for bit."""
    images, _ = pixels_of(context, 512 + 4096)
    A, B = np.split(images, [len(images) // 9])
    right = nearest_in_tiles.reference(A, B, 5, "l2", len(B), 1 << 20, lambda n: None)
    (kernel,) = [k for n, (_, k) in parity.registered("cupy").items() if n == "nearest_in_tiles"]
    with named_launches(context):
        found = kernel(*map(context.put, (A, B)), 5, "l2", 600, 1 << 20, lambda n: None)
        whole = k_neighbors(*map(context.put, (A, B)), 5)
    found = [np.asarray(to_device(x, "numpy")) for x in (*found, whole[1])]
    right = [*right, right[1]]
    if not all(np.array_equal(ours, theirs) for ours, theirs in zip(found, right, strict=True)):
        raise Unfit("the nearest are others than NumPy's")
    return {"queries": len(A), "training": len(B)}


def upload(context):
    """Take 64 MB to the device in pieces and back."""
    n_bytes = UPLOADED_BYTES >> (8 if context.settings.dry_run else 0)
    sent = np.random.default_rng(3).integers(256, size=(n_bytes // 3072, 3072), dtype=np.uint8)
    there = context.put(sent)
    if not np.array_equal(to_device(there, "numpy"), sent):
        raise Unfit("other bytes came back than were sent")
    return {"bytes": int(sent.nbytes)}


FIRST_CONTACT = {
    # Each in a step of its own: what breaks the device costs none of the others.
    **{f"kernels: {name}": partial(kernels_of, name) for name in parity.registered("cupy")},
    "full passes": full_passes,
    "recorded epochs": recorded_epochs,
    "nearest neighbours": nearest_neighbors,
    "upload": upload,
    "environment": environment,  # late: it imports the peers, to ask for their versions
    "compute-sanitizer memcheck": partial(sanitizer, "memcheck"),
}
