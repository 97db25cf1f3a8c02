"""PCA and k-means over more rows than fit into memory: everything comes in blocks, each read once a pass.

The PCA is exact: the covariance is added up in float64, block by block, and diagonalised once. scikit-learn's
IncrementalPCA forgets all but its components at every block, and is many times slower at 2,560 features
(`benchmarks/decomposition_streaming.py --incremental`). The k-means is mini-batch k-means (Sculley 2010). Results do
not depend on how rows were cut into blocks. Memory is that of a block and of a few features x features matrices; time
grows linearly with the rows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32
from scipy.linalg import eigh
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from src.utils.errors import UserError

Block = Float32[np.ndarray, "rows features"]
Blocks = Callable[[], Iterable[Block]]  # called once a pass, for the same rows in the same order
BATCH_ROWS = 4096
SAMPLE_ROWS_A_CLUSTER = 200


@dataclass(frozen=True, eq=False)
class StreamedPCA:
    """Principal components of all rows, largest first, signs as scikit-learn's (the largest loading is positive)."""

    mean: Float64[np.ndarray, " features"]
    components: Float64[np.ndarray, "components features"]
    variances: Float64[np.ndarray, " components"]
    total_variance: float
    rows: int

    @property
    def explained_variance_ratio(self) -> Float64[np.ndarray, " components"]:
        return self.variances / self.total_variance

    def transform(self, block: Block) -> Float32[np.ndarray, "rows components"]:
        """The rows' scores."""
        directions = self.components.astype(np.float32)
        return (block - self.mean.astype(np.float32)) @ directions.T


@dataclass(frozen=True, eq=False)
class StreamedKMeans:
    """Cluster centres; the sum of squared distances to them and the cluster sizes are of a pass over all rows."""

    centres: Float32[np.ndarray, "k features"]
    inertia: float
    sizes: Int[np.ndarray, " k"]

    def labels(self, blocks: Iterable[Block]) -> Iterator[Int32[np.ndarray, " rows"]]:
        """The nearest centre of each row, block by block."""
        return (nearest(block, self.centres)[0] for block in blocks)


@dataclass(eq=False)
class Moments:
    """Count, mean and centred sums of products, merged block by block (Chan, Golub and LeVeque 1979), in float64."""

    rows: int
    mean: Float64[np.ndarray, " features"]
    products: Float64[np.ndarray, "features features"]

    def add(self, block: Block, scratch: Float64[np.ndarray, "features features"]) -> None:
        """Take a block in; each one is centred first, so that a large mean costs no digits."""
        values = block.astype(np.float64)
        mean = values.mean(axis=0)
        values -= mean
        self.products += np.matmul(values.T, values, out=scratch)
        rows, shift = self.rows + len(block), mean - self.mean
        weighted = shift * (self.rows * len(block) / rows)
        self.products += np.multiply(weighted[:, None], shift, out=scratch)
        self.mean += shift * (len(block) / rows)
        self.rows = rows


def streaming_moments(blocks: Blocks, batch_rows: int = BATCH_ROWS) -> Moments:
    """Mean and sums of products of all rows in one pass; `UserError` where a value is not finite or there is no row."""
    moments: Moments | None = None
    scratch = np.empty((0, 0))
    for block in rebatched(blocks(), batch_rows):
        if moments is None:
            features = block.shape[1]
            moments = Moments(0, np.zeros(features), np.zeros((features, features)))
            scratch = np.empty((features, features))
        moments.add(block, scratch)
    if moments is None:
        raise UserError("streaming: there is no row; look at the flags of the frame, or collect tokens with --tokens")
    if not np.isfinite(moments.mean).all():
        raise UserError("streaming: a value is not finite; drop such rows first, as token_inputs does")
    return moments


def streaming_pca(blocks: Blocks, components: int, batch_rows: int = BATCH_ROWS) -> StreamedPCA:
    """The first principal components of all rows, one pass; equal to PCA of the whole matrix but for rounding.

    More components than rows - 1 or features raise `UserError`.
    """
    moments = streaming_moments(blocks, batch_rows)
    features = len(moments.mean)
    most = min(moments.rows - 1, features)
    if components > most:
        raise UserError(f"{components} components of {moments.rows} rows of {features} features; at most {most}", 2)
    covariance = moments.products
    covariance /= moments.rows - 1
    total = float(np.trace(covariance))
    variances, vectors = eigh(
        covariance, subset_by_index=(features - components, features - 1), overwrite_a=True, check_finite=False
    )
    directions = vectors.T[::-1]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(components), largest])[:, None]
    return StreamedPCA(moments.mean, directions, np.maximum(variances[::-1], 0.0), total, moments.rows)


def streaming_kmeans(
    blocks: Blocks, k: int, seed: int, passes: int = 2, batch_rows: int = BATCH_ROWS
) -> StreamedKMeans:
    """Mini-batch k-means: `passes` over the rows, after one for the start and before one for sizes and inertia.

    It starts from k-means of an even sample of all rows (200 a cluster): neighbours in a stream are alike, so that the
    first block is no start. Mostly it is run on scores: `lambda: map(pca.transform, blocks())`. Fewer rows than
    clusters raise `UserError`.
    """
    sample = even_sample(rebatched(blocks(), batch_rows), SAMPLE_ROWS_A_CLUSTER * k, seed)
    if len(sample) < k:
        raise UserError(f"{k} clusters of {len(sample)} rows; choose at most that many", 2)
    with threadpool_limits(1, user_api="openmp"):  # several threads add up in whatever order they finish
        start = KMeans(n_clusters=k, n_init=10, random_state=seed).fit(sample).cluster_centers_
        model = MiniBatchKMeans(
            n_clusters=k,
            init=start,
            n_init=1,
            batch_size=batch_rows,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed,
        )
        for _ in range(passes):
            for block in rebatched(blocks(), batch_rows):
                model.partial_fit(block)
    centres = (model.cluster_centers_ if passes else start).astype(np.float32)
    inertia, sizes = 0.0, np.zeros(k, dtype=np.int64)
    for block in rebatched(blocks(), batch_rows):
        labels, squared = nearest(block, centres)
        inertia += float(squared.sum(dtype=np.float64))
        sizes += np.bincount(labels, minlength=k)
    return StreamedKMeans(centres, inertia, sizes)


def nearest(
    block: Block, centres: Float32[np.ndarray, "k features"]
) -> tuple[Int32[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Each row's nearest centre, the first of equals, and its squared distance from it."""
    origin = centres.mean(axis=0)  # about which rounding is small
    rows, shifted = block - origin, centres - origin
    scores = (shifted**2).sum(axis=1) - 2 * (rows @ shifted.T)
    labels = scores.argmin(axis=1)
    squared = scores[np.arange(len(rows)), labels] + (rows**2).sum(axis=1)
    return labels.astype(np.int32), np.maximum(squared, 0.0)


def rebatched(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The same rows in blocks of `rows`, the last one smaller, however they came."""
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        start = 0
        while count + len(block) - start >= rows:
            stop = start + rows - count
            held.append(block[start:stop])
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held, count, start = [], 0, stop
        if start < len(block):
            held.append(block[start:].copy())  # a view would keep the whole block, or change with its maker's buffer
            count += len(block) - start
    if held:
        yield np.concatenate(held)


def even_sample(blocks: Iterable[Block], size: int, seed: int) -> Block:
    """`size` rows in the order of the stream, any set of rows as likely as another; all where there are fewer.

    Every row draws a number and those with the smallest are kept: one pass, at most twice `size` rows and a block in
    memory, and the same sample however the stream was cut.
    """
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    bound = np.inf
    for block in blocks:
        drawn = rng.random(len(block))
        is_candidate = drawn < bound
        kept.append(block[is_candidate])
        keys.append(drawn[is_candidate])
        if sum(map(len, keys)) > 2 * size:
            kept, keys = smallest(kept, keys, size)
            bound = float(keys[0].max())
    return smallest(kept, keys, size)[0][0] if kept else np.zeros((0, 0), np.float32)


def smallest(kept: list[np.ndarray], keys: list[np.ndarray], size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The rows with the `size` smallest keys, joined, in their order."""
    joined = np.concatenate(keys)
    chosen = np.sort(np.argsort(joined, kind="stable")[:size])
    return [np.concatenate(kept)[chosen]], [joined[chosen]]
