"""A pipeline: each worker has some layers of the model; groups of requests follow one another.

What changes: the graph of the model is cut into as many stages as there are workers, by what each
layer takes on each worker and what a link takes (timed in the shapes of the first batch), so that
the slowest stage is as fast as can be. A batch is split into groups; while one is in the second
stage, the next one is in the first. KV caches stay with their layers; hidden states travel.
Why it is faster: W workers with cores and memory of their own work at once, each on its share of
the weights: up to W times the output tokens a second of a batch, and a W-th of the memory each.
When it is not: one request passes one stage after the other, at the speed of one worker, less what
links take. A group has fewer rows than the batch, so each weight is read more often: where reading
weights bounds a step, decoding gains little. Fewer rows than stages leave stages idle.
What it costs: hidden states over every link (2.3 KB a token for SmolLM2), seconds to time layers.
A tied embedding lies in the first stage and in the last, and the first may then run the head for
some groups. With `--dataflow_stages` and one worker all are threads of a process, to try it out.
Encoder–decoders: each side is cut by itself, so that all stages work while sources are encoded, and
while tokens are made; the encoder's result then goes round the ring once (3 MB a window of Whisper
base), and each stage makes and keeps the keys and values of it that its own decoder layers read.
What that costs: a batch is heard whole before its tokens are made, so the pipeline fills twice, and
neither side may have fewer layers than there are stages. Where nobody says beforehand what is asked
after the first source, answers of 64 tokens are reckoned with. Only graph and xla: `fused` has no
encoder.
Exact: yes, the same greedy tokens as on one device.
Source: GPipe (arXiv:1811.06965), PipeDream (arXiv:1806.03377); https://doi.org/10.1109/71.993206
"""

import dataclasses

from strategies.base import Strategy, option
from tfspeed.costs import seq2seq_shapes
from tfspeed.dataflow import ring
from tfspeed.dataflow.model import StagedEncoderDecoder, StagedModel, Stages
from tfspeed.dataflow.pipeline import DEPTH, PipelineEngine
from tfspeed.dataflow.seq2seq_pipeline import ListeningPipeline
from tfspeed.digest import digest
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.language_model import Placement


@dataclasses.dataclass(frozen=True)
class Options:
    microbatches: int = option(0, "groups that the rows of a batch are split into; 0: one a stage")
    stages: int = option(0, "without workers: stages, each a thread; 0: one, which is no pipeline")


class Dataflow(Strategy):
    name = "dataflow"
    Options = Options
    deploys = True
    spreads = True

    def __init__(self, options=None):
        super().__init__(options)
        for field in ("microbatches", "stages"):
            if getattr(self.options, field) < 0:
                raise TfspeedError(f"dataflow_{field} must be 0 or more.",
                                   **{f"dataflow_{field}": getattr(self.options, field)})

    @property
    def member(self):
        """This process in its cluster, which it joins when this is first asked for."""
        from tfspeed.cluster.member import member
        return member()

    def apply(self, model, data=None):
        member, decoder = self.member, model.keras_model
        several = member.count > 1
        if several and self.options.stages not in (0, member.count):
            raise TfspeedError("Each worker is a stage.", workers=member.count,
                               dataflow_stages=self.options.stages)
        count = member.count if several else max(1, self.options.stages)
        if not isinstance(decoder, (Decoder, EncoderDecoder)):
            raise TfspeedError("dataflow cuts the layers of a decoder, and this model is none.",
                               model=model.name, type=type(decoder).__name__,
                               hint="Use mirrored or multi_worker, which share out requests.")
        if type(model.placement) is not Placement or type(decoder) not in (Decoder, EncoderDecoder):
            raise TfspeedError("dataflow cannot cut a model that is spread already.",
                               model=model.name, hint="Leave the other distribution strategy out.")
        sides = (decoder.encoder, decoder.decoder) if model.reads_source else (decoder.blocks,)
        if count > min(map(len, sides)):
            raise TfspeedError("A pipeline has at most as many stages as the model has layers.",
                               stages=count, layers=min(map(len, sides)),
                               hint="Start fewer workers.")
        self._lines = [f"{count} stage{'s' if count > 1 else ''}" + (
            ": a pipeline raises throughput, never the speed of a single request." if count > 1
            else ", which is no pipeline: give --workers=2 or more.")]

        def engine(inner):
            if several:
                member.agree({"weights": digest(v.numpy() for v in decoder.weights)})
                team = ring.Workers(member, DEPTH * count)
            else:
                team = ring.Threads(count, DEPTH * count)
            kind = ListeningPipeline if model.reads_source else PipelineEngine
            pipeline = kind(inner, team, self.options.microbatches)
            pipeline.whole = seq2seq_shapes.known(inner.model)
            return pipeline

        if count == 1:
            return model
        names = [f"{'worker' if several else 'stage'} {i}" for i in range(count)]
        made, engines = (StagedEncoderDecoder, ("graph", "xla")) if model.reads_source else (
            StagedModel, ("graph", "xla", "fused"))
        return made(model, Stages(names, engines, engine, member if several else None))
