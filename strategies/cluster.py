"""Few distinct values a matrix (clusters, from TFMOT's centroids): the file deflates to less.

What changes: each matrix (Dense, EinsumDense, Conv) keeps only `clusters` distinct values a
codebook, but for a few large weights. TFMOT makes the first centroids, k-means moves them, and each
weight's error is taken out of the weights to come. Embedding, head and norms are left alone.
Why it is faster: it is not; a file that is compressed afterwards (zip, gzip, HTTP) is smaller:
with 16 values about four bits a weight and what deflate loses, not thirty-two.
When it is not: in memory and in every engine here a weight is as many bytes as before.
With a codebook for each output deflate finds little: a kernel lies in memory input by input.
What it costs: a minute or two (135 M parameters, 2 cores), calibration text.
Exact: no. See BUILD.md; the gate is that of four bits up to 16 clusters, of eight above.
Source: Deep Compression (arXiv:1510.00149), SqueezeLLM (arXiv:2306.07629), GPTQ (arXiv:2210.17323).
"""

import dataclasses

import numpy as np

from strategies.base import Strategy, option, some
from tfspeed import gate
from tfspeed.compression import calibration, copying, targets, tfmot_clustering
from tfspeed.compression.filesize import deflated_share, index_bits
from tfspeed.errors import TfspeedError


@dataclasses.dataclass(frozen=True)
class Options:
    clusters: int = option(16, "distinct values of a codebook, 2 to 256")
    init: str = option("kmeans++", "how TFMOT makes the first centroids: linear, kmeans++, "
                                    "density or random")
    per: str = option("tensor", "what shares a codebook: tensor; output (a row of the matrix); "
                                 "input (a column)")
    outliers: float = option(0.005, "share of the weights, the largest, that keep values of their "
                                     "own")
    targets: str = option("", "regular expression of the layers' names; default: all but "
                               "embeddings and head")


class Cluster(Strategy):
    name = "cluster"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        o = self.options
        if not 2 <= o.clusters <= 256:
            raise TfspeedError("A codebook has 2 to 256 clusters.", cluster_clusters=o.clusters)
        if not 0 <= o.outliers <= 0.5:
            raise TfspeedError("cluster_outliers is a share, 0 to 0.5.",
                               cluster_outliers=o.outliers)
        for name, value, known in (("init", o.init, tfmot_clustering.INITS),
                                   ("per", o.per, tfmot_clustering.PER)):
            if value not in known:
                raise TfspeedError(f"cluster_{name} must be one of {', '.join(known)}.",
                                   **{f"cluster_{name}": value})

    @property
    def max_perplexity_increase(self):
        return gate.INT4 if self.options.clusters <= 16 else gate.INT8

    def apply(self, model, data=None):
        copy = copying.copied(model)
        found = targets.inner(copy, self.options.targets)
        sizes, bits, blind = [], [], []

        def change(group):
            for o in group:
                matrix = tfmot_clustering.clustered(
                    o.target.matrix(), o.gram, self.options.clusters, self.options.init,
                    self.options.per, self.options.outliers)
                stored = o.target.unfolded(matrix)
                sizes.append((stored.nbytes, stored.nbytes * deflated_share(stored)))
                bits.append((matrix.size, index_bits(matrix, self.options.per)))
                if o.gram is None:
                    blind.append(o.target.name)
                o.target.assign(matrix)

        calibration.stream(copy, found, calibration.tokens(copy, data), change)
        self._tell(found, np.asarray(sizes), np.asarray(bits), blind)
        return copy

    def _tell(self, found, sizes, bits, blind) -> None:
        before, after = sizes.sum(0)
        self._lines = [
            f"{len(found)} matrices of at most {self.options.clusters} distinct values per "
            f"{self.options.per}, and {self.options.outliers:.2%} outliers. All else was left "
            "alone.",
            f"Deflated, these matrices take about {after / 1e6:.1f} MB of {before / 1e6:.1f} MB, "
            f"{32 * after / before:.1f} bits a weight; their indices alone hold "
            f"{np.average(bits[:, 1], weights=bits[:, 0]):.1f} bits. In memory as much as before.",
            "Clusters make no engine here faster: a weight is read as the float that it was."]
        if blind:
            self._lines.append("Without compensation, for what they read is not observed: "
                               f"{some(blind)}.")

